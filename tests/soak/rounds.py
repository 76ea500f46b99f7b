"""A training and a sweep under faults, until they are finished, and what they have lost."""

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from comparison import differences
from faults import (
    BETWEEN,
    BETWEEN_SWEEPS,
    STOPPED,
    SWEEP_RESULTS,
    Attack,
    Damage,
    FullDisk,
    Strike,
)
from observed_run import (
    CHECKPOINT,
    INITIALISATION,
    SWEEP_FILES,
    SWEEP_IMAGES,
    SWEEP_SCORES,
    TRAINING,
    Observer,
    Run,
)

ROOT = Path(__file__).parent.parent.parent
# Far above what any run takes; reached only by one that hangs.
PATIENCE = 300


@dataclass(frozen=True)
class Setting:
    """The trainings and sweeps of a soak.

    Attributes:
        config_file: Their config.
        overrides: Overrides of it.
        max_iter: Iterations of a training.
    """

    config_file: str
    overrides: tuple[str, ...]
    max_iter: int

    def command(self, folder: Path, num_processes: int, sweeps: bool) -> list[str]:
        """The command line of a run, the same for the first and any further one."""
        program = [sys.executable, str(ROOT / "train_net.py"), "--config-file", self.config_file]
        flags = ["--resume"]
        flags += ["--eval-only"] if sweeps else []
        flags += ["--num-gpus", str(num_processes)] if num_processes > 1 else []
        return [*program, *flags, *self.overrides, f"train.output_dir={folder}"]


@dataclass(frozen=True)
class Reference:
    """An undisturbed training and sweep: their folder, and the durations of their phases."""

    folder: Path
    durations: dict[str, float]


@dataclass
class Round:
    """A training and a sweep under faults, resumed until they are finished.

    Attributes:
        setting: What is run.
        reference: The undisturbed run of as many processes.
        folder: The output folder; its parent holds the logs of the runs.
        num_processes: Number of processes.
        rng: Draws the moments.
        deadline: A time of ``time.monotonic``, after which there are no more faults.
        happened: Phase and name of each fault so far.
        losses: A sentence for everything that was lost.
    """

    setting: Setting
    reference: Reference
    folder: Path
    num_processes: int
    rng: Random
    deadline: float
    happened: list[tuple[str, str]] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    _lost_lines: set[int] = field(default_factory=set)
    _num_runs: int = 0

    def play(self, training: Sequence[Attack], sweep: Sequence[Attack]) -> None:
        """Trains and sweeps under attacks, then compares with the reference."""
        for attacks, sweeps in ((training, False), (sweep, True)):
            finished = False
            for attack in attacks:
                # Drawn even if there is no time for it, so that the others stay the same.
                rng = Random(self.rng.random())
                if not (finished or self.losses or time.monotonic() >= self.deadline):
                    finished = self._attack(attack, rng, sweeps)
            if not (finished or self.losses):
                self._run(None, self.rng, sweeps)
        if not self.losses:
            self.losses += differences(self.folder, self.reference.folder, self._lost_lines)

    def _attack(self, attack: Attack, rng: Random, sweeps: bool) -> bool:
        """Returns whether the run was finished all the same."""
        if not isinstance(attack.fault, Damage):
            return self._run(attack, rng, sweeps)
        # Files are damaged after a kill.
        kill = Attack(SWEEP_SCORES if sweeps else TRAINING, Strike(signal.SIGKILL, "all"))
        finished = self._run(kill, rng, sweeps)
        # The results of a finished sweep can be damaged, too; a finished training is over.
        if self.losses or (finished and not sweeps):
            return finished
        self._damage(attack.fault, rng, sweeps)
        return False

    def _damage(self, damage: Damage, rng: Random, sweeps: bool) -> None:
        if (path := damage.find(self.folder)) is None:
            return
        lost = damage.harm(path, rng)
        if lost is not None:
            self._lost_lines.add(lost)
        self._note(BETWEEN_SWEEPS if sweeps else BETWEEN, damage.name, path.name)
        if not damage.refused:
            return
        run = self._start(sweeps)
        try:
            status = run.wait(PATIENCE)
        finally:
            run.end()
        if status != 2 or path.name not in run.last_line():
            self._lose(f"{path.name} is damaged, but the next run ends with {status}", run)
        for name in SWEEP_RESULTS:
            (self.folder / "sweep" / name).unlink(missing_ok=True)

    def _run(self, attack: Attack | None, rng: Random, sweeps: bool) -> bool:
        """Starts or resumes, attacks, and checks the end; returns whether it has finished."""
        fault = None if attack is None else attack.fault
        limit = None
        if isinstance(fault, FullDisk):
            file = self.reference.folder / ("sweep/pareto.png" if sweeps else "model_init.pth")
            limit = int(file.stat().st_size * fault.share)
        run = self._start(sweeps, limit)
        observer = Observer(run, self.folder, sweeps)
        phase = None
        try:
            if isinstance(fault, Strike):
                phase = self._strike(observer, attack, rng)
            status = run.wait(PATIENCE)
            if status is None:
                self._lose(f"it hangs after {phase or 'its start'}", run)
                return False
            if left := run.wait_until_gone():
                self._lose(f"processes are left over: {left}", run)
        finally:
            run.end()
        if phase is not None:
            self._judge(observer, fault, phase, status)
        elif limit is not None and status == 2 and "error: cannot write " in run.output():
            # Whatever was written first of what is too large.
            refused = run.last_line()
            if sweeps:
                phase = SWEEP_IMAGES if "detections" in refused else SWEEP_FILES
            else:
                phase = INITIALISATION if "model_init" in refused else CHECKPOINT
            self._note(phase, fault.name, refused)
        elif status != 0:
            self._lose(f"it does not go on: exit status {status}", run)
        return status == 0

    def _strike(self, observer: Observer, attack: Attack, rng: Random) -> str | None:
        """Waits for a random moment and sends the signal.

        Returns:
            The phase that the run was in; None if there was nobody to send it to.
        """
        run, progress, moment = observer.run, rng.random(), rng.random()
        moment = moment if attack.moment is None else attack.moment
        seconds = moment * self.reference.durations[attack.phase]
        if not observer.wait_for(attack.phase, progress, seconds, self.setting.max_iter):
            return None
        # The process that writes the files is stopped meanwhile, so that the phase is right.
        trainers = run.trainers()
        if not trainers or not run.send(signal.SIGSTOP, trainers[0].pid):
            return None
        try:
            phase = observer.phase()
            sent = attack.fault.send(run, rng)
        finally:
            run.send(signal.SIGCONT, trainers[0].pid)
        return phase if sent else None

    def _judge(self, observer: Observer, strike: Strike, phase: str, status: int) -> None:
        """Checks the exit status after a signal, and that a training that was stopped has saved."""
        iteration, (scored, total) = observer.last_iteration(), observer.scored()
        where = f"after stitch {scored} of {total}, " if total else ""
        where = f"after iteration {iteration}, " if iteration >= 0 else where
        self._note(phase, strike.name, f"{where}exit status {status}")
        allowed = strike.allowed(phase, self.num_processes)
        if status not in allowed:
            expected = f"exit status {status} instead of {sorted(allowed)}"
            self._lose(f"{strike.name} in {phase}: {expected}", observer.run)
        if status in STOPPED and phase in (TRAINING, CHECKPOINT):
            saved = self.folder / f"model_{iteration:07d}.pth"
            if not saved.is_file():
                self._lose(f"{strike.name}: {saved.name} was not saved", observer.run)

    def _start(self, sweeps: bool, limit: int | None = None) -> Run:
        self._num_runs += 1
        what = "sweep" if sweeps else "training"
        log = self.folder.with_name(f"{self._num_runs:02d}_{what}.log")
        return Run(self.setting.command(self.folder, self.num_processes, sweeps), log, limit)

    def _note(self, phase: str, name: str, detail: str) -> None:
        self.happened.append((phase, name))
        print(f"  {phase}: {name} ({detail})", flush=True)

    def _lose(self, sentence: str, run: Run) -> None:
        self.losses.append(f"{sentence} ({run.log.name}: {run.last_line()})")

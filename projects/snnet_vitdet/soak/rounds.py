"""A training and a sweep under faults, until they are finished, and what has become of them."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from signal import SIGCONT, SIGKILL, SIGSTOP

from snnet_vitdet.errors import InputError

from .comparison import differences, repeated_iterations
from .damages import Damage, Hurt
from .faults import BETWEEN, BETWEEN_SWEEPS, STOPPED, Blow, FullDisk, Strike
from .phases import (
    CHECKPOINT,
    INITIALISATION,
    SWEEP_FILES,
    SWEEP_IMAGES,
    SWEEP_SCORES,
    TRAINING,
    Aim,
    Durations,
    Observer,
)
from .plans import Plan
from .processes import Run

__all__ = ["Happened", "Reference", "Round", "Setting", "make_reference"]

# Far above what any of it takes; reached only by what hangs.
_PATIENCE = 300


@dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        program: ``train_net.py``.
        config_file: Its config.
        overrides: Further ``key=value``.
        max_iter: Iterations of a training.
    """

    program: Path
    config_file: str
    overrides: tuple[str, ...]
    max_iter: int

    def command(self, folder: Path, num_processes: int, sweeps: bool) -> list[str]:
        """The command line of a run, the same the first time and any other."""
        command = [sys.executable, str(self.program), "--config-file", self.config_file, "--resume"]
        command += ["--eval-only"] if sweeps else []
        command += ["--num-gpus", str(num_processes)] if num_processes > 1 else []
        return [*command, *self.overrides, f"train.output_dir={folder}"]


@dataclass(frozen=True)
class Reference:
    """A training and a sweep that nothing happened to.

    Attributes:
        folder: Their output folder.
        training: What the training took.
        sweep: What the sweep took.
    """

    folder: Path
    training: Durations
    sweep: Durations


@dataclass(frozen=True)
class Happened:
    """A fault that a run has met.

    Attributes:
        phase: In which it was.
        name: Of the fault.
        status: Exit status afterwards, None for damage to files.
        detail: Where exactly, for people.
    """

    phase: str
    name: str
    status: int | None
    detail: str


def make_reference(setting: Setting, folder: Path, num_processes: int) -> Reference:
    """Trains and sweeps once without faults.

    Raises:
        InputError: If that fails.
    """
    durations = []
    for sweeps in (False, True):
        log = folder.with_name(f"{folder.name}_{'sweep' if sweeps else 'training'}.log")
        run = Run(setting.command(folder, num_processes, sweeps), log)
        try:
            durations.append(Durations.watch(Observer(run, folder, sweeps)))
            if run.status:
                raise InputError(
                    f"the {'sweep' if sweeps else 'training'} ends with status {run.status} even "
                    f"without faults; its output is in {log}"
                )
            if left := run.wait_until_gone():
                raise InputError(f"processes are left without any fault: {left}")
        finally:
            run.end()
    return Reference(folder, *durations)


@dataclass
class Round:
    """One of many.

    Attributes:
        setting: What is run.
        reference: Of the same number of processes.
        folder: Where; its parent holds the output of the runs, too.
        plan: What is to happen.
        rng: Draws the moments.
        report: Is told of each fault as it happens.
        time_is_up: Asked before each fault; once it says so there are no more.
        happened: The faults so far.
        losses: What was lost, a sentence each.
    """

    setting: Setting
    reference: Reference
    folder: Path
    plan: Plan
    rng: Random
    report: Callable[[Happened], None]
    time_is_up: Callable[[], bool] = lambda: False
    happened: list[Happened] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    _lost_lines: set[int] = field(default_factory=set)
    _num_runs: int = 0

    def play(self) -> None:
        """Trains and sweeps under the faults of the plan, then compares with the reference."""
        self._until_finished(self.plan.training, sweeps=False)
        if not self.losses:
            self._until_finished(self.plan.sweep, sweeps=True)
        if not self.losses:
            self.losses += differences(self.folder, self.reference.folder, self._lost_lines)

    @property
    def repeated(self) -> int:
        """Iterations that were done again."""
        return repeated_iterations(self.folder)

    def _until_finished(self, blows: Sequence[Blow], sweeps: bool) -> None:
        for blow in blows:
            # Drawn whether or not there is time for it, so that what comes is the same.
            draws = Random(self.rng.random())
            if self.losses or self.time_is_up():
                continue
            if self._strike(blow, draws, sweeps):
                return
        if not self.losses:
            self._run(None, self.rng, sweeps)

    def _strike(self, blow: Blow, rng: Random, sweeps: bool) -> bool:
        """One fault; returns whether the run was finished all the same."""
        if isinstance(blow.fault, Damage):
            # Files are damaged when something has just been killed.
            phase = SWEEP_SCORES if sweeps else TRAINING
            finished = self._run(Blow(phase, Strike(SIGKILL, "all")), rng, sweeps)
            # The results of a finished sweep can be damaged, too; a finished training is over.
            if not self.losses and (sweeps or not finished):
                self._damage(blow.fault, rng, sweeps)
                return False
            return finished
        return self._run(blow, rng, sweeps)

    def _damage(self, damage: Damage, rng: Random, sweeps: bool) -> None:
        hurt = damage.apply(self.folder, rng)
        if hurt is None:
            return
        self._lost_lines |= hurt.lost
        self._note(BETWEEN_SWEEPS if sweeps else BETWEEN, damage.name, None, hurt.what)
        if hurt.refusal:
            self._expect_refusal(hurt, sweeps)

    def _expect_refusal(self, hurt: Hurt, sweeps: bool) -> None:
        run = self._start(sweeps)
        try:
            status = run.wait(_PATIENCE)
        finally:
            run.end()
        last = run.output().rstrip().rpartition("\n")[2]
        if status != 2 or hurt.refusal not in last:
            self._lose(f"{hurt.what} is damaged, but the next run ends with {status}", run)
            return
        hurt.remedy()

    def _run(self, blow: Blow | None, rng: Random, sweeps: bool) -> bool:
        """Starts what is to be resumed, strikes it, and looks at its end; whether it finished."""
        limit = None
        if blow is not None and isinstance(blow.fault, FullDisk):
            limit = self._limit(blow.fault, sweeps)
        run = self._start(sweeps, limit)
        observer = Observer(run, self.folder, sweeps)
        try:
            if blow is None or limit is not None:
                struck = None
            else:
                struck = self._hit(run, observer, blow, rng, sweeps)
            status = run.wait(_PATIENCE)
            if status is None:
                self._lose(f"it hangs after {struck or 'its start'}", run)
                return False
            if left := run.wait_until_gone():
                self._lose(f"processes are left over: {left}", run)
        finally:
            run.end()
        if struck is not None:
            self._judge(run, observer, blow.fault, struck, status)
        elif limit is not None and status == 2 and "error: cannot write " in run.output():
            # Whatever came first of what is too large.
            refused = _last_line(run)
            if sweeps:
                phase = SWEEP_IMAGES if "detections" in refused else SWEEP_FILES
            else:
                phase = INITIALISATION if "model_init" in refused else CHECKPOINT
            self._note(phase, blow.fault.name, status, refused)
        elif status != 0:
            self._lose(f"it does not go on: exit status {status}", run)
        return status == 0

    def _hit(
        self, run: Run, observer: Observer, blow: Blow, rng: Random, sweeps: bool
    ) -> str | None:
        """Waits for a random moment and strikes; the phase that the run was in, None if too late.

        What writes the files stands still for a look, so that what is seen is what is struck.
        """
        durations = self.reference.sweep if sweeps else self.reference.training
        progress, moment = rng.random(), rng.random()
        aim = Aim(blow.phase, progress, moment if blow.moment is None else blow.moment)
        if not aim.wait(observer, durations, self.setting.max_iter):
            return None
        trainers = run.trainers()
        if not trainers or not run.send(SIGSTOP, trainers[0].pid):
            return None
        try:
            phase = observer.phase()
            victim = blow.fault.find(run, rng)
            sent = victim is not None and run.send(blow.fault.signum, victim or None)
        finally:
            run.send(SIGCONT, trainers[0].pid)
        return phase if sent else None

    def _judge(self, run: Run, observer: Observer, strike: Strike, phase: str, status: int) -> None:
        self._note(phase, strike.name, status, self._where(observer))
        allowed = strike.allowed(phase, self.plan.num_processes)
        if status not in allowed:
            self._lose(
                f"{strike.name} in {phase}: exit status {status} instead of {sorted(allowed)}", run
            )
        if status in STOPPED and phase in (TRAINING, CHECKPOINT):
            saved = self.folder / f"model_{observer.last_iteration():07d}.pth"
            if not saved.is_file():
                self._lose(f"{strike.name}: {saved.name} was not saved", run)

    def _where(self, observer: Observer) -> str:
        if (iteration := observer.last_iteration()) >= 0:
            return f"after iteration {iteration}"
        count, total = observer.scored()
        return f"after stitch {count} of {total}" if total else ""

    def _limit(self, fault: FullDisk, sweeps: bool) -> int:
        reference = self.reference.folder
        path = reference / ("sweep/pareto.png" if sweeps else "model_init.pth")
        return int(path.stat().st_size * fault.share)

    def _start(self, sweeps: bool, limit: int | None = None) -> Run:
        self._num_runs += 1
        what = "sweep" if sweeps else "training"
        log = self.folder.with_name(f"{self.folder.name}_{self._num_runs:02d}_{what}.log")
        return Run(self.setting.command(self.folder, self.plan.num_processes, sweeps), log, limit)

    def _note(self, phase: str, name: str, status: int | None, detail: str) -> None:
        self.happened.append(Happened(phase, name, status, detail))
        self.report(self.happened[-1])

    def _lose(self, sentence: str, run: Run) -> None:
        self.losses.append(f"{sentence} ({os.path.basename(run.log)}: {_last_line(run)})")


def _last_line(run: Run) -> str:
    return run.output().rstrip().rpartition("\n")[2]

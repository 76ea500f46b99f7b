"""A run of train_net.py, observed from outside: its processes, output and files."""

import json
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from snnet_vitdet.errors import InputError

INITIALISATION = "initialisation"
TRAINING = "training"
CHECKPOINT = "writing a checkpoint"
FINAL = "writing the final file"
EVALUATION = "evaluation at the end"
TRAINING_PHASES = (INITIALISATION, TRAINING, CHECKPOINT, FINAL, EVALUATION)

SWEEP_START = "start of a sweep"
SWEEP_IMAGES = "sweep, images"
SWEEP_SCORES = "sweep, scores"
SWEEP_FILES = "sweep, picture and page"
SWEEP_PHASES = (SWEEP_START, SWEEP_IMAGES, SWEEP_SCORES, SWEEP_FILES)

# A worker of a data loader needs 5 s to notice that its parent is gone.
_GONE_SECONDS = 30
# A file is written within milliseconds; other phases are longer, and looking takes processor time.
_LOOK_SECONDS = {CHECKPOINT: 0.001, FINAL: 0.001}
_USUAL_LOOK_SECONDS = 0.03
# In the command line of a process that multiprocessing has started, not forked.
_SPAWNED = "spawn_main"
_STITCH = re.compile(r"stitch (\d+) of (\d+): ")
_START = re.compile(r"Starting training from iteration (\d+)")
_WRITTEN = re.compile(r"\.tmp\.model_(\d+|final)\.pth")


class Member(NamedTuple):
    """A living process of a run."""

    pid: int
    parent: int
    command: str


class Run:
    """A program in a session of its own, with its output in a file.

    Attributes:
        started: Time of the start in seconds since the epoch.
        log: The file of its output.
    """

    def __init__(self, command: Sequence[str], log: Path, largest_file: int | None = None) -> None:
        """
        Args:
            command: The program and its arguments.
            log: The file to write its output to.
            largest_file: The largest file in bytes that its processes may write, to stand for a
                full disk.

        Raises:
            InputError: If the system does not show processes as files.
        """
        if not os.path.isdir("/proc/self"):
            raise InputError("the processes of a training are read from /proc: soak on Linux")

        def prepare() -> None:
            # A program in the background ignores Ctrl-C, and so would its children.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        self.log = log
        self.started = time.time()
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": ""},
                start_new_session=True,
                preexec_fn=prepare,
            )
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for the signal that ended it; None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """Its output so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_line(self) -> str:
        """The last line of its output."""
        return self.output().rstrip().rpartition("\n")[2]

    def members(self) -> list[Member]:
        """Its living processes, including the first one, in the order of their ids."""
        members = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                stat = Path("/proc", entry, "stat").read_text()
                command = Path("/proc", entry, "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # After the name, which may contain any character: state, parent, group, session.
            state, parent, _, session = stat.rpartition(")")[2].split()[:4]
            if int(session) == self.pid and state not in "ZX":
                text = command.replace(b"\0", b" ").decode(errors="replace")
                members.append(Member(int(entry), int(parent), text))
        return sorted(members)

    def trainers(self, members: Sequence[Member] | None = None) -> list[Member]:
        """The processes that train: those that a launcher has started, or the first one."""
        members = self.members() if members is None else members
        started = [m for m in members if m.parent == self.pid and _SPAWNED in m.command]
        return started or [m for m in members if m.pid == self.pid]

    def workers(self) -> list[Member]:
        """The workers of data loaders: forked or started by a process that trains."""
        members = self.members()
        commands = {trainer.pid: trainer.command for trainer in self.trainers(members)}
        return [
            m
            for m in members
            if m.parent in commands and (m.command == commands[m.parent] or _SPAWNED in m.command)
        ]

    def send(self, signum: int, pid: int | None = None) -> bool:
        """Sends a signal to one of its processes or to all; returns whether there was any."""
        try:
            if pid is None:
                os.killpg(self.pid, signum)
            else:
                os.kill(pid, signum)
        except ProcessLookupError:
            return False
        return True

    def wait(self, seconds: float) -> int | None:
        """Waits for its end; returns the exit status, None if it has not ended."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def wait_until_gone(self, seconds: float = _GONE_SECONDS) -> list[Member]:
        """Waits until none of its processes is left; returns those that are left."""
        deadline = time.monotonic() + seconds
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def end(self) -> None:
        """Kills what is left of it."""
        self.send(signal.SIGKILL)
        self._process.wait()
        self.wait_until_gone()


def iterations_of(folder: Path) -> list[dict]:
    """The lines of iterations in a training's ``metrics.json``; broken lines are left out."""
    path = folder / "metrics.json"
    iterations = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if "total_loss" in values:
            iterations.append(values)
    return iterations


class Observer:
    """Tells the phase of a run."""

    def __init__(self, run: Run, folder: Path, sweeps: bool) -> None:
        """
        Args:
            run: A run of train_net.py.
            folder: Its output folder.
            sweeps: Whether it sweeps.
        """
        self.run = run
        self.folder = folder
        self.phases = SWEEP_PHASES if sweeps else TRAINING_PHASES
        # Lines of earlier runs.
        self._num_before = len(iterations_of(folder))

    def phase(self) -> str:
        """The phase right now."""
        if self.phases is SWEEP_PHASES:
            count, total = self.scored()
            if total:
                return SWEEP_FILES if count == total else SWEEP_SCORES
            return SWEEP_IMAGES if self.run.workers() else SWEEP_START
        if self.last_iteration() < 0:
            return INITIALISATION
        if written := self.written():
            return FINAL if written == "final" else CHECKPOINT
        if "model_final.pth" in self.run.output():
            return EVALUATION if (self.folder / "model_final.pth").is_file() else FINAL
        return TRAINING

    def last_iteration(self) -> int:
        """The last iteration of this run whose losses are written, -1 before the first."""
        done = iterations_of(self.folder)[self._num_before :]
        return done[-1]["iteration"] if done else -1

    def written(self) -> str:
        """The checkpoint that is being written, e.g. ``0000004`` or ``final``; empty for none."""
        for path in self.folder.glob(".tmp.model_*.pth"):
            try:
                new = path.stat().st_mtime >= self.run.started  # an earlier run may have left one
            except FileNotFoundError:
                continue
            if new and (match := _WRITTEN.fullmatch(path.name)):
                return match[1]
        return ""

    def scored(self) -> tuple[int, int]:
        """Number of stitches that are scored, and of all; zeros before the first."""
        found = _STITCH.findall(self.run.output())
        return (int(found[-1][0]), int(found[-1][1])) if found else (0, 0)

    def durations(self) -> dict[str, float]:
        """Watches an undisturbed run to its end.

        Returns:
            Seconds of each phase; of one iteration for ``TRAINING`` and one stitch for
            ``SWEEP_SCORES``.
        """
        seconds = dict.fromkeys(self.phases, 0.0)
        before = time.monotonic()
        while self.run.status is None:
            phase = self.phase()
            time.sleep(_USUAL_LOOK_SECONDS)
            now = time.monotonic()
            seconds[phase] += now - before
            before = now
        if self.phases is SWEEP_PHASES:
            seconds[SWEEP_SCORES] /= max(1, self.scored()[1])
        else:
            seconds[TRAINING] /= max(1, self.last_iteration() + 1)
            # Shorter than the time between two looks.
            seconds[CHECKPOINT] = seconds[FINAL] = 0.02
        return seconds

    def wait_for(self, phase: str, progress: float, seconds: float, max_iter: int) -> bool:
        """Waits for a moment of a phase; returns False if the run ends before it.

        Args:
            phase: The phase.
            progress: From 0 to 1: the part of the iterations or stitches that comes before.
            seconds: Time to wait after that.
            max_iter: Iterations of the training.
        """
        look = _LOOK_SECONDS.get(phase, _USUAL_LOOK_SECONDS)
        while not self._reached(phase, progress, max_iter):
            if self.run.status is not None:
                return False
            time.sleep(look)
        time.sleep(seconds)
        # A checkpoint that is written between two iterations is a phase of its own.
        while phase == TRAINING and self.written() and self.run.status is None:
            time.sleep(look)
        return self.run.status is None

    def _reached(self, phase: str, progress: float, max_iter: int) -> bool:
        if phase == FINAL:
            return self.written() == "final"
        if phase == SWEEP_SCORES:
            count, total = self.scored()
            return total > 0 and count >= 1 + progress * (total - 2)
        if phase in (TRAINING, CHECKPOINT):
            match = _START.search(self.run.output())
            if match is None:
                return False
            wanted = int(match[1]) + progress * (max_iter - 1 - int(match[1]))
            if phase == TRAINING:
                return self.last_iteration() + 1 >= wanted
            written = self.written()
            return written.isdigit() and int(written) >= wanted - 1
        return self.phases.index(self.phase()) >= self.phases.index(phase)

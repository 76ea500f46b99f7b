"""What a training or a sweep is doing, seen from outside: by its output, files and processes."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .processes import Run

__all__ = [
    "CHECKPOINT",
    "EVALUATION",
    "FINAL",
    "INITIALISATION",
    "SWEEP_FILES",
    "SWEEP_IMAGES",
    "SWEEP_PHASES",
    "SWEEP_SCORES",
    "SWEEP_START",
    "TRAINING",
    "TRAINING_PHASES",
    "Aim",
    "Durations",
    "Observer",
    "iterations_of",
]

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

# A look takes time of the processor; what takes milliseconds needs a close one.
_LOOK_SECONDS = {CHECKPOINT: 0.001, FINAL: 0.001}
_USUAL_LOOK_SECONDS = 0.03
_STITCH = re.compile(r"stitch (\d+) of (\d+): ")
_START = re.compile(r"Starting training from iteration (\d+)")
_WRITTEN = re.compile(r"\.tmp\.model_(\d+|final)\.pth")


def iterations_of(folder: Path) -> list[dict]:
    """The lines of a training's iterations in its ``metrics.json``; what is no JSON is left out."""
    path = folder / "metrics.json"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    iterations = []
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if "total_loss" in values:
            iterations.append(values)
    return iterations


class Observer:
    """Looks at a run."""

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
        # What earlier runs have written.
        self._num_before = len(iterations_of(folder))

    def phase(self) -> str:
        """What it is doing right now."""
        return self._of_sweep() if self.phases is SWEEP_PHASES else self._of_training()

    def first_iteration(self) -> int | None:
        """Where it has started to train; None before that."""
        match = _START.search(self.run.output())
        return int(match[1]) if match else None

    def last_iteration(self) -> int:
        """The last iteration it has written the losses of itself, -1 before the first."""
        done = iterations_of(self.folder)[self._num_before :]
        return done[-1]["iteration"] if done else -1

    def written(self) -> str:
        """Which checkpoint is being written, such as ``0000004`` or ``final``; empty for none."""
        for path in self.folder.glob(".tmp.model_*.pth"):
            try:
                # An earlier run may have left one.
                new = path.stat().st_mtime >= self.run.started
            except FileNotFoundError:
                continue
            if new and (match := _WRITTEN.fullmatch(path.name)):
                return match[1]
        return ""

    def scored(self) -> tuple[int, int]:
        """How many stitches it has scored, and of how many; of 0 where it does not say so yet."""
        found = _STITCH.findall(self.run.output())
        return (int(found[-1][0]), int(found[-1][1])) if found else (0, 0)

    def _of_training(self) -> str:
        if self.last_iteration() < 0:
            return INITIALISATION
        if written := self.written():
            return FINAL if written == "final" else CHECKPOINT
        if "model_final.pth" in self.run.output():
            saved = (self.folder / "model_final.pth").is_file()
            return EVALUATION if saved else FINAL
        return TRAINING

    def _of_sweep(self) -> str:
        count, total = self.scored()
        if total:
            return SWEEP_FILES if count == total else SWEEP_SCORES
        if self.run.workers():
            return SWEEP_IMAGES
        return SWEEP_START


@dataclass(frozen=True)
class Durations:
    """What an uninterrupted run took, in seconds, to draw moments from.

    Attributes:
        phases: Of each phase as a whole.
        units: Of an iteration in ``TRAINING``, of a stitch in ``SWEEP_SCORES``.
    """

    phases: dict[str, float]
    units: dict[str, float]

    @classmethod
    def watch(cls, observer: Observer) -> "Durations":
        """Watches a run to its end."""
        phases = dict.fromkeys(observer.phases, 0.0)
        before = time.monotonic()
        while observer.run.status is None:
            phase = observer.phase()
            time.sleep(_USUAL_LOOK_SECONDS)
            now = time.monotonic()
            phases[phase] += now - before
            before = now
        units = {
            TRAINING: phases.get(TRAINING, 0.0) / max(1, observer.last_iteration() + 1),
            SWEEP_SCORES: phases.get(SWEEP_SCORES, 0.0) / max(1, observer.scored()[1]),
            # Shorter than the time between two looks; a moment after them is as good.
            CHECKPOINT: 0.02,
            FINAL: 0.02,
        }
        return cls(phases, units)


@dataclass(frozen=True)
class Aim:
    """A random moment of a phase.

    Attributes:
        phase: The phase.
        progress: From 0 to 1, after which part of the iterations or stitches.
        moment: From 0 to 1, where in the phase, or in an iteration or stitch of it.
    """

    phase: str
    progress: float
    moment: float

    def wait(self, observer: Observer, durations: Durations, max_iter: int) -> bool:
        """Waits for the moment; False if the run ends before it."""
        look = _LOOK_SECONDS.get(self.phase, _USUAL_LOOK_SECONDS)
        reached = self._condition(observer, max_iter)
        while not reached():
            if observer.run.status is not None:
                return False
            time.sleep(look)
        seconds = durations.phases | durations.units
        time.sleep(self.moment * seconds[self.phase])
        # A checkpoint that is written between two iterations is a phase of its own.
        while self.phase == TRAINING and observer.written() and observer.run.status is None:
            time.sleep(look)
        return observer.run.status is None

    def _condition(self, observer: Observer, max_iter: int) -> Callable[[], bool]:
        """Whether the part of the phase has been reached that the moment is drawn from."""
        start = observer.phases.index(self.phase)

        def begun() -> bool:
            if self.phase in (CHECKPOINT, FINAL):
                return False
            return observer.phases.index(observer.phase()) >= start

        def iteration() -> float:
            first = observer.first_iteration()
            return max_iter if first is None else first + self.progress * (max_iter - 1 - first)

        def writes_checkpoint() -> bool:
            name = observer.written()
            return name.isdigit() and int(name) >= iteration() - 1

        def scores() -> bool:
            count, total = observer.scored()
            return total > 0 and count >= 1 + self.progress * (total - 2)

        return {
            TRAINING: lambda: observer.last_iteration() + 1 >= iteration(),
            CHECKPOINT: writes_checkpoint,
            FINAL: lambda: observer.written() == "final",
            SWEEP_SCORES: scores,
        }.get(self.phase, begun)

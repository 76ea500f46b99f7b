"""What is done to a training or a sweep, and what it must end with."""

import signal
from dataclasses import dataclass
from random import Random

from .damages import DAMAGES, SWEEP_DAMAGES, Damage
from .phases import (
    CHECKPOINT,
    FINAL,
    INITIALISATION,
    SWEEP_FILES,
    SWEEP_IMAGES,
    SWEEP_PHASES,
    SWEEP_SCORES,
    SWEEP_START,
    TRAINING,
    TRAINING_PHASES,
)
from .processes import Run

__all__ = [
    "BETWEEN",
    "BETWEEN_SWEEPS",
    "Blow",
    "FullDisk",
    "Strike",
    "blows_of_sweep",
    "blows_of_training",
]

BETWEEN = "between two runs"
BETWEEN_SWEEPS = "between two sweeps"

# What is far from the end of a run.
_EARLY = (INITIALISATION, TRAINING, CHECKPOINT, SWEEP_START, SWEEP_IMAGES)

STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit statuses of a training that was asked to stop and has saved."""


@dataclass(frozen=True)
class Strike:
    """A signal to some of the processes of a run.

    Attributes:
        signum: The signal.
        target: ``main`` (the process that was started), ``all``, ``worker`` (one of a data loader)
            or ``one`` (one of several that train).
    """

    signum: signal.Signals
    target: str

    @property
    def name(self) -> str:
        """For people."""
        whom = {
            "main": "the main process",
            "all": "all processes",
            "worker": "a data worker",
            "one": "one of two processes",
        }
        return f"{self.signum.name} to {whom[self.target]}"

    def find(self, run: Run, rng: Random) -> int | None:
        """The process to strike, None if there is none such; 0 for all."""
        if self.target == "all":
            return 0
        if self.target == "main":
            return run.pid
        members = run.workers() if self.target == "worker" else run.trainers()
        return rng.choice(members).pid if members else None

    def allowed(self, phase: str, num_processes: int) -> set[int]:
        """The exit statuses that are promised for it; 0 where the run may have been too far.

        Args:
            phase: What the run was doing when it was struck.
            num_processes: How many train.
        """
        shell, own = 128 + self.signum, -self.signum
        # It may have ended by itself in the same moment.
        late = set() if phase in _EARLY else {0}
        if self.signum == signal.SIGKILL:
            if self.target in ("main", "all"):
                return {own}
            # The others fail, too, for having lost one; who is first is what the launcher tells.
            return {1} | late if self.target == "worker" else {1, shell} | late
        if phase in (TRAINING, CHECKPOINT):
            # A launcher hands SIGTERM on to the others, whichever of the two it got.
            return {shell} if num_processes == 1 else {shell, 128 + signal.SIGTERM}
        # Outside of the iterations it ends at once, of its own or by the launcher.
        return {shell, own} | late | ({1, 128 + signal.SIGTERM} if num_processes > 1 else set())


@dataclass(frozen=True)
class FullDisk:
    """Files of a run may not become as large as one that it has to write.

    Attributes:
        share: Of the size of a training's ``model_init.pth``, or of a sweep's ``pareto.png``.
    """

    share: float = 0.5
    name: str = "full disk"


@dataclass(frozen=True)
class Blow:
    """One fault at one moment.

    Attributes:
        phase: When it is meant to happen.
        fault: What.
        moment: From 0 to 1, when in the phase, or in an iteration or stitch of it, by what an
            undisturbed run took; drawn if None. A late one may miss its phase in a faster run.
    """

    phase: str
    fault: Strike | Damage | FullDisk
    moment: float | None = None


def _strikes(num_processes: int) -> list[Strike]:
    strikes = [
        Strike(signum, target)
        for signum in (signal.SIGKILL, signal.SIGTERM)
        for target in ("main", "all", "one")
        if target != "one" or num_processes > 1
    ]
    return [*strikes, Strike(signal.SIGINT, "all")]


def blows_of_training(num_processes: int) -> list[Blow]:
    """All that may happen to a training, in the order of its phases.

    Args:
        num_processes: How many train.
    """
    blows = []
    for phase in TRAINING_PHASES:
        blows += [Blow(phase, strike) for strike in _strikes(num_processes)]
        if phase not in (INITIALISATION, FINAL):
            blows.append(Blow(phase, Strike(signal.SIGKILL, "worker")))
        if phase == CHECKPOINT:
            blows.append(Blow(phase, FullDisk()))
            blows += [Blow(BETWEEN, damage) for damage in DAMAGES]
    return blows


def blows_of_sweep(num_processes: int) -> list[Blow]:
    """All that may happen to a sweep, in the order of its phases.

    Args:
        num_processes: How many sweep.
    """
    blows = []
    for phase in SWEEP_PHASES:
        blows += [Blow(phase, strike) for strike in _strikes(num_processes)]
        if phase not in (SWEEP_START, SWEEP_SCORES, SWEEP_FILES):
            blows.append(Blow(phase, Strike(signal.SIGKILL, "worker")))
        if phase == SWEEP_SCORES:
            blows.append(Blow(SWEEP_FILES, FullDisk()))
            blows += [Blow(BETWEEN_SWEEPS, damage) for damage in SWEEP_DAMAGES]
    return blows

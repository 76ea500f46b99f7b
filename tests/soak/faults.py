"""What happens to a training or a sweep, and what it must end with."""

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from observed_run import (
    CHECKPOINT,
    FINAL,
    INITIALISATION,
    SWEEP_FILES,
    SWEEP_IMAGES,
    SWEEP_PHASES,
    SWEEP_START,
    TRAINING,
    TRAINING_PHASES,
    Run,
)

BETWEEN = "between two runs"
BETWEEN_SWEEPS = "between two sweeps"
PHASES = [*TRAINING_PHASES, BETWEEN, *SWEEP_PHASES, BETWEEN_SWEEPS]
"""All phases in the order of the table."""

STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit statuses of a training that was asked to stop and has saved."""

SWEEP_RESULTS = ("stitches.json", "stitches.csv", "score_curves.json", "sweep.json")
"""The files to remove so that a sweep starts anew."""

# Far from the end of a run.
_EARLY = (INITIALISATION, TRAINING, CHECKPOINT, SWEEP_START, SWEEP_IMAGES)
_TARGETS = {
    "main": "the main process",
    "all": "all processes",
    "worker": "a data worker",
    "one": "one of two processes",
}


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
        """The name in the table."""
        return f"{self.signum.name} to {_TARGETS[self.target]}"

    def send(self, run: Run, rng: Random) -> bool:
        """Sends the signal; returns whether there was a process to send it to."""
        if self.target in ("all", "main"):
            return run.send(self.signum, run.pid if self.target == "main" else None)
        members = run.workers() if self.target == "worker" else run.trainers()
        return bool(members) and run.send(self.signum, rng.choice(members).pid)

    def allowed(self, phase: str, num_processes: int) -> set[int]:
        """The exit statuses that are promised; 0 where the run may have been past it.

        Args:
            phase: The phase that the run was in.
            num_processes: Number of processes that train.
        """
        shell, own = 128 + self.signum, -self.signum
        # It may have ended by itself in the same moment.
        late = set() if phase in _EARLY else {0}
        if self.signum == signal.SIGKILL:
            if self.target in ("main", "all"):
                return {own}
            # The others fail, too, after losing one. The launcher reports the one that came first.
            return {1} | late if self.target == "worker" else {1, shell} | late
        if phase in (TRAINING, CHECKPOINT):
            # A launcher passes SIGTERM on to the others, whichever of the two signals it got.
            return {shell} if num_processes == 1 else {shell, 128 + signal.SIGTERM}
        # Outside of the iterations it ends at once, by itself or by the launcher.
        return {shell, own} | late | ({1, 128 + signal.SIGTERM} if num_processes > 1 else set())


@dataclass(frozen=True)
class FullDisk:
    """The files of a run are limited to a share of one that it has to write.

    Attributes:
        share: Share of the size of a training's ``model_init.pth`` or a sweep's ``pareto.png``.
    """

    share: float = 0.5
    name: str = "full disk"


@dataclass(frozen=True)
class Damage:
    """What happens to a file while nothing runs.

    Attributes:
        name: The name in the table.
        find: The file in an output folder; None if there is nothing to damage yet.
        harm: Damages it; returns the iteration whose line in metrics.json is lost, if any.
        refused: Whether the next run must name the file and end with status 2.
    """

    name: str
    find: Callable[[Path], Path | None]
    harm: Callable[[Path, Random], int | None]
    refused: bool = False


@dataclass(frozen=True)
class Attack:
    """A fault at a moment.

    Attributes:
        phase: The phase it is meant for.
        fault: The fault.
        moment: From 0 to 1: when in the phase, or in an iteration or stitch of it, according to the
            undisturbed run; drawn if None. A late one may miss its phase in a faster run.
    """

    phase: str
    fault: Strike | Damage | FullDisk
    moment: float | None = None


# ----------------------------------------------------------------------------------------- damages


def _file(name: str) -> Callable[[Path], Path | None]:
    def find(folder: Path) -> Path | None:
        path = folder / name
        return path if path.is_file() and path.stat().st_size else None

    return find


def _with_results(name: str) -> Callable[[Path], Path | None]:
    """A file of a sweep that has scored a stitch; without one, nothing is lost."""

    def find(folder: Path) -> Path | None:
        results, path = folder / "sweep/stitches.json", folder / "sweep" / name
        has_rows = results.is_file() and "stitch_id" in results.read_text()
        return path if has_rows and path.is_file() else None

    return find


def _last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint, if there is another one before it."""
    tag = folder / "last_checkpoint"
    name = tag.read_text().strip() if tag.is_file() else ""
    path = folder / name
    return path if name not in ("", "model_init.pth") and path.is_file() else None


def _metrics(folder: Path) -> Path | None:
    """``metrics.json``, if its last line is that of an iteration and whole."""
    path = folder / "metrics.json"
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return path if lines and lines[-1].endswith(b"\n") and b"iteration" in lines[-1] else None


def _cut(path: Path, rng: Random) -> None:
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(rng.randrange(1, size))


def _empty(path: Path, _rng: Random) -> None:
    path.write_bytes(b"")


def _remove(path: Path, _rng: Random) -> None:
    path.unlink()


def _cut_last_line(path: Path, rng: Random) -> int:
    data = path.read_bytes()
    last = data.splitlines(keepends=True)[-1]
    path.write_bytes(data[: len(data) - rng.randrange(2, len(last))])
    return json.loads(last)["iteration"]


def _leave_half(path: Path, _rng: Random) -> None:
    path.write_bytes(b"half a checkpoint")


DAMAGES = (
    Damage("last checkpoint truncated", _last_checkpoint, _cut),
    Damage("last checkpoint emptied", _last_checkpoint, _empty),
    Damage("last checkpoint removed", _last_checkpoint, _remove),
    Damage("file last_checkpoint emptied", _file("last_checkpoint"), _empty),
    Damage("file last_checkpoint removed", _file("last_checkpoint"), _remove),
    Damage("config.yaml truncated", _file("config.yaml"), _cut),
    Damage("metrics.json cut in its last line", _metrics, _cut_last_line),
    # As of a checkpoint at SIGTERM, whose name is not used again.
    Damage("half a checkpoint left behind", lambda f: f / ".tmp.model_0000999.pth", _leave_half),
)
"""Damages in the folder of a training."""

SWEEP_DAMAGES = (
    Damage("stitches.json removed", _file("sweep/stitches.json"), _remove),
    Damage("stitches.json truncated", _with_results("stitches.json"), _cut, refused=True),
    Damage("stitches.csv removed", _file("sweep/stitches.csv"), _remove),
    Damage("stitches.csv truncated", _file("sweep/stitches.csv"), _cut),
    Damage("score_curves.json truncated", _with_results("score_curves.json"), _cut, refused=True),
    Damage("sweep.json removed", _with_results("sweep.json"), _remove, refused=True),
)
"""Damages to the results of a sweep."""


# ----------------------------------------------------------------------------------------- attacks


def attacks_on_training(num_processes: int) -> list[Attack]:
    """All attacks on a training of some processes, in the order of its phases."""
    attacks = []
    for phase in TRAINING_PHASES:
        attacks += [Attack(phase, strike) for strike in _strikes(num_processes)]
        if phase not in (INITIALISATION, FINAL):
            attacks.append(Attack(phase, Strike(signal.SIGKILL, "worker")))
        # Damage needs something to damage.
        if phase == TRAINING:
            attacks += [Attack(BETWEEN, damage) for damage in DAMAGES]
        if phase == CHECKPOINT:
            attacks.append(Attack(phase, FullDisk()))
    return attacks


def attacks_on_sweep(num_processes: int) -> list[Attack]:
    """All attacks on a sweep of some processes, in the order of its phases."""
    attacks = []
    for phase in SWEEP_PHASES:
        attacks += [Attack(phase, strike) for strike in _strikes(num_processes)]
        if phase == SWEEP_IMAGES:
            attacks.append(Attack(phase, Strike(signal.SIGKILL, "worker")))
    attacks.append(Attack(SWEEP_FILES, FullDisk()))
    return attacks + [Attack(BETWEEN_SWEEPS, damage) for damage in SWEEP_DAMAGES]


def _strikes(num_processes: int) -> list[Strike]:
    targets = ("main", "all", "one") if num_processes > 1 else ("main", "all")
    signals = (signal.SIGKILL, signal.SIGTERM)
    strikes = [Strike(signum, target) for signum in signals for target in targets]
    return [*strikes, Strike(signal.SIGINT, "all")]


def dealt(attacks: list[Attack], size: int, rng: Random) -> Iterator[list[Attack]]:
    """Deals hands of attacks, in the order of the phases: each once before any comes again."""
    stack: list[Attack] = []
    while True:
        while len(stack) < size:
            stack += rng.sample(attacks, len(attacks))
        yield sorted(stack[:size], key=attacks.index)
        stack = stack[size:]

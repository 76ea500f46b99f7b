"""What happens to files while nothing runs."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

__all__ = ["DAMAGES", "SWEEP_DAMAGES", "Damage", "Hurt"]


@dataclass(frozen=True)
class Hurt:
    """What a damage has done.

    Attributes:
        what: For people.
        lost: Iterations whose line in metrics.json it has destroyed.
        refusal: What the next run has to name, ending with status 2; empty if it has to go on.
        remedy: What the message asks for; called after the refusal.
    """

    what: str
    lost: frozenset[int] = frozenset()
    refusal: str = ""
    remedy: Callable[[], None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Damage:
    """Something that happens to files while nothing runs.

    Attributes:
        name: For people.
        apply: Does it to an output folder; None if there is nothing to damage yet.
    """

    name: str
    apply: Callable[[Path, Random], Hurt | None]


# ---------------------------------------------------------------------------------------- training


def _last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint, if there is another one before it."""
    tag = folder / "last_checkpoint"
    name = tag.read_text().strip() if tag.is_file() else ""
    path = folder / name
    return path if name not in ("", "model_init.pth") and path.is_file() else None


def _cut(path: Path, rng: Random) -> None:
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(rng.randrange(1, size))


def _empty(path: Path, _rng: Random) -> None:
    path.write_bytes(b"")


def _remove(path: Path, _rng: Random) -> None:
    path.unlink()


def _to_last_checkpoint(
    harm: Callable[[Path, Random], None],
) -> Callable[[Path, Random], Hurt | None]:
    def apply(folder: Path, rng: Random) -> Hurt | None:
        path = _last_checkpoint(folder)
        if path is None:
            return None
        harm(path, rng)
        return Hurt(path.name)

    return apply


def _to_file(
    name: str, harm: Callable[[Path, Random], None]
) -> Callable[[Path, Random], Hurt | None]:
    def apply(folder: Path, rng: Random) -> Hurt | None:
        path = folder / name
        if not path.is_file() or not path.stat().st_size:
            return None
        harm(path, rng)
        return Hurt(name)

    return apply


def _cut_last_line(folder: Path, rng: Random) -> Hurt | None:
    path = folder / "metrics.json"
    data = path.read_bytes() if path.is_file() else b""
    lines = data.splitlines(keepends=True)
    if not lines or not lines[-1].endswith(b"\n") or b"iteration" not in lines[-1]:
        return None
    iteration = json.loads(lines[-1])["iteration"]
    path.write_bytes(data[: len(data) - rng.randrange(2, len(lines[-1]))])
    return Hurt(f"line of iteration {iteration}", frozenset({iteration}))


def _leave_temporary_file(folder: Path, rng: Random) -> Hurt:
    # As of a checkpoint at SIGTERM, whose name does not come again.
    path = folder / f".tmp.model_{rng.randrange(900, 1000):07d}.pth"
    path.write_bytes(b"half a checkpoint")
    return Hurt(path.name)


DAMAGES = (
    Damage("last checkpoint truncated", _to_last_checkpoint(_cut)),
    Damage("last checkpoint emptied", _to_last_checkpoint(_empty)),
    Damage("last checkpoint removed", _to_last_checkpoint(_remove)),
    Damage("file last_checkpoint emptied", _to_file("last_checkpoint", _empty)),
    Damage("file last_checkpoint removed", _to_file("last_checkpoint", _remove)),
    Damage("config.yaml truncated", _to_file("config.yaml", _cut)),
    Damage("metrics.json cut in its last line", _cut_last_line),
    Damage("half a checkpoint left behind", _leave_temporary_file),
)
"""Of the folder of a training."""


# ------------------------------------------------------------------------------------------- sweep


def _refused(
    name: str, harm: Callable[[Path, Random], None]
) -> Callable[[Path, Random], Hurt | None]:
    """For what the results cannot be gone on from without: refused by name, then swept anew."""

    def apply(folder: Path, rng: Random) -> Hurt | None:
        sweep = folder / "sweep"
        # Of results without a row nothing is lost.
        if "stitch_id" not in _text(sweep / "stitches.json") or not (sweep / name).is_file():
            return None
        harm(sweep / name, rng)

        def remedy() -> None:
            for path in ("stitches.json", "stitches.csv", "score_curves.json", "sweep.json"):
                (sweep / path).unlink(missing_ok=True)

        return Hurt(name, refusal=name, remedy=remedy)

    return apply


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


SWEEP_DAMAGES = (
    Damage("stitches.json removed", _to_file("sweep/stitches.json", _remove)),
    Damage("stitches.json truncated", _refused("stitches.json", _cut)),
    Damage("stitches.csv removed", _to_file("sweep/stitches.csv", _remove)),
    Damage("stitches.csv truncated", _to_file("sweep/stitches.csv", _cut)),
    Damage("score_curves.json truncated", _refused("score_curves.json", _cut)),
    Damage("sweep.json removed", _refused("sweep.json", _remove)),
)
"""Of the results of a sweep."""

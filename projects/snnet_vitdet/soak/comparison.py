"""Whether what faults have left is what an uninterrupted training and sweep gave."""

import csv
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch

from snnet_vitdet.weight_files import read_weight_file

from .phases import iterations_of

__all__ = ["differences", "repeated_iterations"]

_FINAL = "model_final.pth"

_RESULTS = ("stitches.json", "stitches.csv", "score_curves.json")
_PAGES = ("pareto.png", "report.html")


def differences(folder: Path, reference: Path, lost: Collection[int] = ()) -> list[str]:
    """What is not as in the reference: weights, losses and results, or files that are left over.

    Args:
        folder: Output folder of a training and its sweep.
        reference: That of the same commands without faults.
        lost: Iterations whose lines in metrics.json somebody has destroyed.

    Returns:
        A sentence for each, empty if nothing was lost.
    """
    return [
        *_of_checkpoints(folder, reference),
        *_of_iterations(folder, reference, lost),
        *_of_results(folder / "sweep", reference / "sweep"),
        *_left_over(folder),
    ]


def repeated_iterations(folder: Path) -> int:
    """How many iterations of a training were done again after a fault."""
    numbers = [values["iteration"] for values in iterations_of(folder)]
    return len(numbers) - len(set(numbers))


def _of_checkpoints(folder: Path, reference: Path) -> Iterator[str]:
    path = folder / _FINAL
    if not path.is_file():
        yield f"{_FINAL} is missing"
        return
    own, other = (read_weight_file(each / _FINAL) for each in (folder, reference))
    for place in _unequal(own, other, ""):
        yield f"{_FINAL} differs in {place}"


def _unequal(own: object, other: object, place: str) -> Iterator[str]:
    """Where two nested containers differ, tensors to the bit; the first place of each branch."""
    if type(own) is not type(other):
        yield place
    elif isinstance(own, torch.Tensor):
        # Bytes: a NaN equals itself, and 0 is not -0.
        same = own.dtype == other.dtype and own.shape == other.shape
        if not same or own.numpy().tobytes() != other.numpy().tobytes():
            yield place
    elif isinstance(own, Mapping):
        if own.keys() != other.keys():
            keys = sorted(map(str, own.keys() ^ other.keys()))
            yield f"{place} (only one has {', '.join(keys[:5])})".strip()
            return
        for key in own:
            yield from _unequal(own[key], other[key], f"{place}.{key}" if place else str(key))
    elif isinstance(own, list | tuple):
        if len(own) != len(other):
            yield f"{place} (length)"
            return
        for index, pair in enumerate(zip(own, other, strict=True)):
            yield from _unequal(*pair, f"{place}.{index}")
    elif own != other:
        yield place


def _losses(values: Mapping[str, float]) -> dict[str, float]:
    """What of an iteration does not depend on the machine."""
    return {k: v for k, v in values.items() if "loss" in k or k.startswith("stitch_")}


def _of_iterations(folder: Path, reference: Path, lost: Collection[int]) -> Iterator[str]:
    expected = {values["iteration"]: _losses(values) for values in iterations_of(reference)}
    seen = set()
    for values in iterations_of(folder):
        iteration = values["iteration"]
        seen.add(iteration)
        if _losses(values) != expected.get(iteration):
            yield f"metrics.json has other losses or stitches of iteration {iteration}"
    if missing := sorted(expected.keys() - seen - set(lost)):
        yield f"metrics.json has no line of iteration {', '.join(map(str, missing))}"


def _of_results(sweep: Path, reference: Path) -> Iterator[str]:
    for name in _RESULTS:
        own, other = sweep / name, reference / name
        if not own.is_file():
            yield f"sweep/{name} is missing"
        elif own.read_bytes() != other.read_bytes():
            yield f"sweep/{name} differs in {_first_difference(own, other)}"
    for name in _PAGES:
        if not (sweep / name).is_file():
            yield f"sweep/{name} is missing"


def _first_difference(own: Path, other: Path) -> str:
    """The row and column."""
    try:
        first, second = (_rows(path) for path in (own, other))
    except ValueError as error:
        return f"that it cannot be read ({error})"
    if len(first) != len(second):
        return f"that it has {len(first)} rows instead of {len(second)}"
    for index, (row, expected) in enumerate(zip(first, second, strict=True)):
        for key in expected:
            if row.get(key) != expected[key]:
                return f"row {index}, {key}: {row.get(key)} instead of {expected[key]}"
    return "its text"


def _rows(path: Path) -> list[dict]:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _left_over(folder: Path) -> Iterator[str]:
    """Files under temporary names, and detections that were kept for a sweep that is finished."""
    for path in sorted(folder.rglob(".tmp.*")):
        yield f"{path.relative_to(folder)} is left over"
    if (folder / "sweep" / "detections").exists():
        yield "sweep/detections is left over"
    for pattern in ("partial", "outdated"):
        for path in sorted(folder.parent.glob(f"{folder.name}*.{pattern}-*")):
            yield f"{path.name} is left over"

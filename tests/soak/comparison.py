"""Compares what faults have left with what an undisturbed training and sweep gave."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from observed_run import iterations_of

from snnet_vitdet.weight_files import read_weight_file

_FINAL = "model_final.pth"
_RESULTS = ("stitches.json", "stitches.csv", "score_curves.json")
_PAGES = ("pareto.png", "report.html")


def differences(folder: Path, reference: Path, lost: Collection[int] = ()) -> Iterator[str]:
    """A sentence for each difference in weights, losses and results, and each file left over.

    Args:
        folder: Output folder of a training and its sweep.
        reference: Output folder of the same commands without faults.
        lost: Iterations whose lines in metrics.json were destroyed on purpose.
    """
    if (folder / _FINAL).is_file():
        own, other = (dict(_flat(read_weight_file(f / _FINAL))) for f in (folder, reference))
        for place in sorted(own.keys() | other.keys()):
            if own.get(place) != other.get(place):
                yield f"{_FINAL} differs in {place}"
    else:
        yield f"{_FINAL} is missing"
    yield from _of_iterations(folder, reference, lost)
    for name in _RESULTS:
        yield from _of_text(Path("sweep", name), folder, reference)
    for name in _PAGES:
        if not (folder / "sweep" / name).is_file():
            yield f"sweep/{name} is missing"
    left_over = [*folder.rglob(".tmp.*"), *folder.glob("sweep/detections")]
    for pattern in ("partial", "outdated"):
        left_over += folder.parent.glob(f"{folder.name}*.{pattern}-*")
    for path in sorted(left_over):
        yield f"{path.relative_to(folder.parent)} is left over"


def _flat(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested containers with their places; a tensor is its bytes.

    Compared as bytes, NaN equals itself, and 0 is not -0.
    """
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        if isinstance(value, torch.Tensor):
            value = (value.dtype, value.shape, value.numpy().tobytes())
        yield place, (type(value), value)
        return
    for key, inner in items:
        yield from _flat(inner, f"{place}.{key}" if place else str(key))


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


def _losses(values: Mapping[str, float]) -> str:
    """What does not depend on the machine; as text, in which NaN equals itself."""
    return json.dumps(
        {k: v for k, v in values.items() if "loss" in k or k.startswith("stitch_")}, sort_keys=True
    )


def _of_text(name: Path, folder: Path, reference: Path) -> Iterator[str]:
    if not (folder / name).is_file():
        yield f"{name} is missing"
        return
    own, other = ((f / name).read_text(errors="replace") for f in (folder, reference))
    if own != other:
        pairs = enumerate(zip(own, other, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(own), len(other)))
        texts = (text[max(0, place - 30) : place + 30] for text in (own, other))
        yield "{} differs: {!r} instead of {!r}".format(name, *texts)

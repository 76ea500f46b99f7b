"""What all image files of a data set are, looked at in several processes."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from snnet_vitdet.errors import InputError

from .image_files import REMEDIES, ImageFacts, ImageFault, inspect_image
from .summary import EXAMPLES, agree, some

__all__ = ["ImageSurvey", "inspect_images"]

_CHUNK = 16

_KINDS = {
    "missing": "are not there",
    "not opened": "cannot be opened",
    "empty": "are empty",
    "no image": "are of no format that is known",
    "damaged": "are damaged or truncated",
    "too large": "have more pixels than an image may have",
    "deep": "have grey values of more than 8 bits",
    "size": "are of another size than the annotations say",
    "turned": "are stored turned, and annotated as they are stored",
    "thin": "are so long and thin that no pixel is left once resized",
}

# What is handled, and worth knowing.
_NOTES = {
    "turned": (
        "are stored turned or mirrored by the EXIF data: the upright image is used, and its "
        "annotations have to be for that"
    ),
    "alpha": "have transparency, which is left out: what is transparent shows the colour below it",
    "large": (
        "have so many pixels that Pillow warns of them: each takes hundreds of MB while it is "
        "read, and long; smaller copies train the same"
    ),
    "frames": "have several frames or pages, of which the first is used",
}


def inspect_images(
    images: Sequence[tuple[str, tuple[int, int] | None]], *, decode: bool, workers: int
) -> Iterator[ImageFacts | ImageFault]:
    """What each of many image files is, in their order.

    Args:
        images: Paths, and the width and height of the upright image where it is known.
        decode: Whether to decode them as a whole.
        workers: Processes; 0 for this one alone.

    Raises:
        InputError: If a process ended without an answer.
    """
    paths, sizes = [path for path, _ in images], [size for _, size in images]
    decodes = [decode] * len(images)
    if workers < 1:
        yield from map(_inspect, paths, sizes, decodes)
        return
    try:
        with ProcessPoolExecutor(workers) as pool:
            yield from pool.map(_inspect, paths, sizes, decodes, chunksize=_CHUNK)
    except BrokenProcessPool as error:
        raise InputError(
            f"one of {workers} processes that read images was ended from outside, as systems do "
            "that are out of memory: give fewer --workers"
        ) from error


def _inspect(path: str, size: tuple[int, int] | None, decode: bool) -> ImageFacts | ImageFault:
    return inspect_image(path, size, decode=decode)


class ImageSurvey:
    """Counts what images are.

    Attributes:
        modes: How many images there are of each of Pillow's modes.
        sizes: Width and height in pixels of each image in order, upright.
        digests: Path by digest of the content, of images that have been decoded.
    """

    def __init__(self, max_aspect: float = math.inf) -> None:
        """
        Args:
            max_aspect: How many times as long as the other the longer side of an image may be.
        """
        self.modes: Counter[str] = Counter()
        self.sizes: list[tuple[int, int]] = []
        self.digests: dict[str, str] = {}
        self._max_aspect = max_aspect
        self._total = 0
        self._faults: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._examples: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, path: str, found: ImageFacts | ImageFault) -> None:
        """Counts an image."""
        self._total += 1
        if isinstance(found, ImageFacts) and self._is_thin(found):
            found = ImageFault("thin", path, f"it has {found.width} x {found.height} pixels")
        if isinstance(found, ImageFault):
            self._faults[found.kind] += 1
            self._add_example("fault", found.kind, f"{path}: {found.problem}")
            return
        self.modes[found.mode] += 1
        self.sizes.append((found.width, found.height))
        if found.digest:
            self.digests.setdefault(found.digest, path)
        facts = {
            "turned": found.turned,
            "alpha": found.has_alpha,
            "large": found.large,
            "frames": found.frames,
        }
        for kind, holds in facts.items():
            if holds:
                self._notes[kind] += 1
                self._add_example("note", kind, path)

    def _is_thin(self, facts: ImageFacts) -> bool:
        return max(facts.width, facts.height) >= self._max_aspect * min(facts.width, facts.height)

    def _add_example(self, what: str, kind: str, text: str) -> None:
        if len(self._examples[what, kind]) < EXAMPLES:
            self._examples[what, kind].append(text)

    def faults(self, source: str) -> Iterable[str]:
        """A sentence for each kind of fault.

        Args:
            source: The annotation file that names the images.
        """
        for kind, text in _KINDS.items():
            if count := self._faults[kind]:
                examples = some(self._examples["fault", kind], count, "; ")
                yield (
                    f"{count} of {self._total} images of {source} {agree(text, count)} "
                    f"({examples}): {REMEDIES[kind]}."
                )

    def notes(self, source: str) -> Iterable[str]:
        """A sentence for each kind of what is handled and worth knowing."""
        for kind, text in _NOTES.items():
            if count := self._notes[kind]:
                examples = some(self._examples["note", kind], count)
                said = agree(text, count)
                yield f"{count} of {self._total} images of {source} {said} ({examples})."

"""Operating points: a stitch at an image size, with a number of proposals."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from .space import Stitch

__all__ = ["OperatingPoint", "operating_points", "split_point_name"]

_NAME = re.compile(r"(?P<stitch>[^@]+)@(?P<size>\d{1,6})/(?P<count>\d{1,6})", re.ASCII)


@dataclass(frozen=True)
class OperatingPoint:
    """One detector of a family: a stitch, an image size, and a number of proposals.

    >>> from snnet_vitdet.stitching import StitchSpace
    >>> OperatingPoint(StitchSpace()["FS-3"], 640, 300).name
    'FS-3@640/300'

    Attributes:
        stitch: The walk through the two ViTs.
        image_size: Side in pixels of the square that images are resized and padded to.
        num_proposals: Largest number of the RPN's proposals that reach the box head.
        is_trained: Whether size and number are those that the stitch was trained with.
    """

    stitch: Stitch
    image_size: int
    num_proposals: int
    is_trained: bool = False

    @property
    def name(self) -> str:
        """Unique in a family: such as ``FS-3@640/300``, or the stitch's name alone as trained."""
        if self.is_trained:
            return self.stitch.name
        return f"{self.stitch.name}@{self.image_size}/{self.num_proposals}"


def operating_points(
    stitches: Iterable[Stitch],
    image_sizes: Sequence[int],
    proposals: Sequence[int],
    trained: Callable[[Stitch], tuple[int, int]],
) -> Iterator[OperatingPoint]:
    """Every stitch at every image size with every number of proposals.

    Args:
        stitches: The stitches.
        image_sizes: Image sizes; none stands for the training's own.
        proposals: Numbers of proposals; none stands for the training's own.
        trained: Returns image size and number of proposals that a stitch was trained with.

    Yields:
        The points, by stitch, then by size and number as given.
    """
    for stitch in stitches:
        own = trained(stitch)
        for size in image_sizes or own[:1]:
            for count in proposals or own[1:]:
                yield OperatingPoint(stitch, size, count, (size, count) == own)


def split_point_name(name: str) -> tuple[str, tuple[int, int] | None]:
    """The stitch in the name of an operating point, and image size and number of proposals.

    >>> split_point_name("FS-3@640/300"), split_point_name("FS-3")
    (('FS-3', (640, 300)), ('FS-3', None))

    Raises:
        ValueError: If the text has an ``@`` that no size and number follow.
    """
    if "@" not in name:
        return name, None
    if not (match := _NAME.fullmatch(name)):
        raise ValueError(f"{name!r} is no operating point: write it as FS-3@640/300")
    return match["stitch"], (int(match["size"]), int(match["count"]))

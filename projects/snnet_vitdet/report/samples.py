"""Sample detections as a page shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["SampleColumn", "SamplePicture", "SampleRow", "Samples"]


@dataclass(frozen=True)
class SampleColumn:
    """What the pictures of a column are of.

    Attributes:
        title: Such as the name of a stitch.
        caption: What there is to say of it.
        kind: Of the stitch; None for the annotations.
    """

    title: str
    caption: str
    kind: str | None = None


@dataclass(frozen=True)
class SamplePicture:
    """A picture in which objects are drawn.

    Attributes:
        webp: The file.
        width: In pixels.
        height: In pixels.
        text: What it shows, for who cannot see it.
    """

    webp: bytes
    width: int
    height: int
    text: str


@dataclass(frozen=True)
class SampleRow:
    """An image: one picture a column."""

    file_name: str
    pictures: Sequence[SamplePicture]


@dataclass(frozen=True)
class Samples:
    """The same images in every row, by different stitches."""

    columns: Sequence[SampleColumn]
    rows: Sequence[SampleRow]

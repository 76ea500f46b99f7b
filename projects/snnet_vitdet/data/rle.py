"""COCO's run-length encoding of masks, read without making the mask."""

import numpy as np

__all__ = ["covers", "pixels_of"]

# 35 bits of a number: more than any image has pixels, and sums of them stay far below 64 bits.
_MOST_CHARACTERS = 7


def covers(counts: object, pixels: int) -> bool:
    """Whether the runs of a mask add up to the number of its image's pixels.

    pycocotools fails on runs that are negative or longer than the image, and what shorter ones do
    not reach is left as the memory was.

    Args:
        counts: lengths of the runs, or COCO's compressed text of them.
        pixels: width times height of the image.
    """
    return pixels_of(counts) == pixels


def pixels_of(counts: object) -> int | None:
    """How many pixels the runs of a mask reach in all; None if it is no list or text of runs."""
    if isinstance(counts, str):
        runs = _decompressed(counts)
        return None if runs is None or runs.min() < 0 else int(runs.sum())
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        return None
    return sum(counts)


def _decompressed(text: str) -> np.ndarray | None:
    """The runs of COCO's compressed text, (runs,); None if it is none.

    A character stands for six bits: five of a number, lowest first, and one for "goes on". The
    highest bit of a number is its sign. From the fourth on, a number is the difference to the run
    two before. Whole arrays at a time: a data set may have a million masks.
    """
    if not text or not text.isascii():
        return None
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_CHARACTERS:
        return None
    places = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << places, starts)
    runs -= (codes[ends] & 16 > 0).astype(np.int64) << (5 * lengths)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs

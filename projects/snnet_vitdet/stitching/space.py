"""The stitching space: every walk through two ViTs that changes anchor at most ``max_cuts`` times.

Two-way stitching (paper, section 4.1). Pure Python. Everything else in the project takes stitch
ids, block ranges and the steps of a walk from here.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, overload

__all__ = [
    "ANCHOR_NAMES",
    "LARGE",
    "SMALL",
    "BlockStep",
    "EmbeddingStep",
    "Segment",
    "Step",
    "Stitch",
    "StitchSpace",
    "Transition",
    "walk",
]

SMALL, LARGE = 0, 1
ANCHOR_NAMES = ("small", "large")
"""Name of each anchor, by its index; in configs, and for everything that belongs to one anchor."""


class Segment(NamedTuple):
    """A run of consecutive blocks of one anchor: blocks ``start`` … ``stop - 1``."""

    anchor: int
    start: int
    stop: int


class Transition(NamedTuple):
    """A change of anchor at a cut; ``cut`` equal to the number of stages is the exit projection."""

    cut: int
    source: int
    target: int


# Not NamedTuples: as plain tuples, a block and a transition could be equal.
@dataclass(frozen=True)
class EmbeddingStep:
    """The first step of a walk: the patch embedding of an anchor, with positions."""

    anchor: int


@dataclass(frozen=True)
class BlockStep:
    """One block of an anchor.

    ``after_cut`` says whether the walk has changed anchor before it: the low-rank updates of a
    joined detector's ViTs take part only then.
    """

    anchor: int
    index: int
    after_cut: bool = False


Step = EmbeddingStep | BlockStep | Transition


def walk(segments: Iterable[Segment], transitions: Iterable[Transition]) -> Iterator[Step]:
    """The steps of a walk in the order they run.

    Args:
        segments: Runs of blocks.
        transitions: One between two segments each, then the exit projection if there is one.
    """
    transitions = iter(transitions)
    for number, (anchor, start, stop) in enumerate(segments):
        yield next(transitions) if number else EmbeddingStep(anchor)
        for index in range(start, stop):
            yield BlockStep(anchor, index, after_cut=number > 0)
    yield from transitions


@dataclass(frozen=True)
class Stitch:
    """One walk through the two anchors, a network of its own.

    Attributes:
        id: Position in its space, contiguous from 0.
        kind: ``S`` and ``L`` for the anchors alone; else one letter per segment, ``F`` for the
            small (fast) and ``S`` for the large (slow) anchor, as in the paper.
        cuts: Stage boundaries at which the walk changes anchor, ascending.
        segments: Half-open block ranges, in the order they run.
        transitions: The stitching layers between the segments, then the exit projection if the walk
            ends in the small anchor and the space has one.
    """

    id: int
    kind: str
    cuts: tuple[int, ...]
    segments: tuple[Segment, ...]
    transitions: tuple[Transition, ...]

    @property
    def name(self) -> str:
        """Kind and cuts, unique in every space, e.g. ``S``, ``FS-3``, ``SFS-2-7``."""
        return "-".join([self.kind, *map(str, self.cuts)])

    @property
    def is_anchor(self) -> bool:
        """Whether the walk never changes anchor."""
        return not self.cuts

    @property
    def exit(self) -> int:
        """The anchor it ends in."""
        return self.segments[-1].anchor

    @property
    def steps(self) -> tuple[Step, ...]:
        """Everything the walk runs, in order.

        Forward passes, costs and exports all go through these steps.
        """
        return tuple(walk(self.segments, self.transitions))


class StitchSpace(Sequence[Stitch]):
    """All walks through a small anchor of d1 and a large anchor of d2 blocks.

    There are d1 stages; stage boundary c lies before block c of the small and before block
    ``round(c * d2 / d1)`` of the large anchor. A walk starts in either anchor and changes at
    0 … ``max_cuts`` distinct cuts 1 … d1 - 1.

    Ids are contiguous, in this order: the small anchor, the large anchor, then by the number of
    cuts, within it the walks that end in the large anchor before those that end in the small one
    (FS, SF, SFS, FSF, …), within a kind by the cuts in lexicographic order.

    >>> space = StitchSpace(depths=(12, 24))
    >>> len(space), len(StitchSpace((12, 24), max_cuts=1, kinds=("S", "L", "FS")))
    (134, 13)
    >>> space["FS-3"].segments
    (Segment(anchor=0, start=0, stop=3), Segment(anchor=1, start=6, stop=24))
    """

    def __init__(
        self,
        depths: tuple[int, int] = (12, 24),
        max_cuts: int = 2,
        kinds: Iterable[str] | None = None,
        exit_projection: bool = True,
    ) -> None:
        """
        Args:
            depths: Number of blocks of the small and of the large anchor, small <= large.
            max_cuts: Largest number of changes of anchor in a walk; 2 is SN-Netv2.
            kinds: The kinds to keep, e.g. ``("S", "L", "FS")`` for SN-Netv1's space; all if None.
            exit_projection: Whether walks that end in the small anchor are projected to the large
                anchor's width.

        Raises:
            ValueError: If depths, cuts or kinds are not possible.
        """
        if len(depths) != 2 or any(not isinstance(d, int) or d < 1 for d in depths):
            raise ValueError(f"depths must be two positive integers (small, large), got {depths!r}")
        small_depth, large_depth = depths
        if small_depth > large_depth:
            raise ValueError(
                f"the small anchor has more blocks ({small_depth}) than the large one "
                f"({large_depth}): give the anchors in the other order"
            )
        if not isinstance(max_cuts, int) or max_cuts < 0:
            raise ValueError(f"max_cuts must be an integer >= 0, got {max_cuts!r}")
        self.depths = (small_depth, large_depth)
        self.max_cuts = max_cuts
        self.exit_projection = exit_projection
        self.num_stages = small_depth
        # Block index of every stage boundary, by anchor.
        self.boundaries = (
            tuple(range(small_depth + 1)),
            tuple(round(c * large_depth / small_depth) for c in range(small_depth + 1)),
        )
        self.kinds = self._select_kinds(kinds)
        self._stitches = tuple(self._enumerate())
        self._by_name = {stitch.name: stitch for stitch in self._stitches}

    def _select_kinds(self, kinds: Iterable[str] | None) -> tuple[str, ...]:
        # A walk with n cuts needs n interior stage boundaries.
        most = min(self.max_cuts, self.num_stages - 1)
        possible = ["S", "L"]
        for num_cuts in range(1, most + 1):
            for last in (LARGE, SMALL):
                possible.append(_letters(_alternate(last, num_cuts)))
        if kinds is None:
            return tuple(possible)
        wanted = list(kinds)
        unknown = [kind for kind in wanted if kind not in possible]
        if unknown or not wanted:
            raise ValueError(
                f"kinds {wanted!r} with max_cuts={self.max_cuts} and {self.num_stages} stages: "
                f"choose among {possible}"
            )
        return tuple(kind for kind in possible if kind in wanted)

    def _enumerate(self) -> Iterable[Stitch]:
        next_id = 0
        for kind in self.kinds:
            anchors = _anchors_of(kind)
            for cuts in combinations(range(1, self.num_stages), len(anchors) - 1):
                edges = (0, *cuts, self.num_stages)
                segments = tuple(
                    Segment(anchor, self.boundaries[anchor][a], self.boundaries[anchor][b])
                    for anchor, a, b in zip(anchors, edges[:-1], edges[1:], strict=True)
                )
                transitions = [
                    Transition(cut, source, target)
                    for cut, source, target in zip(cuts, anchors[:-1], anchors[1:], strict=True)
                ]
                if anchors[-1] == SMALL and self.exit_projection:
                    transitions.append(self.exit_transition)
                yield Stitch(next_id, kind, cuts, segments, tuple(transitions))
                next_id += 1

    @property
    def exit_transition(self) -> Transition:
        """The exit projection: small -> large width after the last block."""
        return Transition(self.num_stages, SMALL, LARGE)

    @property
    def transitions(self) -> tuple[Transition, ...]:
        """All stitching layers that some stitch of this space crosses, in a fixed order."""
        return tuple(sorted({t for stitch in self for t in stitch.transitions}))

    @property
    def anchors(self) -> tuple[Stitch, ...]:
        """The stitches that are one anchor alone."""
        return tuple(stitch for stitch in self if stitch.is_anchor)

    def __len__(self) -> int:
        return len(self._stitches)

    @overload
    def __getitem__(self, key: int | str) -> Stitch: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Stitch, ...]: ...
    def __getitem__(self, key: int | str | slice) -> Stitch | tuple[Stitch, ...]:
        """A stitch by id or name, or a tuple of them by slice.

        Raises:
            IndexError: For an id outside the space (negative ids are not taken).
            KeyError: For a name that is not in the space.
        """
        if isinstance(key, slice):
            return self._stitches[key]
        if isinstance(key, str):
            if key not in self._by_name:
                raise KeyError(
                    f"no stitch is named {key!r}; names are a kind of {list(self.kinds)} and its "
                    f"cuts 1 to {self.num_stages - 1}, such as {self._stitches[-1].name!r}"
                )
            return self._by_name[key]
        if isinstance(key, bool) or not isinstance(key, int):
            raise TypeError(f"a stitch is chosen by id or name, not by {key!r}")
        if not 0 <= key < len(self):
            raise IndexError(f"stitch id {key} is not in 0 … {len(self) - 1}")
        return self._stitches[key]

    def __repr__(self) -> str:
        return (
            f"StitchSpace(depths={self.depths}, max_cuts={self.max_cuts}, kinds={self.kinds}): "
            f"{len(self)} stitches"
        )


def _alternate(last: int, num_cuts: int) -> list[int]:
    """Anchors of a walk with ``num_cuts`` changes that ends in anchor ``last``."""
    return [last if (num_cuts - i) % 2 == 0 else 1 - last for i in range(num_cuts + 1)]


def _letters(anchors: Sequence[int]) -> str:
    return "".join("F" if anchor == SMALL else "S" for anchor in anchors)


def _anchors_of(kind: str) -> list[int]:
    if kind in ("S", "L"):
        return [SMALL if kind == "S" else LARGE]
    return [SMALL if letter == "F" else LARGE for letter in kind]

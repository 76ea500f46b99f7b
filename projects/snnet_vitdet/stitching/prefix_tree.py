"""Many walks at once: a tree in which every shared beginning of walks stands once.

FS-3 and FS-5 begin with the same three blocks; run along the tree, those blocks run once for both.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .cost import Cost, CostParts
from .space import Stitch, Transition

__all__ = ["BlockStep", "EmbeddingStep", "PrefixNode", "PrefixTree", "Step", "steps_of"]


class EmbeddingStep(NamedTuple):
    """The first step of a walk: the patches of an anchor with their positions."""

    anchor: int


class BlockStep(NamedTuple):
    """A block of an anchor."""

    anchor: int
    index: int


Step = EmbeddingStep | BlockStep | Transition


@dataclass
class PrefixNode:
    """A step that some walks take after the same steps before it.

    Attributes:
        step: The step.
        children: What comes next in these walks.
        ends: The stitches whose last step it is.
    """

    step: Step
    children: dict[Step, "PrefixNode"] = field(default_factory=dict)
    ends: list[Stitch] = field(default_factory=list)


class PrefixTree:
    """The steps of many stitches, shared beginnings merged.

    >>> from snnet_vitdet.stitching import StitchSpace
    >>> space = StitchSpace((12, 24))
    >>> tree = PrefixTree(space)
    >>> sum(len(list(steps_of(stitch))) for stitch in space), len(tree)
    (2855, 1095)
    """

    def __init__(self, stitches: Iterable[Stitch]) -> None:
        """
        Args:
            stitches: Of one space.
        """
        self.roots: dict[Step, PrefixNode] = {}
        for stitch in stitches:
            children, node = self.roots, None
            for step in steps_of(stitch):
                node = children.setdefault(step, PrefixNode(step))
                children = node.children
            node.ends.append(stitch)

    def __len__(self) -> int:
        """The number of steps, each shared one counted once."""
        return sum(1 for _ in self._nodes())

    def _nodes(self) -> Iterator[PrefixNode]:
        open_nodes = list(self.roots.values())
        while open_nodes:
            node = open_nodes.pop()
            yield node
            open_nodes.extend(node.children.values())

    def flops(self, parts: CostParts) -> float:
        """Multiply-accumulates of one image: each step once, pyramid and heads for each stitch."""
        total = 0.0
        for node in self._nodes():
            total += _cost_of(node.step, parts).flops
            total += sum(cost.flops for stitch in node.ends for cost in parts.after(stitch))
        return total


def _cost_of(step: Step, parts: CostParts) -> Cost:
    if isinstance(step, EmbeddingStep):
        return parts.embeddings[step.anchor]
    if isinstance(step, BlockStep):
        return parts.blocks[step.anchor][step.index]
    return parts.stitching_layers[step]


def steps_of(stitch: Stitch) -> Iterator[Step]:
    """The steps of a stitch in the order it takes them."""
    transitions = iter(stitch.transitions)
    for index, (anchor, start, stop) in enumerate(stitch.segments):
        yield next(transitions) if index else EmbeddingStep(anchor)
        for block in range(start, stop):
            yield BlockStep(anchor, block)
    yield from transitions

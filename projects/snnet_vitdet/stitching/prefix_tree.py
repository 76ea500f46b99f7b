"""Many walks at once: a tree in which walks share the steps that they begin with.

FS-3 and FS-5 begin with the same three blocks. Along the tree, those blocks run once for both.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .cost import CostParts
from .space import Step, Stitch

__all__ = ["PrefixNode", "PrefixTree"]


@dataclass
class PrefixNode:
    """A step, shared by all walks that are equal up to it.

    Attributes:
        step: The step.
        children: The next step of these walks, and their nodes.
        ends: The stitches whose last step it is.
    """

    step: Step
    children: dict[Step, "PrefixNode"] = field(default_factory=dict)
    ends: list[Stitch] = field(default_factory=list)


class PrefixTree:
    """The steps of many stitches, with equal beginnings merged.

    >>> from snnet_vitdet.stitching import StitchSpace
    >>> space = StitchSpace((12, 24))
    >>> tree = PrefixTree(space)
    >>> sum(len(stitch.steps) for stitch in space), len(tree)
    (2855, 1095)
    """

    def __init__(self, stitches: Iterable[Stitch]) -> None:
        """
        Args:
            stitches: Stitches of one space.
        """
        self.roots: dict[Step, PrefixNode] = {}
        for stitch in stitches:
            children = self.roots
            for step in stitch.steps:
                node = children.setdefault(step, PrefixNode(step))
                children = node.children
            node.ends.append(stitch)

    def __len__(self) -> int:
        """The number of steps; a shared step counts once."""
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
            total += parts.of_step(node.step).flops
            total += sum(cost.flops for stitch in node.ends for cost in parts.after(stitch))
        return total

"""What every stitch costs, as the sum of parts that are counted once.

One multiply-accumulate counts as one FLOP, as fvcore counts and the paper reports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .space import Stitch, StitchSpace, Transition

__all__ = ["Cost", "CostParts", "CostTable"]


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one image, and parameters."""

    flops: float = 0.0
    params: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.params + other.params)

    @property
    def gflops(self) -> float:
        """Multiply-accumulates / 1e9."""
        return self.flops / 1e9

    @property
    def params_m(self) -> float:
        """Parameters / 1e6."""
        return self.params / 1e6


@dataclass(frozen=True)
class CostParts:
    """The parts every stitch is put together from.

    Attributes:
        embeddings: Patch and position embedding of each anchor.
        blocks: Every block of each anchor, ``blocks[anchor][index]``.
        stitching_layers: Each stitching layer (merged: one matrix product) and the exit projection.
        exits: What follows the walk, by the anchor it ends in and by name: ``pyramid`` (and a norm
            before it if there is one), ``rpn`` and ``roi_heads``.
    """

    embeddings: tuple[Cost, Cost]
    blocks: tuple[Sequence[Cost], Sequence[Cost]]
    stitching_layers: Mapping[Transition, Cost]
    exits: tuple[Mapping[str, Cost], Mapping[str, Cost]]

    def cost_of(self, stitch: Stitch) -> Cost:
        """Cost of the whole detector that runs ``stitch``."""
        parts = [self.embeddings[stitch.segments[0].anchor], *self.after(stitch)]
        for anchor, start, stop in stitch.segments:
            parts.extend(self.blocks[anchor][start:stop])
        parts.extend(self.stitching_layers[transition] for transition in stitch.transitions)
        return sum(parts, Cost())

    def after(self, stitch: Stitch) -> list[Cost]:
        """What the detector runs after the walk of a stitch."""
        return list(self.exits[stitch.exit].values())


class CostTable(Sequence[Cost]):
    """Cost of every stitch of a space, by stitch id."""

    def __init__(self, space: StitchSpace, parts: CostParts) -> None:
        """
        Args:
            space: The stitching space.
            parts: Counted costs; ``blocks`` must have the depths of the space.

        Raises:
            ValueError: If the blocks are not those of the space.
        """
        depths = tuple(len(blocks) for blocks in parts.blocks)
        if depths != space.depths:
            raise ValueError(f"costs of {depths} blocks for a space of depths {space.depths}")
        self.space = space
        self.parts = parts
        self._costs = tuple(parts.cost_of(stitch) for stitch in space)

    def __len__(self) -> int:
        return len(self._costs)

    def __getitem__(self, stitch_id: Any) -> Any:
        return self._costs[stitch_id]

    @property
    def gflops(self) -> tuple[float, ...]:
        """GFLOPs of every stitch, by id."""
        return tuple(cost.gflops for cost in self._costs)

"""The cost of every stitch, as a sum of parts that are counted once.

One multiply-accumulate counts as one FLOP, as fvcore counts and the paper reports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from .space import BlockStep, EmbeddingStep, Step, Stitch, StitchSpace, Transition

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
    """The cost of every part that stitches are made of.

    Attributes:
        embeddings: Patch and position embedding of each anchor.
        blocks: Every block of each anchor, ``blocks[anchor][index]``.
        stitching_layers: Each stitching layer (merged: one matrix product) and the exit projection.
        exits: What follows the walk, by the anchor it ends in and by name: ``pyramid``, ``rpn`` and
            ``roi_heads``.
    """

    embeddings: Sequence[Cost]
    blocks: Sequence[Sequence[Cost]]
    stitching_layers: Mapping[Transition, Cost]
    exits: Sequence[Mapping[str, Cost]]

    def of_step(self, step: Step) -> Cost:
        """Cost of one step of a walk."""
        if isinstance(step, EmbeddingStep):
            return self.embeddings[step.anchor]
        if isinstance(step, BlockStep):
            return self.blocks[step.anchor][step.index]
        return self.stitching_layers[step]

    def after(self, stitch: Stitch) -> list[Cost]:
        """Costs of what the detector runs after the walk of a stitch."""
        return list(self.exits[stitch.exit].values())

    def of_stitch(self, stitch: Stitch) -> Cost:
        """Cost of the whole detector that runs ``stitch``."""
        return sum([*map(self.of_step, stitch.steps), *self.after(stitch)], Cost())


class CostTable(Sequence[Cost]):
    """Cost of every stitch of a space, by stitch id."""

    def __init__(self, space: StitchSpace, parts: CostParts) -> None:
        """
        Args:
            space: The stitching space.
            parts: Counted costs; ``blocks`` must have the depths of the space.

        Raises:
            ValueError: If the number of blocks is not that of the space.
        """
        depths = tuple(len(blocks) for blocks in parts.blocks)
        if depths != space.depths:
            raise ValueError(f"costs of {depths} blocks for a space of depths {space.depths}")
        self.space = space
        self.parts = parts
        self._costs = tuple(parts.of_stitch(stitch) for stitch in space)

    def __len__(self) -> int:
        return len(self._costs)

    @overload
    def __getitem__(self, stitch_id: int) -> Cost: ...
    @overload
    def __getitem__(self, stitch_id: slice) -> tuple[Cost, ...]: ...
    def __getitem__(self, stitch_id: int | slice) -> Cost | tuple[Cost, ...]:
        return self._costs[stitch_id]

    @property
    def gflops(self) -> tuple[float, ...]:
        """GFLOPs of every stitch, by id."""
        return tuple(cost.gflops for cost in self._costs)

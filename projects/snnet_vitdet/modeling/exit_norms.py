"""Normalisations of the last tokens, of each exit or each kind of stitch its own.

One pyramid serves tokens of two ViTs. Their statistics differ, and normalisations of their own are
the cheapest way to let it see one distribution, as switchable batch norm is for networks of many
widths (https://arxiv.org/abs/1812.08928).
"""

from torch import nn

from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import Stitch, StitchSpace

__all__ = ["EXITS", "EXIT_NORMS", "ExitNorms", "exit_norm"]

EXIT_NORMS = ("exit", "kind")
EXITS = ("small", "large")
"""Names of what belongs to an exit, by the anchor that a stitch ends in."""


def exit_norm(width: int) -> nn.LayerNorm:
    """A norm of tokens of a width, as the blocks of a ViT have it."""
    return nn.LayerNorm(width, eps=1e-6)


class ExitNorms(nn.ModuleDict):
    """A layer norm for each group of stitches, of the width of their outputs."""

    def __init__(self, space: StitchSpace, widths: tuple[int, int], group: str) -> None:
        """
        Args:
            space: Of the stitches.
            widths: Of the outputs, by the anchor that a stitch ends in.
            group: ``exit`` for the stitches that end in the same anchor, ``kind`` for those of the
                same kind.

        Raises:
            InputError: For another group.
        """
        super().__init__()
        if group not in EXIT_NORMS:
            raise InputError(f"exit_norm must be null or one of {list(EXIT_NORMS)}, got {group!r}")
        self._group = group
        for stitch in space:
            if self._key(stitch) not in self:
                self.add_module(self._key(stitch), exit_norm(widths[stitch.exit]))

    def __getitem__(self, stitch: Stitch) -> nn.LayerNorm:
        """The norm of a stitch."""
        return super().__getitem__(self._key(stitch))

    def _key(self, stitch: Stitch) -> str:
        return stitch.kind if self._group == "kind" else EXITS[stitch.exit]

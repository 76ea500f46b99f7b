"""Least-squares start values of the stitching layers, from a stream of tokens.

The paper solves M = pinv(X1) X2 on the tokens of 100 images (equation 2). At 1024 x 1024 pixels
those are 409,600 tokens per layer, too many to hold. The moments of the tokens suffice for the
solution: their size depends on the widths alone, they can be summed over images and processes, and
one set serves both directions.
"""

from typing import NamedTuple

import torch

from .space import SMALL

__all__ = ["AffineMap", "TokenMoments"]


class AffineMap(NamedTuple):
    """``x @ weight + bias``: weight (in_features, out_features), bias (out_features,)."""

    weight: torch.Tensor
    bias: torch.Tensor


class TokenMoments:
    """First and second moments of paired tokens of two anchors, in float64.

    ``gram`` is ``[1 x y]ᵀ [1 x y]``, (1 + d1 + d2) squared: it holds XᵀX, XᵀY, YᵀY, both sums and
    the count. Float64 because the normal equations square the condition number.
    """

    def __init__(self, widths: tuple[int, int], device: torch.device | str = "cpu") -> None:
        """
        Args:
            widths: Token widths d1, d2 of the two anchors.
            device: Device that holds the moments and computes the products.
        """
        self.widths = tuple(widths)
        size = 1 + sum(widths)
        self.gram = torch.zeros(size, size, dtype=torch.float64, device=device)

    @property
    def num_tokens(self) -> int:
        """Number of pairs of tokens seen."""
        return int(self.gram[0, 0].item())

    @torch.no_grad()
    def update(self, small: torch.Tensor, large: torch.Tensor) -> None:
        """Adds pairs of tokens.

        Args:
            small: Tokens of the small anchor, (..., d1).
            large: Tokens of the large anchor at the same positions, (..., d2).

        Raises:
            ValueError: If widths or numbers of tokens do not fit, or a value is not finite.
        """
        small = small.reshape(-1, small.shape[-1])
        large = large.reshape(-1, large.shape[-1])
        if (small.shape[1], large.shape[1]) != self.widths or len(small) != len(large):
            raise ValueError(
                f"expected tokens (n, {self.widths[0]}) and (n, {self.widths[1]}), got "
                f"{tuple(small.shape)} and {tuple(large.shape)}"
            )
        tokens = torch.cat([small.new_ones(len(small), 1), small, large], dim=1).double()
        if not torch.isfinite(tokens).all():
            raise ValueError("tokens for the least-squares fit hold NaN or infinity")
        self.gram += tokens.T @ tokens

    def mean(self, anchor: int) -> torch.Tensor:
        """Mean token of an anchor (0 small, 1 large), (width,)."""
        return self._mean(self._slices(anchor)[0])

    def solve(self, source: int, epsilon: float = torch.finfo(torch.float32).eps) -> AffineMap:
        """The least-squares affine map from one anchor's tokens to the other's.

        The bias is eliminated by centring. Directions of the source tokens whose variance is
        negligible beside the largest get weight zero, as in the minimum-norm solution.

        Tokens and weights are rounded when the map runs. Their errors are noise of known variance,
        which is added to the variance of the tokens. A direction below this noise would otherwise
        get a large weight and pass on mostly noise.

        Args:
            source: 0 to map the small anchor's tokens to the large one's, 1 for the reverse.
            epsilon: Machine epsilon of the precision the map will run in.

        Returns:
            The map in float64, on the device of the moments.

        Raises:
            ValueError: If no tokens were seen.
        """
        if self.num_tokens == 0:
            raise ValueError("no tokens were seen: the least-squares fit has nothing to solve")
        x, y = self._slices(source)
        mean_x, mean_y = self._mean(x), self._mean(y)
        cov_xx, cov_xy = self._covariance(x, x), self._covariance(x, y)
        # ViT tokens have a few channels hundreds of times larger than the rest; on a common scale
        # the cut-off for tiny eigenvalues does not mistake small channels for noise.
        scale = self._standard_deviation(x)
        inverse_scale = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
        correlation = cov_xx * torch.outer(inverse_scale, inverse_scale)
        # Rounding a number a is off by at most |a| epsilon / 2. With the error spread evenly, its
        # square is a² epsilon² / 24 on average over the mantissas; token and weight are rounded.
        noise = self._mean_square(x) * inverse_scale.square() * (epsilon**2 / 12)
        eigenvalues, vectors = torch.linalg.eigh(correlation + torch.diag(noise))
        cutoff = eigenvalues[-1] * len(eigenvalues) * torch.finfo(torch.float64).eps * 10
        inverse = torch.where(eigenvalues > cutoff, 1 / eigenvalues, torch.zeros_like(eigenvalues))
        weight = (vectors * inverse) @ (vectors.T @ (inverse_scale[:, None] * cov_xy))
        weight = inverse_scale[:, None] * weight
        return AffineMap(weight, mean_y - mean_x @ weight)

    def _slices(self, source: int) -> tuple[slice, slice]:
        """Where the source's and the target's channels lie in ``gram``."""
        d1, d2 = self.widths
        small, large = slice(1, 1 + d1), slice(1 + d1, 1 + d1 + d2)
        return (small, large) if source == SMALL else (large, small)

    def _mean(self, channels: slice) -> torch.Tensor:
        return self.gram[0, channels] / self.gram[0, 0]

    def _mean_square(self, channels: slice) -> torch.Tensor:
        return self.gram.diagonal()[channels] / self.gram[0, 0]

    def _standard_deviation(self, channels: slice) -> torch.Tensor:
        """Standard deviation per channel; 0 where a channel varies less than float32 rounding."""
        variance = self._covariance(channels, channels).diagonal()
        noise = self._mean_square(channels) * torch.finfo(torch.float32).eps ** 2
        return torch.where(variance > noise, variance, torch.zeros_like(variance)).sqrt()

    def _covariance(self, rows: slice, columns: slice) -> torch.Tensor:
        outer = torch.outer(self._mean(rows), self._mean(columns))
        return self.gram[rows, columns] / self.gram[0, 0] - outer

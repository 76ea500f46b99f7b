"""The ends of a space, trained more often than a sampler draws them, and first of all."""

from collections.abc import Sequence
from typing import Protocol

__all__ = ["EndsSampler", "Sampler"]


class Sampler(Protocol):
    """What draws stitches."""

    def __call__(self, iteration: int, slot: int = 0) -> int:
        """The stitch id of an iteration and slot."""

    def probabilities(self) -> tuple[float, ...]:
        """Probability of every stitch, by id."""


class EndsSampler:
    """Some stitches, such as the smallest and the largest, in turn with those of a sampler.

    A draw has the role ``(iteration + slot) % period``. The first roles are the ends, the others
    draw from the sampler. This is the sandwich rule of slimmable networks
    (https://arxiv.org/abs/1903.05134, section 3.2: the largest, the smallest and some random ones
    in every step) with its roles spread over the micro-batches or processes that share a batch:
    with as many slots as roles a step trains all of them, and no more images than without the rule.
    With a single slot each end has every so-manieth step. In ``period`` iterations every slot has
    every role exactly once.
    """

    def __init__(self, of: Sampler, ends: Sequence[int], period: int = 0, first: int = 0) -> None:
        """
        Args:
            of: Draws the other stitches, now and then one of the ends, too.
            ends: Stitch ids that take turns.
            period: Number of roles; 0 for none, then only the first iterations are the ends'.
            first: Iterations at the start in which the ends alone are trained, in turn.

        Raises:
            ValueError: For no end, one that the sampler does not know, or a period or a number of
                iterations that cannot be.
        """
        if not ends:
            raise ValueError("ends is empty: there is no stitch to take turns")
        num_stitches = len(of.probabilities())
        for end in ends:
            if not 0 <= end < num_stitches:
                raise ValueError(f"ends must be stitch ids from 0 to {num_stitches - 1}, got {end}")
        if period and period < len(ends):
            raise ValueError(
                f"period={period} must be 0 or at least {len(ends)}, a turn for each of the ends, "
                f"the stitches {list(ends)}"
            )
        if first < 0:
            raise ValueError(f"first={first} must be >= 0")
        self.of = of
        self.ends = tuple(ends)
        self.period = period
        self.first = first

    def __call__(self, iteration: int, slot: int = 0) -> int:
        """The stitch id of an iteration.

        Args:
            iteration: Training iteration, >= 0.
            slot: Index of the process, of the micro-batch, or of both together; 0 where all train
                the same stitch.
        """
        turn = iteration + slot
        if iteration < self.first:
            return self.ends[turn % len(self.ends)]
        if self.period and turn % self.period < len(self.ends):
            return self.ends[turn % self.period]
        return self.of(iteration, slot)

    def probabilities(self) -> tuple[float, ...]:
        """Share of every stitch, by id, among the draws after the first iterations."""
        probabilities = list(self.of.probabilities())
        if self.period:
            others = 1 - len(self.ends) / self.period
            probabilities = [others * probability for probability in probabilities]
            for end in self.ends:
                probabilities[end] += 1 / self.period
        return tuple(probabilities)

    def shares(self, num_iterations: int) -> tuple[float, ...]:
        """Share of every stitch, by id, among the draws of a whole training.

        Args:
            num_iterations: Of the training, the first ones included.
        """
        first = min(1.0, self.first / num_iterations)
        shares = [(1 - first) * probability for probability in self.probabilities()]
        for end in self.ends:
            shares[end] += first / len(self.ends)
        return tuple(shares)

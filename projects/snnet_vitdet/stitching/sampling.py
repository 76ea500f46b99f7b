"""Which stitch is trained in which iteration.

A draw is a pure function of (seed, iteration, slot). Nothing has to be saved, restored or
broadcast: every process computes the same stitch, before and after a resume, whatever else has used
the global random generators in between.
"""

import hashlib
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

__all__ = [
    "EndsSampler",
    "ResourceConstrainedSampler",
    "Sampler",
    "SamplerBySize",
    "SubsetSampler",
    "UniformSampler",
]


class Sampler(Protocol):
    """Draws the stitch of each iteration."""

    def __call__(self, iteration: int, slot: int = 0) -> int:
        """The stitch id of an iteration and slot."""

    def probabilities(self) -> tuple[float, ...]:
        """Probability of every stitch, by id."""


def _draw(seed: int, iteration: int, slot: int) -> tuple[int, int]:
    """Two independent uniform 64-bit integers, the same on every platform and Python version.

    A hash instead of a seeded generator, because the streams of numpy's and torch's generators may
    change between releases, and a resumed training would silently go on with other stitches.
    """
    for name, value in (("seed", seed), ("iteration", iteration), ("slot", slot)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
        if value >= 2**64:
            raise ValueError(f"{name} must be below 2**64, got {value}")
    digest = hashlib.blake2b(struct.pack("<3Q", seed, iteration, slot), digest_size=16).digest()
    return struct.unpack("<2Q", digest)


class ResourceConstrainedSampler:
    """Resource-constrained sampling (ROS; paper, section 4.2).

    Stitches of similar cost form a group, and every group is a FLOPs constraint. A draw picks a
    group uniformly, then a stitch uniformly within it. The anchors, which have few neighbours in
    cost, are thus trained as often as any other budget.
    """

    def __init__(
        self,
        gflops: Sequence[float],
        step: float = 10.0,
        seed: int = 0,
        grouping: str = "gap",
    ) -> None:
        """
        Args:
            gflops: Cost of every stitch in GFLOPs (multiply-accumulates / 1e9), by stitch id.
            step: Width of a group in GFLOPs: 10 for dense prediction in the paper, 1 for
                classification.
            seed: Any integer from 0 to 2**64 - 1; fixes the whole sequence of draws.
            grouping: ``gap`` goes through the stitches in order of cost and starts a new group
                where the distance to the first member of the current group exceeds ``step``. This
                is what the authors' code does; adding a constant to all costs changes nothing.
                ``round`` groups the stitches whose costs round to the same multiple of ``step``, as
                the paper's text says.

        Raises:
            ValueError: If there is no stitch, a cost or the step is not finite and positive, the
                step is too small for the costs, or the grouping is unknown.
        """
        if len(gflops) == 0:
            raise ValueError("gflops is empty: there is no stitch to sample")
        bad = [g for g in gflops if not (math.isfinite(g) and g > 0)]
        if bad:
            raise ValueError(f"gflops must be finite and positive, got {bad[0]!r}")
        if not (math.isfinite(step) and step > 0):
            raise ValueError(f"step must be a positive number of GFLOPs, got {step!r}")
        if math.isinf(max(gflops) / step):
            raise ValueError(f"step={step!r} GFLOPs is too small for a cost of {max(gflops)!r}")
        if grouping not in _GROUPINGS:
            raise ValueError(f"grouping must be one of {tuple(_GROUPINGS)}, got {grouping!r}")
        self.step = step
        self.seed = seed
        self.num_stitches = len(gflops)
        # Ids in their order within a group, whatever their costs: a draw picks by position.
        groups = _GROUPINGS[grouping](gflops, step)
        self.groups = tuple(tuple(sorted(members)) for members in groups)
        """The stitch ids of every group, the cheapest group first."""

    def __call__(self, iteration: int, slot: int = 0) -> int:
        """The stitch id of an iteration.

        Args:
            iteration: Training iteration, >= 0.
            slot: 0 where all processes train the same stitch; the process index or the micro-step
                where they train different ones.
        """
        first, second = _draw(self.seed, iteration, slot)
        members = self.groups[first % len(self.groups)]
        return members[second % len(members)]

    def probabilities(self) -> tuple[float, ...]:
        """Probability of every stitch, by id: 1 / (number of groups · size of its group)."""
        result = [0.0] * self.num_stitches
        for members in self.groups:
            for stitch_id in members:
                result[stitch_id] = 1.0 / (len(self.groups) * len(members))
        return tuple(result)


def _group_by_gap(gflops: Sequence[float], step: float) -> list[list[int]]:
    """Groups as wide as ``step``, each starting at the cheapest stitch not yet in a group.

    ``group_subnets_by_flops`` of https://github.com/ziplab/SN-Netv2/tree/dd17607.
    """
    groups: list[list[int]] = []
    for stitch_id in sorted(range(len(gflops)), key=gflops.__getitem__):
        if not groups or gflops[stitch_id] - gflops[groups[-1][0]] > step:
            groups.append([])
        groups[-1].append(stitch_id)
    return groups


def _group_by_rounding(gflops: Sequence[float], step: float) -> list[list[int]]:
    """Groups by the nearest multiple of ``step``; halfway rounds up."""
    groups: dict[int, list[int]] = {}
    for stitch_id, cost in enumerate(gflops):
        groups.setdefault(math.floor(cost / step + 0.5), []).append(stitch_id)
    return [groups[multiple] for multiple in sorted(groups)]


_GROUPINGS = {"gap": _group_by_gap, "round": _group_by_rounding}


class UniformSampler:
    """Draws every stitch with the same probability: the paper's ablation of ROS (Figure 10)."""

    def __init__(
        self,
        gflops: Sequence[float],
        step: float | None = None,
        seed: int = 0,
        grouping: str | None = None,
    ) -> None:
        """
        Args:
            gflops: Cost of every stitch; only the number of stitches is used.
            step: Not used. Accepted so that a config can swap the samplers by name alone.
            seed: Any integer from 0 to 2**64 - 1; fixes the whole sequence of draws.
            grouping: Not used; see ``step``.

        Raises:
            ValueError: If there is no stitch.
        """
        if len(gflops) == 0:
            raise ValueError("gflops is empty: there is no stitch to sample")
        self.seed = seed
        self.num_stitches = len(gflops)

    def __call__(self, iteration: int, slot: int = 0) -> int:
        """The stitch id of an iteration; see :meth:`ResourceConstrainedSampler.__call__`."""
        return _draw(self.seed, iteration, slot)[0] % self.num_stitches

    def probabilities(self) -> tuple[float, ...]:
        """Probability of every stitch, by id."""
        return (1.0 / self.num_stitches,) * self.num_stitches


class SubsetSampler:
    """Maps the draws of another sampler to some stitches of a space."""

    def __init__(
        self,
        of: Sampler,
        stitch_ids: Sequence[int],
        num_stitches: int,
    ) -> None:
        """
        Args:
            of: A sampler of ``len(stitch_ids)`` stitches.
            stitch_ids: The stitch id for each draw of ``of``.
            num_stitches: Number of stitches in the space.
        """
        self.of = of
        self.stitch_ids = tuple(stitch_ids)
        self.num_stitches = num_stitches

    def __call__(self, iteration: int, slot: int = 0) -> int:
        """The stitch id of an iteration; see :meth:`ResourceConstrainedSampler.__call__`."""
        return self.stitch_ids[self.of(iteration, slot)]

    def probabilities(self) -> tuple[float, ...]:
        """Probability of every stitch of the space, by id."""
        result = [0.0] * self.num_stitches
        for stitch_id, probability in zip(self.stitch_ids, self.of.probabilities(), strict=True):
            result[stitch_id] = probability
        return tuple(result)


class EndsSampler:
    """Gives fixed turns to some stitches, such as the smallest and the largest of a space.

    A draw has the role ``(iteration + slot) % period``. The first roles are the ends; the others
    draw from the sampler. This is the sandwich rule of slimmable networks
    (https://arxiv.org/abs/1903.05134, section 3.2: every step trains the largest, the smallest and
    some random networks), with its roles spread over the micro-batches or processes that share a
    batch. With as many slots as roles, one step trains all of them, on no more images than without
    the rule. With one slot, each end is trained once in ``period`` steps.
    """

    def __init__(self, of: Sampler, ends: Sequence[int], period: int = 0, first: int = 0) -> None:
        """
        Args:
            of: Draws the stitches of the other roles; it may draw an end, too.
            ends: Stitch ids that take turns.
            period: Number of roles; 0 for no turns after the first iterations.
            first: Number of iterations at the start that train the ends alone, in turn.

        Raises:
            ValueError: If there is no end, or an end, the period or ``first`` is out of range.
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
            slot: Index of the process, the micro-batch, or both combined; 0 if all train the same
                stitch.
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
            num_iterations: Length of the training, including the first iterations.
        """
        first = min(1.0, self.first / num_iterations)
        shares = [(1 - first) * probability for probability in self.probabilities()]
        for end in self.ends:
            shares[end] += first / len(self.ends)
        return tuple(shares)


class SamplerBySize:
    """Draws from the sampler of the image size that an iteration trains.

    Costs, and with them the groups of resource-constrained sampling, differ between sizes.
    """

    def __init__(
        self, samplers: Mapping[int, Sampler], image_size_at: Callable[[int], int]
    ) -> None:
        """
        Args:
            samplers: A sampler for each image size.
            image_size_at: Returns the image size of an iteration.
        """
        self.samplers = samplers
        self.image_size_at = image_size_at

    def __call__(self, iteration: int, slot: int = 0) -> int:
        """The stitch id of an iteration; arguments as for :class:`EndsSampler`."""
        return self.samplers[self.image_size_at(iteration)](iteration, slot)

"""Which stitch is trained in which iteration.

A draw is a pure function of (seed, iteration, slot). Nothing has to be saved, restored or
broadcast: every process computes the same stitch, before and after a resume, whatever else has used
the global random generators in between.
"""

import hashlib
import math
import struct
from collections.abc import Sequence

__all__ = ["ResourceConstrainedSampler", "SubsetSampler", "UniformSampler"]


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

    Stitches of similar cost form a group, and every group is a FLOPs constraint. A draw takes a
    group uniformly, then a stitch uniformly within it, so the anchors, which have few neighbours,
    are trained as often as any other budget.
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
            grouping: ``gap`` goes through the stitches by their cost, and starts a new group where
                the distance to the first member of the group at hand exceeds ``step``. This is the
                grouping of the authors' code, and does not change if all costs grow by a constant.
                ``round`` groups the stitches whose costs round to the same multiple of ``step``, as
                the text of the paper says.

        Raises:
            ValueError: For no stitch, a cost that is not finite and positive, a step that is not
                or is too small for the costs, or an unknown grouping.
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
    """Groups as wide as ``step``, each from the cheapest stitch that no group has yet.

    ``group_subnets_by_flops`` of https://github.com/ziplab/SN-Netv2/tree/dd17607.
    """
    groups: list[list[int]] = []
    for stitch_id in sorted(range(len(gflops)), key=gflops.__getitem__):
        if not groups or gflops[stitch_id] - gflops[groups[-1][0]] > step:
            groups.append([])
        groups[-1].append(stitch_id)
    return groups


def _group_by_rounding(gflops: Sequence[float], step: float) -> list[list[int]]:
    """Groups of the same nearest multiple of ``step``; halfway between two it is the upper one."""
    groups: dict[int, list[int]] = {}
    for stitch_id, cost in enumerate(gflops):
        groups.setdefault(math.floor(cost / step + 0.5), []).append(stitch_id)
    return [groups[multiple] for multiple in sorted(groups)]


_GROUPINGS = {"gap": _group_by_gap, "round": _group_by_rounding}


class UniformSampler:
    """Every stitch alike: the paper's ablation of ROS (Figure 10)."""

    def __init__(
        self,
        gflops: Sequence[float],
        step: float | None = None,
        seed: int = 0,
        grouping: str | None = None,
    ) -> None:
        """
        Args:
            gflops: Cost of every stitch; only their number matters.
            step: Taken and not used, as the costs are, so that a config exchanges the samplers by
                their names alone.
            seed: Any integer from 0 to 2**64 - 1; fixes the whole sequence of draws.
            grouping: Taken and not used, as ``step``.

        Raises:
            ValueError: For no stitch.
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
    """Another sampler's draws among some stitches of a space."""

    def __init__(
        self,
        of: ResourceConstrainedSampler | UniformSampler,
        stitch_ids: Sequence[int],
        num_stitches: int,
    ) -> None:
        """
        Args:
            of: A sampler of as many stitches as there are ids.
            stitch_ids: What its draws stand for.
            num_stitches: Of the space.
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

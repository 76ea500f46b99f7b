"""The sampler of a training, how often it draws each stitch, and the mean cost of a draw."""

from collections.abc import Sequence

from snnet_vitdet.building import build, told_as
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import is_joined, point_costs
from snnet_vitdet.stitching import (
    CostTable,
    EndsSampler,
    Sampler,
    StitchSpace,
    SubsetSampler,
    select_stitches,
)

from .settings import Config

__all__ = [
    "build_sampler",
    "costs_by_size",
    "crowded_anchors",
    "ends_plan",
    "mean_gflops",
    "training_shares",
]


def build_sampler(config: Config, costs: CostTable) -> Sampler:
    """Builds the sampler of a config; with ``train.ends``, it alternates with the ends.

    Args:
        config: The whole config, not changed.
        costs: Costs of the stitches of its model.

    Raises:
        InputError: For invalid settings of the sampler or of ``train.ends``.
    """
    node = config.sampler.copy()
    # In a joined detector, the stitches of a single ViT have nothing to train.
    ids = [s.id for s in costs.space if s.cuts or not is_joined(config.model)]
    if not ids:
        raise InputError(
            "model.backbone.net has no stitch with a cut, so nothing lies between the two "
            "detectors: let its kinds have FS, SF, SFS or FSF"
        )
    node.gflops = [costs.gflops[i] for i in ids]
    sampler = build("sampler", node)
    if len(ids) < len(costs):
        sampler = SubsetSampler(sampler, ids, len(costs))
    with told_as("sampler cannot draw with its config"):
        sampler(0)  # the seed is used, and checked, at the first draw
    period, first = config.train.ends.period, config.train.ends.first
    if not period and not first:
        return sampler
    if first > config.train.max_iter:
        raise InputError(
            f"train.ends.first={first} must be at most train.max_iter={config.train.max_iter}: the "
            "other stitches are trained after it"
        )
    stitches = config.train.ends.stitches
    try:
        ends = select_stitches(stitches, costs.space)
    except InputError as error:
        raise InputError(f"train.ends.stitches={stitches}: {error}") from error
    if idle := [costs.space[i].name for i in ends if i not in ids]:
        raise InputError(
            f"train.ends would train {' and '.join(idle)}, which have nothing to learn in a joined "
            "detector: name stitches with a cut as train.ends.stitches, or leave train.ends out"
        )
    try:
        return EndsSampler(sampler, ends, period, first)
    except ValueError as error:
        raise InputError(f"train.ends.{error}") from error


def costs_by_size(config: Config) -> dict[int, CostTable]:
    """Costs of the stitches of a config at each size of ``train.image_sizes``."""
    tables = point_costs(config.model, sorted(set(config.train.image_sizes)), [None])
    return {size: table for (size, _), table in tables.items()}


def crowded_anchors(sampler: Sampler, costs: CostTable) -> str:
    """Warns that an anchor shares its group with other stitches; empty if none does.

    A step that is wide for the costs, such as the default for small images, draws one end of the
    space hundreds of times as often as the other.
    """
    sampler = sampler.of if isinstance(sampler, EndsSampler) else sampler
    groups = getattr(sampler, "groups", ())
    anchors = {anchor.id: anchor.name for anchor in costs.space.anchors}
    crowded = [
        f"{name} is one of {len(group)} stitches in its group"
        for anchor, name in anchors.items()
        for group in groups
        if anchor in group and len(group) > 1
    ]
    if not crowded:
        return ""
    return (
        f"sampler.step={sampler.step:g} is wide for stitches of {min(costs.gflops):.3g} to "
        f"{max(costs.gflops):.3g} GFLOPs ({len(groups)} groups): {', '.join(crowded)}, so it is "
        "drawn less often than if it had a group to itself. tools/list_stitches.py shows what "
        "another step gives"
    )


def ends_plan(sampler: EndsSampler, space: StitchSpace) -> str:
    """Says how often the ends are trained, in one sentence."""
    turns = []
    if sampler.first:
        turns.append(f"the first {sampler.first} iterations are theirs alone")
    if sampler.period:
        turns.append(f"each has at least one of every {sampler.period} draws")
    names = ", ".join(space[end].name for end in sampler.ends)
    verb = "takes" if len(sampler.ends) == 1 else "take"
    return f"{names} {verb} turns: {', then '.join(turns)}."


def training_shares(sampler: Sampler, max_iter: int) -> tuple[float, ...]:
    """Share of every stitch, by id, among the draws of a training of ``max_iter`` iterations."""
    if isinstance(sampler, EndsSampler):
        return sampler.shares(max_iter)
    return sampler.probabilities()


def mean_gflops(shares: Sequence[float], costs: CostTable) -> float:
    """Mean GFLOPs of an image in training, by the stitches' :func:`training_shares`."""
    return sum(share * gflops for share, gflops in zip(shares, costs.gflops, strict=True))

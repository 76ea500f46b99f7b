"""The variants of the study: what each changes in the paper's recipe, and its training cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from snnet_vitdet.engine import (
    TrainSettings,
    build_sampler,
    load_config,
    mean_gflops,
    training_shares,
)
from snnet_vitdet.engine.distillation import distils, teacher_of
from snnet_vitdet.modeling import baseline_cost, stitch_costs
from snnet_vitdet.stitching import CostTable, Sampler

__all__ = ["ALONE", "CONFIGS", "PAPER", "ROOT", "VARIANTS", "Variant", "cost_of", "training_cost"]

ROOT = Path(__file__).resolve().parents[2]

CONFIGS = {
    "small": "research/proxy/configs/mask_rcnn_vitdet_proxy_s.py",
    "large": "research/proxy/configs/mask_rcnn_vitdet_proxy_l.py",
    "supernet": "research/proxy/configs/mask_rcnn_snnet_proxy.py",
}
"""Config files as paths from the repository: one for each ViT alone, one for the supernet."""


@dataclass(frozen=True)
class Variant:
    """One way to train the supernet, or one ViT alone.

    Attributes:
        name: Name of its rows and folders.
        question: The question that it answers.
        overrides: What it changes in the config.
        length: Number of iterations, relative to that of the other trainings.
        vit: ``small`` or ``large`` for that ViT alone; None for the supernet.
    """

    name: str
    question: str
    overrides: tuple[str, ...] = ()
    length: float = 1.0
    vit: str | None = None


ALONE = {
    vit: Variant(f"{vit}_alone", "What is everything else compared with?", vit=vit)
    for vit in ("small", "large")
}
"""Each ViT trained alone, in every study."""

PAPER = Variant("paper", "How much do the ends lose in the paper's recipe?")

_NET = "model.backbone.net"
_SMALL_EVERY_2 = ("train.ends.period=2", "train.ends.stitches=S")

_CAUSES = (
    Variant(
        "ends_alone",
        "Is the cause the many stitches, or sharing pyramid and heads? Only S and L are trained.",
        (f"{_NET}.kinds=[S,L]", "sweep.stitch_ids=all"),
    ),
    Variant(
        "full_rank",
        "Are the stitching layers, including the exit projection, too stiff?",
        (f"{_NET}.lora_rank=0",),
    ),
    Variant(
        "own_pyramids",
        "Is it the exit projection and the pyramid? One pyramid for each exit, of its own width.",
        (
            f"{_NET}.exit_projection=False",
            "model.backbone._target_=snnet_vitdet.modeling.PyramidPerExit",
        ),
    ),
    Variant(
        "uniform",
        "Does the share of iterations of the ends matter? Here 1 of 32 each instead of 1 of 15.",
        ("sampler._target_=snnet_vitdet.stitching.UniformSampler",),
    ),
    Variant(
        "stitches_2",
        "Do successive stitches disturb each other? Two in each step, with as many images.",
        ("train.accumulation.steps=2",),
    ),
    Variant("stitches_4", "The same with four in each step.", ("train.accumulation.steps=4",)),
    Variant(
        "no_decay",
        "Is the layer-wise decay of the learning rate too strong where two ViTs meet?",
        ("optimizer.params.lr_factor_func.rates={small: 1.0, large: 1.0}",),
    ),
)

_REMEDIES = (
    Variant(
        "ends_every_4",
        "S and L in every fourth iteration each; the other stitches share the rest.",
        ("train.ends.period=4",),
    ),
    Variant("small_every_2", "S alone in every second iteration.", _SMALL_EVERY_2),
    Variant(
        "small_every_2_longer",
        "The same, which is cheaper, for as long as the paper's recipe costs.",
        _SMALL_EVERY_2,
        length=1.3,
    ),
    Variant(
        "sandwich",
        "S, L and two others in every step, in four micro-batches of one image.",
        ("train.accumulation.steps=4", "train.ends.period=4"),
    ),
    Variant(
        "ends_first",
        "The first quarter of the training with S and L alone.",
        ("train.ends.first=500",),
    ),
    Variant(
        "distillation",
        "The pyramid of the large end teaches that of every other stitch.",
        ("train.distillation.weight=1.0",),
    ),
    Variant(
        "average",
        "A moving average of the weights is evaluated.",
        ("train.ema_decay=0.99",),
    ),
    Variant("longer", "The paper's recipe for longer, at 1.3 times its cost.", length=1.3),
    Variant(
        "twice_as_long",
        "Twice the iterations, at about the cost of S alone and L alone together.",
        length=2.0,
    ),
)

_ALONE_FOR_LONGER = (
    Variant("small_alone_longer", "What does S alone gain from longer?", length=1.3, vit="small"),
    Variant("large_alone_longer", "What does L alone gain?", length=1.3, vit="large"),
    Variant("small_alone_twice_as_long", "S alone, twice as long.", length=2.0, vit="small"),
    Variant("large_alone_twice_as_long", "L alone, twice as long.", length=2.0, vit="large"),
)

VARIANTS = (PAPER, *_CAUSES, *_REMEDIES, *_ALONE_FOR_LONGER)
"""All variants; each is run beside the two ViTs alone."""


def training_cost(config: DictConfig, costs: CostTable) -> float:
    """Mean arithmetic of an image in training, relative to training the large ViT alone.

    Args:
        config: The config of a training of the supernet.
        costs: Costs of its stitches; the most expensive one is the large ViT.
    """
    sampler = build_sampler(config, costs)
    mean = mean_gflops(training_shares(sampler, config.train.max_iter), costs)
    mean += _distillation_cost(config.train, costs, sampler)
    return mean / max(costs.gflops)


def _distillation_cost(train: TrainSettings, costs: CostTable, sampler: Sampler) -> float:
    """Mean cost per draw that distillation adds to a training, in GFLOPs of a forward pass.

    A forward with backward costs three forward passes. The teacher makes one forward, without the
    heads: a third. The student's pyramid runs again, forward and back to its input: two thirds.
    The draws of the training are counted, since ``every`` may coincide with the turns of the ends.

    Args:
        train: ``train`` of the config.
        costs: Costs of every stitch.
        sampler: Sampler of the training.
    """
    settings = train.distillation
    if not distils(settings):
        return 0.0
    teacher, exits = teacher_of(costs.space, costs.gflops), costs.parts.exits
    heads = exits[costs.space[teacher].exit]
    forward = costs[teacher].gflops - heads["rpn"].gflops - heads["roi_heads"].gflops
    if settings.rpn_weight:
        forward += heads["rpn"].gflops
    added = [forward / 3] * len(costs.space)
    if settings.weight:
        added = [
            forward / 3 + exits[stitch.exit]["pyramid"].gflops * 2 / 3 for stitch in costs.space
        ]
    added[teacher] = 0.0
    slots = range(train.accumulation.steps if train.accumulation.stitch == "own" else 1)
    iterations = range(0, train.max_iter, settings.every)
    total = sum(added[sampler(i, slot)] for i in iterations for slot in slots)
    return total / (train.max_iter * len(slots))


def cost_of(variant: Variant, overrides: Sequence[str], max_iter: int) -> float:
    """Arithmetic of a whole training, relative to the large ViT alone of the usual length.

    Args:
        variant: What is trained.
        overrides: Overrides of all configs.
        max_iter: The usual number of iterations.
    """
    own = [*overrides, f"train.max_iter={max_iter}", *variant.overrides]
    config = load_config(str(ROOT / CONFIGS[variant.vit or "supernet"]), own)
    if variant.vit is None:
        return variant.length * training_cost(config, stitch_costs(config.model))
    large = load_config(str(ROOT / CONFIGS["large"]), list(overrides))
    return variant.length * baseline_cost(config.model).gflops / baseline_cost(large.model).gflops

"""The variants of the proxy study: what each changes of the paper's recipe, and why."""

from dataclasses import dataclass

__all__ = ["ALONE", "PAPER", "VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """One way to train the supernet, or a ViT alone.

    Attributes:
        name: Of its rows and folders.
        question: What it is to answer.
        overrides: What it changes of ``configs/proxy/mask_rcnn_snnet_proxy.py``.
        length: Of its training over that of the others.
        vit: ``small`` or ``large``: the ViT that is trained alone, for comparison; None: the
            supernet.
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

_NET, _PYRAMID = "model.backbone.net", "model.backbone._target_=snnet_vitdet.modeling"
_SMALL_EVERY_2 = ("train.ends.period=2", "train.ends.stitches=S")
_OWN_PYRAMIDS = (f"{_NET}.exit_projection=False", f"{_PYRAMID}.PyramidPerExit")

_CAUSES = (
    Variant(
        "ends_alone",
        "Are the many stitches what costs, or sharing pyramid and heads? Only S and L are trained.",
        (f"{_NET}.kinds=[S,L]", "sweep.stitch_ids=all"),
    ),
    Variant(
        "full_rank",
        "Are the stitching layers, the exit projection among them, too stiff?",
        (f"{_NET}.lora_rank=0",),
    ),
    Variant(
        "own_pyramids",
        "Is it the projection and the pyramid behind it? One pyramid for each exit, of its width.",
        _OWN_PYRAMIDS,
    ),
    Variant(
        "uniform",
        "Does the share of iterations that the ends get matter? Here 1 of 32 each, not 1 of 15.",
        ("sampler._target_=snnet_vitdet.stitching.UniformSampler",),
    ),
    Variant(
        "stitches_2",
        "Do stitches that follow each other disturb each other? Two in each step, as many images.",
        ("train.accumulation.steps=2",),
    ),
    Variant("stitches_4", "The same with four in each step.", ("train.accumulation.steps=4",)),
    Variant(
        "no_decay",
        "Is the layer-wise decay of the learning rate too strong where two ViTs have to meet?",
        ("optimizer.params.lr_factor_func.rates={small: 1.0, large: 1.0}",),
    ),
)

_REMEDIES = (
    Variant(
        "ends_every_4",
        "S and L in every fourth iteration each; the others share what is left.",
        ("train.ends.period=4",),
    ),
    Variant(
        "small_every_2",
        "S alone in every second iteration.",
        _SMALL_EVERY_2,
    ),
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
        "A moving average of the weights is what is evaluated.",
        ("train.ema_decay=0.99",),
    ),
    Variant(
        "longer",
        "The paper's recipe for longer, at 1.3 times its cost.",
        length=1.3,
    ),
    Variant(
        "twice_as_long",
        "Twice the iterations, at about the cost of S alone and L alone together.",
        length=2.0,
    ),
)

_ALONE_FOR_LONGER = (
    Variant("small_alone_longer", "What does S alone gain from longer?", length=1.3, vit="small"),
    Variant("large_alone_longer", "What does L alone?", length=1.3, vit="large"),
    Variant("small_alone_twice_as_long", "S alone, twice as long.", length=2.0, vit="small"),
    Variant("large_alone_twice_as_long", "L alone, twice as long.", length=2.0, vit="large"),
)

VARIANTS = (PAPER, *_CAUSES, *_REMEDIES, *_ALONE_FOR_LONGER)

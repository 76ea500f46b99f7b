"""The variants of the proxy study: what each changes of the paper's recipe, and why."""

from dataclasses import dataclass

__all__ = ["PAPER", "VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """One way to train the supernet.

    Attributes:
        name: Of its rows and folders.
        question: What it is to answer.
        overrides: What it changes of ``configs/proxy/mask_rcnn_snnet_proxy.py``.
    """

    name: str
    question: str
    overrides: tuple[str, ...] = ()


PAPER = Variant("paper", "How much do the ends lose in the paper's recipe?")

_NET, _UNIFORM = "model.backbone.net", "snnet_vitdet.stitching.UniformSampler"

VARIANTS = (
    PAPER,
    Variant(
        "full_rank",
        "Is the exit projection, with the other stitching layers, too stiff?",
        (f"{_NET}.lora_rank=0",),
    ),
    Variant(
        "uniform",
        "Does the share of iterations that the ends get matter? Here 1 of 14 each, not 1 of 9.",
        (f"sampler._target_={_UNIFORM}",),
    ),
    Variant(
        "stitches_2",
        "Do stitches that follow each other disturb each other? Two in each step, as many images.",
        ("train.accumulation.steps=2",),
    ),
    Variant(
        "stitches_4",
        "The same with four in each step.",
        ("train.accumulation.steps=4",),
    ),
    Variant(
        "no_decay",
        "Is the layer-wise decay of the learning rate too strong where two ViTs have to meet?",
        ("optimizer.params.lr_factor_func.rates={small: 1.0, large: 1.0}",),
    ),
    Variant(
        "ends_alone",
        "Are the many stitches what costs, or sharing pyramid and heads? Only S and L are trained.",
        (f"{_NET}.kinds=[S,L]",),
    ),
)

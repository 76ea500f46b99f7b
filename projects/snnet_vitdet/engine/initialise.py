"""The start of a training: pretrained anchors, and stitching layers fitted between them.

A plain step on a model that is not yet wrapped for several processes. The processes share the
images and add their sums, so that all end with the same solution.
"""

import logging
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import AnchorViT, StitchedViT, load_anchor_weights
from snnet_vitdet.stitching import SMALL, TokenMoments

__all__ = ["anchors_of", "fit_stitching_layers", "load_anchors"]

logger = logging.getLogger(__name__)


def anchors_of(model: nn.Module) -> dict[str, AnchorViT]:
    """The anchors of a detector by the names that configs use for them.

    Args:
        model: A detector with ``backbone.net`` a StitchedViT (``small`` and ``large``) or an
            AnchorViT (``net``); other backbones have none.
    """
    net = model.backbone.net
    if isinstance(net, StitchedViT):
        return {"small": net.small, "large": net.large}
    return {"net": net} if isinstance(net, AnchorViT) else {}


def load_anchors(model: nn.Module, weights: Mapping[str, str | None]) -> None:
    """Loads the pretrained weights of every anchor of a detector.

    Args:
        model: A detector.
        weights: File or timm name by anchor as :func:`anchors_of` names them; see
            :func:`snnet_vitdet.modeling.load_anchor_weights`.

    Raises:
        InputError: For weights of an anchor the model does not have, or that do not fit it.
    """
    anchors = anchors_of(model)
    unknown = weights.keys() - anchors.keys()
    if unknown:
        raise InputError(f"init.weights names {sorted(unknown)}, but the model has {list(anchors)}")
    pixels = [values.flatten().tolist() for values in (model.pixel_mean, model.pixel_std)]
    for name, anchor in anchors.items():
        if weights.get(name):
            load_anchor_weights(anchor, weights[name], *pixels)
        else:
            logger.info("The anchor %r starts from random weights.", name)


@torch.no_grad()
def fit_stitching_layers(model: nn.Module, samples: Iterable[dict]) -> dict[str, float]:
    """Fits all stitching layers by least squares on the anchors' tokens (paper, equation 2).

    One forward of each anchor and image serves every layer. Must be called by all processes, each
    with its own share of the samples.

    Args:
        model: A detectron2 R-CNN on a StitchedViT, with its anchors loaded.
        samples: Mapped training samples, as the model takes them.

    Returns:
        The share of the target's variance that is left, by layer.

    Raises:
        InputError: If there is no sample.
    """
    backbone: StitchedViT = model.backbone.net
    layers = dict(backbone.stitching_layers.items())
    widths = (backbone.small.embed_dim, backbone.large.embed_dim)
    cuts = sorted({transition.cut for transition in layers})
    moments = {cut: TokenMoments(widths, model.device) for cut in cuts}
    training = model.training
    model.eval()  # stochastic depth would add noise to the tokens
    try:
        for sample in samples:
            images = model.preprocess_image([sample]).tensor
            for cut, small, large in backbone.stage_tokens(images):
                if cut in moments:
                    moments[cut].update(small, large)
    finally:
        model.train(training)
    for moment in moments.values():
        if comm.get_world_size() > 1:
            dist.all_reduce(moment.gram)
        if moment.num_tokens == 0:
            raise InputError("the stitching layers cannot be fitted: there is no training image")
    residuals = {}
    for transition, layer in layers.items():
        moment = moments[transition.cut]
        fit = moment.solve(transition.source)
        layer.load_fit(fit.weight, fit.bias)
        direction = "small to large" if transition.source == SMALL else "large to small"
        residuals[f"cut {transition.cut} {direction}"] = moment.residual(transition.source, fit)
    logger.info(
        "Fitted %d stitching layers by least squares; share of the variance left: %s.",
        len(layers),
        ", ".join(f"{name} {value:.3f}" for name, value in residuals.items()),
    )
    return residuals

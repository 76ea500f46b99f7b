"""The start of a training: pretrained anchors, and stitching layers fitted between them.

A plain step on a model that is not yet wrapped for several processes. The processes share the
images and add their sums, so that all end with the same solution.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import AnchorViT, StitchedViT, load_anchor_weights
from snnet_vitdet.stitching import SMALL, AffineMap, TokenMoments, Transition

from .precision import autocast, machine_epsilon

__all__ = ["FitResidual", "anchors_of", "fit_stitching_layers", "load_anchors"]

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


class FitResidual(NamedTuple):
    """Share of the target's variance that a stitching layer leaves; 1 is no better than the mean.

    Attributes:
        exact: By the least-squares solution in float64.
        as_run: By the layer, in the precision that it runs in.
    """

    exact: float
    as_run: float


@torch.no_grad()
def fit_stitching_layers(
    model: nn.Module,
    samples: Iterable[dict],
    held_out: Iterable[dict],
    precision: torch.dtype = torch.float32,
) -> dict[str, FitResidual]:
    """Fits all stitching layers by least squares on the anchors' tokens (paper, equation 2).

    One forward of each anchor and image serves every layer. Tokens of the padding beyond an image
    are left out. Must be called by all processes, each with its own share of the samples.

    Args:
        model: A detectron2 R-CNN on a StitchedViT, with its anchors loaded.
        samples: Mapped training samples, as the model takes them.
        held_out: Other samples, on which the layers are judged.
        precision: That the layers will run in: the fit takes its rounding into account.

    Returns:
        What each layer leaves of its target on the held-out samples, by the name of the layer.

    Raises:
        InputError: If there is no sample.
    """
    backbone: StitchedViT = model.backbone.net
    layers = dict(backbone.stitching_layers.items())
    widths = (backbone.small.embed_dim, backbone.large.embed_dim)
    moments = {cut: TokenMoments(widths, model.device) for cut in {t.cut for t in layers}}
    for cut, *tokens in _tokens(model, samples):
        if cut in moments:
            moments[cut].update(*tokens)
    fits = {}
    for moment in moments.values():
        if comm.get_world_size() > 1:
            dist.all_reduce(moment.gram)
        if moment.num_tokens == 0:
            raise InputError("the stitching layers cannot be fitted: there is no training image")
    for transition, layer in layers.items():
        moment = moments[transition.cut]
        fits[transition] = moment.solve(transition.source, machine_epsilon(precision))
        layer.load_fit(*fits[transition])
    residuals = _residuals(model, held_out, fits, moments, precision)
    _log_residuals(residuals, precision)
    return residuals


def _tokens(
    model: nn.Module, samples: Iterable[dict]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Cut, and the tokens of both anchors before it, of each image: (rows, columns, width)."""
    net, training = model.backbone.net, model.training
    model.eval()  # stochastic depth would add noise to the tokens
    try:
        for sample in samples:
            images = model.preprocess_image([sample])
            # Those of the image alone, of whole patches: what pads it to a square is the same
            # everywhere, and no stitch has to carry it over.
            rows, columns = (max(1, side // net.small.patch_size) for side in images.image_sizes[0])
            for cut, small, large in net.stage_tokens(images.tensor):
                yield cut, small[0, :rows, :columns], large[0, :rows, :columns]
    finally:
        model.train(training)


def _residuals(
    model: nn.Module,
    samples: Iterable[dict],
    fits: Mapping[Transition, AffineMap],
    moments: Mapping[int, TokenMoments],
    precision: torch.dtype,
) -> dict[str, FitResidual]:
    """What is left of the held-out tokens by each solution and by each layer that has taken it."""
    layers = model.backbone.net.stitching_layers
    # Squared errors of the solution, of the layer, and of the mean of what was fitted.
    errors = {transition: torch.zeros(3, device=model.device).double() for transition in fits}
    with autocast(model.device, precision):
        for cut, *tokens in _tokens(model, samples):
            for transition in (t for t in fits if t.cut == cut):
                source, target = tokens[transition.source], tokens[transition.target].double()
                fit, mean = fits[transition], moments[cut].mean(transition.target)
                as_run = layers[transition](source).double()
                exact = source.double() @ fit.weight + fit.bias
                for i, guess in enumerate((exact, as_run, mean)):
                    errors[transition][i] += (guess - target).square().sum()
    residuals = {}
    for transition, sums in errors.items():
        if comm.get_world_size() > 1:
            dist.all_reduce(sums)
        exact, as_run, total = sums.tolist()
        direction = "small to large" if transition.source == SMALL else "large to small"
        name = f"cut {transition.cut} {direction}"
        # Targets that do not vary leave nothing to explain.
        residuals[name] = FitResidual(exact / total, as_run / total) if total else FitResidual(0, 0)
    return residuals


def _log_residuals(residuals: Mapping[str, FitResidual], precision: torch.dtype) -> None:
    name = str(precision).removeprefix("torch.")
    logger.info(
        "Fitted %d stitching layers by least squares; share of the variance left on held-out "
        "images, exact and as run in %s: %s.",
        len(residuals),
        name,
        ", ".join(f"{key} {exact:.3f} {run:.3f}" for key, (exact, run) in residuals.items()),
    )
    # Not a number is no less a failure.
    bad = {key: run for key, (_, run) in residuals.items() if not run <= 1}
    if bad:
        logger.warning(
            "Stitching layers that start worse than the mean of their targets, by the share of the "
            "variance that they leave in %s: %s. More images (init.num_images) make a better fit.",
            name,
            ", ".join(f"{key} {run:.3f}" for key, run in bad.items()),
        )

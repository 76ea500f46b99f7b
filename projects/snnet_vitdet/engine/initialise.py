"""The start of a training: pretrained anchors or trained detectors, fitted stitching layers.

All of it works on a model that is not yet wrapped for several processes.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from detectron2.config import instantiate
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm
from torch import nn

from snnet_vitdet.data import category_names
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import (
    AnchorViT,
    JoinedRCNN,
    StitchedViT,
    find_stitched_vit,
    is_joined,
    load_anchor_weights,
)
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.stitching import ANCHOR_NAMES, LARGE, SMALL, AffineMap, TokenMoments, Transition
from snnet_vitdet.validators import written

from .checkpointer import PIXELS, ClassNames, DetectorCheckpointer
from .precision import autocast, machine_epsilon
from .settings import Config

__all__ = [
    "FitResidual",
    "anchors_of",
    "check_detectors",
    "fit_stitching_layers",
    "initialise_weights",
    "load_anchors",
    "load_detectors",
]

logger = logging.getLogger(__name__)


def initialise_weights(
    config: Config, model: nn.Module, data_loader: Iterable, precision: torch.dtype
) -> None:
    """Loads pretrained weights as ``init`` says, and fits the stitching layers.

    Args:
        config: The whole config.
        model: The detector.
        data_loader: The training loader, which gives the images to fit on.
        precision: Precision in which the stitching layers will run.

    Raises:
        InputError: If weights are missing or do not fit, or there is no image to fit on.
    """
    mapper = None
    if isinstance(model, JoinedRCNN):
        load_detectors(model, config.init.detectors, category_names(config.data.train_json))
        # Two trained detectors are fitted on whole images, as in inference, not on random crops.
        mapper = instantiate(config.dataloader.test.mapper)
    else:
        load_anchors(model, config.init.weights)
    if find_stitched_vit(model) and config.init.stitching_layers == "least_squares":
        num_images = config.init.num_images
        fit_stitching_layers(
            model,
            data_loader.fit_samples(num_images, mapper),
            data_loader.fit_samples(num_images, mapper, held_out=True),
            precision,
        )


def anchors_of(model: nn.Module) -> dict[str, AnchorViT]:
    """The anchors of a detector by their names in configs.

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
        exact: Share left by the least-squares solution in float64.
        as_run: Share left by the layer in the precision that it runs in.
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
    are left out. All processes must call it, each with its own share of the samples: they add their
    sums, so that all get the same solution.

    Args:
        model: A detectron2 R-CNN on a StitchedViT, with its anchors loaded.
        samples: Mapped training samples, as the model takes them.
        held_out: Other samples, on which the layers are judged.
        precision: Precision the layers will run in; the fit takes its rounding into account.

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
    for moment in moments.values():
        if comm.get_world_size() > 1:
            dist.all_reduce(moment.gram)
        if moment.num_tokens == 0:
            raise InputError("the stitching layers cannot be fitted: there is no training image")
    fits = {}
    for transition, layer in layers.items():
        moment = moments[transition.cut]
        fits[transition] = moment.solve(transition.source, machine_epsilon(precision))
        layer.load_fit(*fits[transition])
    residuals = _residuals(model, held_out, fits, moments, precision)
    _log_residuals(residuals, str(precision).removeprefix("torch."))
    return residuals


def _tokens(
    model: nn.Module, samples: Iterable[dict]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Cut, and both anchors' tokens before it, of each image: (rows, columns, width)."""
    net, training = model.backbone.net, model.training
    model.eval()  # stochastic depth would add noise to the tokens
    try:
        for sample in samples:
            images = model.preprocess_image([sample])
            # Whole patches of the image alone: the padding to a square is the same everywhere, and
            # no stitch has to carry it over.
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
    """Residuals of each solution, and of each layer that has taken it, on held-out samples."""
    layers = model.backbone.net.stitching_layers
    # Squared errors of the solution, of the layer, and of the mean of the fitted tokens.
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
        direction = f"{ANCHOR_NAMES[transition.source]} to {ANCHOR_NAMES[transition.target]}"
        # Targets that do not vary leave nothing to explain.
        residual = FitResidual(exact / total, as_run / total) if total else FitResidual(0, 0)
        residuals[f"cut {transition.cut} {direction}"] = residual
    return residuals


def _log_residuals(residuals: Mapping[str, FitResidual], precision: str) -> None:
    logger.info(
        "Fitted %d stitching layers by least squares; share of the variance left on held-out "
        "images, exact and as run in %s: %s.",
        len(residuals),
        precision,
        ", ".join(f"{key} {exact:.3f} {run:.3f}" for key, (exact, run) in residuals.items()),
    )
    # NaN is a failure, too.
    bad = {key: run for key, (_, run) in residuals.items() if not run <= 1}
    if bad:
        logger.warning(
            "Stitching layers that start worse than the mean of their targets, by the share of the "
            "variance that they leave in %s: %s. More images (init.num_images) make a better fit.",
            precision,
            ", ".join(f"{key} {run:.3f}" for key, run in bad.items()),
        )


def check_detectors(config: Config, *, data_there: bool) -> None:
    """Checks what :func:`load_detectors` checks, and the image format, on the meta device.

    Args:
        config: The whole config of a training that is about to start.
        data_there: Whether the data exist; their classes are then compared with the detectors'.

    Raises:
        InputError: If ``init.detectors`` or ``init.weights`` is set for a detector that is not made
            of it; if one of the detectors cannot be read, is of another model or of other classes,
            or was trained on images in another format than this config gives.
    """
    given = config.init.get("detectors") or {}
    sources = {key: value for key, value in given.items() if value}
    if not is_joined(config.model):
        if sources:
            raise InputError(
                f"init.detectors.{next(iter(sources))} is set, but the model of this config is not "
                "joined of two detectors: take a config of configs/join, or leave it out"
            )
        return
    for key, value in config.init.weights.items():
        if value:
            raise InputError(
                f"init.weights.{key}={value} is set, but a joined detector takes its ViTs from the "
                "two detectors of init.detectors: leave it out"
            )
    class_names = category_names(config.data.test_json) if data_there else None
    formats = load_detectors(build_on_meta(config.model), sources, class_names)
    here = {key: config.model[key] for key in (*PIXELS, "input_format")}
    here["image_format"] = config.dataloader.test.mapper.image_format
    for name, values in formats.items():
        for key, value in values.items():
            if not _same(value, here[key]):
                raise InputError(
                    f"init.detectors.{name}={sources[name]} was trained with {key} "
                    f"{written(value)}, and this config has {written(here[key])}: give a config "
                    "that shows images as both detectors have seen them"
                )


def load_detectors(
    model: JoinedRCNN, sources: Mapping[str, str | None], class_names: Sequence[str] | None
) -> dict[str, dict]:
    """Loads the two trained detectors of a joined one, each as a whole.

    Args:
        model: The joined detector.
        sources: By ``small`` and ``large``, the checkpoint of a detector on that ViT alone: of a
            training, exported by tools/export_stitch.py, or of detectron2's own ViTDet.
        class_names: Class names of the data, in the order of the model's outputs; None compares
            none.

    Returns:
        The known parts of the image format that each was trained with, by ``small`` and ``large``.

    Raises:
        InputError: If one is missing, cannot be read, is of another model or of other classes.
    """
    for name in ANCHOR_NAMES:
        if not sources.get(name):
            raise InputError(
                f"init.detectors.{name} is not set: give the checkpoint of a detector on the "
                f"{name} ViT alone"
            )
    formats = {}
    for anchor, name in enumerate(ANCHOR_NAMES):
        try:
            formats[name] = _load_one(model.detector(anchor), sources[name], class_names)
        except InputError as error:
            if _are_swapped(model, sources, class_names):
                raise InputError(
                    f"init.detectors.small={sources['small']} is a detector on the large ViT, and "
                    f"init.detectors.large={sources['large']} one on the small ViT: swap them"
                ) from error
            raise InputError(f"init.detectors.{name}={sources[name]}: {error}") from error
    return formats


def _load_one(
    detector: GeneralizedRCNN, source: str, class_names: Sequence[str] | None
) -> dict[str, object]:
    parts = {} if class_names is None else {"classes": _Classes(class_names)}
    with warnings.catch_warnings():
        # torch's warning for each parameter on the meta device.
        warnings.filterwarnings("ignore", ".*to a meta parameter.*")
        return DetectorCheckpointer(detector, **parts).load(source, averaged=True)["images"]


def _are_swapped(
    model: JoinedRCNN, sources: Mapping[str, str], class_names: Sequence[str] | None
) -> bool:
    try:
        _load_one(model.detector(LARGE), sources["small"], class_names)
        _load_one(model.detector(SMALL), sources["large"], class_names)
    except InputError:
        return False
    return True


class _Classes(ClassNames):
    remedy = "join detectors of the classes of the data, in their order"


def _same(trained: object, here: object) -> bool:
    """Whether two formats, or two lists of numbers in single precision, are the same."""
    if isinstance(here, str):
        return trained == here
    try:
        return torch.tensor(trained).float().equal(torch.tensor(list(here)).float())
    except (RuntimeError, TypeError, ValueError):  # no numbers
        return False

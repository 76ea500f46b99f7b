"""In-place distillation: the largest stitch teaches the others while all of them are trained."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid
from detectron2.modeling.proposal_generator import RPN
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import JoinedRCNN, StitchedViT, find_stitched_vit, pyramid_of_exit
from snnet_vitdet.stitching import CostTable, StitchSpace

from .settings import Config

__all__ = [
    "InPlaceDistillation",
    "check_distillation",
    "distil",
    "distils",
    "rpn_distance",
    "teacher_of",
]

_KEY = "train.distillation"
# Box deltas of the RPN are fractions of a box's side; larger errors count linearly.
_BETA = 1 / 9


def distils(settings: Mapping[str, object]) -> bool:
    """Whether ``train.distillation`` of a config is on."""
    return bool(settings["weight"] or settings["rpn_weight"])


def teacher_of(space: StitchSpace, gflops: Sequence[float]) -> int:
    """Id of the teacher: the large anchor, or the most expensive stitch in a space without it.

    Args:
        space: The stitching space.
        gflops: Cost of every stitch, by id.
    """
    return next(
        (stitch.id for stitch in space if stitch.kind == "L"),
        max(range(len(space)), key=gflops.__getitem__),
    )


def check_distillation(settings: Mapping[str, object], model: nn.Module) -> None:
    """Checks that the model of a training can do what ``train.distillation`` asks for.

    Args:
        settings: ``train.distillation`` of the config.
        model: The detector.

    Raises:
        InputError: If it cannot.
    """
    if not distils(settings):
        return
    given = f"{_KEY} is given a weight, but"
    if find_stitched_vit(model) is None:
        raise InputError(
            f"{given} the model has no stitches, so there is no larger one to learn from: leave "
            f"{_KEY} out"
        )
    if isinstance(model, JoinedRCNN):
        raise InputError(
            f"{given} in a joined detector the heads of two detectors see other features, so that "
            f"one cannot teach all stitches: leave {_KEY} out"
        )
    if not (
        isinstance(model, GeneralizedRCNN)
        and isinstance(model.backbone, SimpleFeaturePyramid)
        and isinstance(model.proposal_generator, RPN)
    ):
        raise InputError(
            f"{given} it works in a GeneralizedRCNN on a SimpleFeaturePyramid with an RPN, and the "
            f"model is a {type(model).__name__}: leave {_KEY} out"
        )


def distil(config: Config, model: GeneralizedRCNN, costs: CostTable | None) -> None:
    """Adds distillation to a detector, if the config asks for it.

    Args:
        config: The whole config.
        model: The detector, not wrapped for several processes.
        costs: Costs of its stitches; None for a baseline, which has nothing to distil.
    """
    settings = config.train.distillation
    if distils(settings):
        InPlaceDistillation(model, teacher_of(costs.space, costs.gflops), **settings)


class InPlaceDistillation:
    """Adds losses to a detector in training that pull a stitch (the student) towards the teacher.

    The teacher is a stitch of the same detector. It runs after the student, on the same images,
    without gradient and in evaluation mode (no stochastic depth, no random draws).

    * ``loss_distill``: mean over the pyramid's levels of the mean squared difference of their
      features, which are normalised. p6 is left out, as it is a part of p5. Only the backbone
      learns from this loss: the shared pyramid could lower it by scaling the features of all
      stitches down, which the heads can undo.
    * ``loss_distill_rpn``: see :func:`rpn_distance`. All parts of the student learn from it: the
      RPN's own losses fix the scale of its outputs.

    Both are 0 where nothing is distilled, so all processes have the same losses whatever stitch
    they train. Forward hooks add them, so they are outputs of the detector, where a wrapper for
    several processes finds them. Nothing is added in evaluation mode or to the state.
    """

    def __init__(
        self,
        model: GeneralizedRCNN,
        teacher: int,
        weight: float = 1.0,
        rpn_weight: float = 0.0,
        every: int = 1,
    ) -> None:
        """
        Args:
            model: The detector on a stitched backbone, not wrapped; only hooks are added.
            teacher: Id of the stitch that teaches.
            weight: Weight of ``loss_distill``; 0 leaves it out.
            rpn_weight: Weight of ``loss_distill_rpn``; 0 leaves it out.
            every: Distils in iterations that are multiples of it, by detectron2's event storage.

        Raises:
            InputError: As :func:`check_distillation`.
        """
        check_distillation({"weight": weight, "rpn_weight": rpn_weight, "every": every}, model)
        self.teacher = teacher
        self.every = every
        self._weights = {"loss_distill": weight, "loss_distill_rpn": rpn_weight}
        self._model = model
        self._stitched = find_stitched_vit(model)
        # State of the current forward.
        self._losses: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, torch.Tensor] = {}
        self._taught: dict[str, torch.Tensor] | None = None
        self._stitched.register_forward_hook(self._after_net)
        model.backbone.register_forward_hook(self._after_backbone)
        if rpn_weight:
            model.proposal_generator.rpn_head.register_forward_hook(self._after_rpn_head)
        model.register_forward_hook(self._after_model)

    def _after_net(
        self, net: StitchedViT, inputs: tuple[torch.Tensor], outputs: dict[str, torch.Tensor]
    ) -> None:
        if self._model.training:
            self._tokens = outputs

    def _after_backbone(
        self,
        backbone: SimpleFeaturePyramid,
        inputs: tuple[torch.Tensor],
        features: dict[str, torch.Tensor],
    ) -> None:
        tokens, self._tokens = self._tokens, {}
        self._losses, self._taught = {}, None
        if not self._model.training:
            return
        zero = features[next(iter(features))].new_zeros((), dtype=torch.float32)
        self._losses = {name: zero for name, weight in self._weights.items() if weight}
        teaches = self._stitched.stitch.id == self.teacher
        if teaches or get_event_storage().iter % self.every:
            return
        with (
            self._without_trace(),
            self._stitched.using_stitch(self.teacher),
            _evaluating(backbone),
        ):
            # Not the module's call, which would run this hook again.
            self._taught = backbone.forward(*inputs)
        self._tokens = {}
        if weight := self._weights["loss_distill"]:
            pyramid = pyramid_of_exit(backbone, self._stitched.stitch.exit)
            own = _as_given(pyramid, tokens[backbone.in_feature])
            # The levels come first; p6, made of the last one, has no pair.
            pairs = zip(own, self._taught.values(), strict=False)
            distances = [F.mse_loss(level.float(), taught.float()) for level, taught in pairs]
            self._losses["loss_distill"] = weight * torch.stack(distances).mean()

    def _after_rpn_head(
        self,
        head: nn.Module,
        inputs: tuple[list[torch.Tensor]],
        outputs: tuple[list[torch.Tensor], list[torch.Tensor]],
    ) -> None:
        if self._taught is None:
            return
        levels = [self._taught[name] for name in self._model.proposal_generator.in_features]
        with self._without_trace():
            taught = head.forward(levels)
        weight = self._weights["loss_distill_rpn"]
        self._losses["loss_distill_rpn"] = weight * rpn_distance(outputs, taught)

    def _after_model(
        self, model: nn.Module, inputs: tuple[object], losses: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor] | None:
        added, self._losses, self._taught = self._losses, {}, None
        # None keeps the output.
        return {**losses, **added} if added else None

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        """No gradient, and nothing left in autocast's cache."""
        device = self._model.device.type
        # The cache would keep the teacher's cast weights, which have no gradient, and the rest of
        # the student's forward would use them.
        autocast = torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        )
        with torch.no_grad(), autocast:
            yield


def _as_given(pyramid: SimpleFeaturePyramid, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Levels of a pyramid that passes gradients on but gets none; its buffers do not change."""
    levels = []
    for stage in pyramid.stages:
        state = {name: parameter.detach() for name, parameter in stage.named_parameters()}
        state |= {name: buffer.clone() for name, buffer in stage.named_buffers()}
        levels.append(functional_call(stage, state, (tokens,)))
    return levels


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside a ``with`` block; each part returns to its own mode."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode


def rpn_distance(
    student: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    teacher: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
) -> torch.Tensor:
    """Distance of an RPN's outputs from a teacher's.

    The Kullback-Leibler divergence of objectness (the gradient of the cross entropy, and 0 where
    both agree) plus the smooth L1 distance of box deltas where the teacher sees an object. Both are
    sums over all RPN anchors, divided by the teacher's sum of objectness (at least 1): most RPN
    anchors are background, so a mean over them would shrink with the size of the image.

    Args:
        student: Logits, (N, A, H, W), and deltas, (N, A * box, H, W), of every level.
        teacher: The same without gradient.
    """
    distance, objects = 0.0, 0.0
    for logits, deltas, taught_logits, taught_deltas in zip(*student, *teacher, strict=True):
        taught_logits = taught_logits.float()
        objectness = taught_logits.sigmoid()
        divergence = _cross_entropy(logits.float(), objectness)
        divergence = divergence - _cross_entropy(taught_logits, objectness)
        errors = F.smooth_l1_loss(
            deltas.float(), taught_deltas.float(), reduction="none", beta=_BETA
        )
        errors = errors.unflatten(1, (logits.shape[1], -1)).sum(dim=2)
        distance = distance + (divergence + errors * (objectness > 0.5)).sum()
        objects = objects + objectness.sum()
    return distance / objects.clamp(min=1)


def _cross_entropy(logits: torch.Tensor, objectness: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, objectness, reduction="none")

"""The largest stitch teaches the others while all of them are trained: in-place distillation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid
from detectron2.modeling.proposal_generator import RPN
from detectron2.utils.events import get_event_storage
from omegaconf import DictConfig
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import JoinedRCNN, StitchedViT, find_stitched_vit, pyramid_of_exit
from snnet_vitdet.stitching import CostTable, Sampler, StitchSpace

__all__ = [
    "InPlaceDistillation",
    "check_distillation",
    "distillation_cost",
    "distils",
    "rpn_distance",
    "teacher_of",
]

_KEY = "train.distillation"
# Box deltas of the RPN are a fraction of a box's side; errors above this count linearly.
_BETA = 1 / 9


def distils(settings: Mapping[str, object]) -> bool:
    """Whether the ``train.distillation`` of a config asks for any."""
    return bool(settings["weight"] or settings["rpn_weight"])


def teacher_of(space: StitchSpace, gflops: Sequence[float]) -> int:
    """Id of the stitch that teaches: the large anchor, or the dearest in a space without it.

    Args:
        space: The stitching space.
        gflops: Cost of every stitch, by id.
    """
    return next(
        (stitch.id for stitch in space if stitch.kind == "L"),
        max(range(len(space)), key=gflops.__getitem__),
    )


def check_distillation(settings: Mapping[str, object], model: nn.Module) -> None:
    """Checks what a training asks for, and that its model can do it.

    Args:
        settings: ``train.distillation`` of its config.
        model: The detector.

    Raises:
        InputError: For a model that has nothing to distil.
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


class InPlaceDistillation:
    """Adds losses to those of a detector in training that pull a stitch towards the teacher.

    The teacher is a stitch of the same detector. It sees the same images without gradient, in
    evaluation mode (no stochastic depth, nothing drawn), after the stitch in effect has run.

    * ``loss_distill``: the mean over the levels of the mean squared difference of the pyramid's
      features, which end in a normalisation, so their scale is that of one. p6 is a part of p5.
      The backbone alone learns from it: the pyramid, which both share, would bring them together by
      giving features of hardly any scale to all stitches, which the heads can make up for.
    * ``loss_distill_rpn``: see :func:`rpn_distance`. Of this, all that the student runs learns: the
      scale of the RPN's outputs is held by its own losses.

    Both are 0 where nothing is distilled, so that all processes have the same losses whatever
    stitch they train. They are added by forward hooks, so they are outputs of the detector, which a
    wrapper for several processes finds. Nothing is added in evaluation mode or to the state.
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
            model: The detector, on a stitched backbone, not wrapped; stays as it is but for hooks.
            teacher: Id of the stitch that teaches.
            weight: Of ``loss_distill``; 0 leaves it out.
            rpn_weight: Of ``loss_distill_rpn``; 0 leaves it out.
            every: Distils in the iterations that it divides, by detectron2's event storage.

        Raises:
            InputError: As :func:`check_distillation`.
        """
        check_distillation({"weight": weight, "rpn_weight": rpn_weight, "every": every}, model)
        self.teacher = teacher
        self.every = every
        self._weights = {"loss_distill": weight, "loss_distill_rpn": rpn_weight}
        self._model = model
        self._stitched = find_stitched_vit(model)
        # Of the forward that is under way.
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
            # Not the module's call, whose hook this is.
            self._taught = backbone.forward(*inputs)
        self._tokens = {}
        if weight := self._weights["loss_distill"]:
            pyramid = pyramid_of_exit(backbone, self._stitched.stitch.exit)
            own = _as_given(pyramid, tokens[backbone.in_feature])
            # The levels come before what is made of the last one.
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
        # None leaves the output as it is.
        return {**losses, **added} if added else None

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        """For a forward that has no gradient and leaves nothing behind."""
        device = self._model.device.type
        # Autocast's cache would keep the teacher's weights of the lower precision, which have no
        # gradient, until the student's forward is over.
        autocast = torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        )
        with torch.no_grad(), autocast:
            yield


def _as_given(pyramid: SimpleFeaturePyramid, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The levels of a pyramid that takes no gradient itself and hands it on; its state stays."""
    levels = []
    for stage in pyramid.stages:
        state = {name: parameter.detach() for name, parameter in stage.named_parameters()}
        state |= {name: buffer.clone() for name, buffer in stage.named_buffers()}
        levels.append(functional_call(stage, state, (tokens,)))
    return levels


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; parts that were in it before stay in it after."""
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
    """How far an RPN's outputs are from a teacher's.

    Of objectness, the Kullback-Leibler divergence, whose gradient is that of the cross entropy with
    the teacher's objectness and which is 0 where they agree; of box deltas, the smooth L1 distance
    where the teacher sees an object. Both are sums over all RPN anchors, divided by the teacher's
    sum of objectness (at least 1): most RPN anchors are background, on which nothing is learnt, and
    a mean over them would be the smaller the larger the image is.

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


def distillation_cost(train: DictConfig, costs: CostTable, sampler: Sampler) -> float:
    """What distillation adds to the mean cost of the stitches in training, in GFLOPs of a forward.

    A backward pass costs two forward passes. The teacher makes a forward pass only, through all but
    the heads, so it adds a third of it to each draw that is taught. The student's pyramid is run
    again, forward and back to what goes into it: two thirds. The draws are counted, not expected:
    stitches may take turns, and ``every`` may then meet some more often than others.

    Args:
        train: Of the config.
        costs: Of every stitch.
        sampler: Of the training.
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

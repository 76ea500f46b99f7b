"""Two whole detectors, frozen, joined by stitching layers between their ViTs."""

import copy
from typing import Any

from detectron2.config import LazyCall
from detectron2.modeling import GeneralizedRCNN
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnet_vitdet.building import located
from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import ANCHOR_NAMES, SMALL

from .pyramid import PyramidPerExit
from .stitched_vit import StitchedViT

__all__ = ["HeadsPerExit", "JoinedRCNN", "PerExit", "is_joined", "join_configs"]

_HEADS = ("proposal_generator", "roi_heads")


class PerExit(nn.Module):
    """The same part of two detectors, chosen by the ViT that a stitch ends in."""

    def __init__(self, small: nn.Module, large: nn.Module) -> None:
        """
        Args:
            small: The part of the detector on the small ViT.
            large: The part of the detector on the large ViT.
        """
        super().__init__()
        self.small = small
        self.large = large

    def __getitem__(self, exit_anchor: int) -> nn.Module:
        """The part for stitches that end in an anchor."""
        return getattr(self, ANCHOR_NAMES[exit_anchor])


class HeadsPerExit(PerExit):
    """The RoI heads of two detectors of the same classes."""

    def __init__(self, small: nn.Module, large: nn.Module, num_classes: int) -> None:
        """
        Args:
            small: RoI heads of the detector on the small ViT.
            large: RoI heads of the detector on the large ViT.
            num_classes: Number of classes of both.

        Raises:
            InputError: If one of them has another number of classes.
        """
        super().__init__(small, large)
        if {small.num_classes, large.num_classes} != {num_classes}:
            raise InputError(
                f"the heads of the two detectors have {small.num_classes} and {large.num_classes} "
                f"classes, but both must have {num_classes}"
            )


class JoinedRCNN(GeneralizedRCNN):
    """Two trained detectors and every walk between their ViTs, as one detectron2 model.

    A stitch uses the pyramid, RPN and heads of the ViT that it ends in. The stitches S and L are
    therefore the two detectors, to the bit: their weights are frozen, and S and L use nothing that
    was added. Only the stitching layers are trained, and low-rank updates of the ViTs' blocks after
    the first cut, if the ViTs have any (``lora_rank``).

    ``proposal_generator`` and ``roi_heads`` are those of the stitch in effect.
    """

    def __init__(self, **kwargs: Any) -> None:
        """
        Args:
            **kwargs: Arguments of ``GeneralizedRCNN``; ``backbone`` is a :class:`PyramidPerExit`
                without an exit projection, ``proposal_generator`` and ``roi_heads`` are
                :class:`PerExit`.

        Raises:
            InputError: If these are something else.
        """
        super().__init__(**kwargs)
        parts = [self._modules[name] for name in _HEADS]
        if not (
            isinstance(self.backbone, PyramidPerExit)
            and self.backbone.net.exit_widths[SMALL] == self.backbone.net.small.embed_dim
            and (self.backbone.net.updates_after_cut or not self.backbone.net.updates())
            and all(isinstance(part, PerExit) for part in parts)
        ):
            raise InputError(
                "a JoinedRCNN has a PyramidPerExit on a StitchedViT with exit_projection=False and "
                "updates_after_cut=True, and a PerExit of proposal_generator and roi_heads: make "
                "its config by join_configs"
            )
        net = self.backbone.net
        learn = {p for p in net.stitching_layers.parameters() if p.requires_grad}
        for layer in net.updates():
            learn |= {layer.lora_a, layer.lora_b}
        for parameter in self.parameters():
            if parameter not in learn:
                parameter.requires_grad_(False)

    @property
    def proposal_generator(self) -> nn.Module:
        """The RPN of the detector whose ViT the stitch in effect ends in."""
        return self._modules["proposal_generator"][self.backbone.net.stitch.exit]

    @property
    def roi_heads(self) -> nn.Module:
        """The RoI heads of the detector whose ViT the stitch in effect ends in."""
        return self._modules["roi_heads"][self.backbone.net.stitch.exit]

    def detector(self, exit_anchor: int) -> GeneralizedRCNN:
        """One of the two detectors as detectron2 has it, sharing the parameters of this model.

        Its state dict has the names that it was trained with, besides low-rank updates.

        Args:
            exit_anchor: 0 for the detector on the small ViT, 1 for that on the large one.
        """
        rpn, heads = (self._modules[name][exit_anchor] for name in _HEADS)
        detector = GeneralizedRCNN(
            backbone=self.backbone.alone(exit_anchor),
            proposal_generator=rpn,
            roi_heads=heads,
            pixel_mean=[0.0] * len(self.pixel_mean),
            pixel_std=[1.0] * len(self.pixel_std),
            input_format=self.input_format,
            vis_period=self.vis_period,
        )
        # The same tensors, on their device.
        detector.pixel_mean, detector.pixel_std = self.pixel_mean, self.pixel_std
        detector.training = self.training  # only its own mode; its parts keep theirs
        return detector

    def train(self, mode: bool = True) -> "JoinedRCNN":
        """Sets the mode; ViTs, pyramids, norms and dropout always stay in evaluation mode.

        RPN and heads need the training mode to match proposals to objects for their losses.
        """
        super().train(mode)
        self.backbone.eval()
        for module in self.modules():
            if isinstance(module, _BatchNorm | nn.Dropout):
                module.eval()
        return self


def join_configs(small: DictConfig, large: DictConfig, **net: Any) -> DictConfig:
    """The config of the joined detector of two detectors on one ViT each.

    Args:
        small: The model config of the detector on the small ViT; not changed.
        large: The model config of the detector on the large ViT; not changed.
        **net: Arguments of :class:`StitchedViT` besides its anchors.

    Raises:
        InputError: If the two differ in a part that a joined detector has only once.
    """
    model = copy.deepcopy(large)
    model._target_ = JoinedRCNN
    for vit in (small.backbone.net, large.backbone.net):
        if vit.get("lora_rank"):
            raise InputError(
                "a detector whose ViT has low-rank updates is joined as its exported file, in "
                "which they are merged: set lora_rank=0 in its config"
            )
    shared = {"backbone", *_HEADS}
    for what, ours, theirs in (
        ("model", _without(small, shared), _without(large, shared)),
        ("model.backbone", _without(small.backbone, {"net"}), _without(large.backbone, {"net"})),
    ):
        if differing := sorted(k for k in ours | theirs if ours.get(k) != theirs.get(k)):
            raise InputError(
                f"two detectors that differ in {what}.{', '.join(differing)} cannot be joined"
            )
    out = small.backbone.net.get("out_feature", "last_feat")
    model.backbone._target_ = PyramidPerExit
    model.backbone.net = LazyCall(StitchedViT)(
        small=copy.deepcopy(small.backbone.net),
        large=copy.deepcopy(large.backbone.net),
        exit_projection=False,
        updates_after_cut=True,
        out_feature=out,
        **net,
    )
    for part, target in zip(_HEADS, (PerExit, HeadsPerExit), strict=True):
        model[part] = LazyCall(target)(
            small=copy.deepcopy(small[part]), large=copy.deepcopy(large[part])
        )
    # One key for both, at the place where every other config has it.
    heads = model.roi_heads
    heads.num_classes = copy.deepcopy(large.roi_heads._get_node("num_classes"))
    heads.small.num_classes = heads.large.num_classes = "${..num_classes}"
    return model


def is_joined(model_config: DictConfig) -> bool:
    """Whether a model config describes a :class:`JoinedRCNN`."""
    return located(model_config.get("_target_", "")) is JoinedRCNN


def _without(config: DictConfig, keys: set[str]) -> dict[str, object]:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key not in keys}

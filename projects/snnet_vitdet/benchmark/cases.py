"""What is measured: blocks, training steps, inference, a sweep; ours and detectron2's ViTDet."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import ViT
from detectron2.modeling.backbone.vit import Block as Detectron2Block
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from snnet_vitdet.engine.precision import autocast
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.one_pass import detect
from snnet_vitdet.modeling import AnchorViT, JoinedRCNN, anchor_alone, find_stitched_vit
from snnet_vitdet.modeling.anchor import Block
from snnet_vitdet.stitching import PrefixTree, merged

__all__ = ["Case", "block_cases", "inference_cases", "sweep_cases", "training_cases"]

ANCHORS = ("small", "large")


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        what: ``block``, ``training``, ``inference`` or ``sweep``.
        network: Which network, e.g. ``stitch FS-3`` or ``detectron2 ViTDet large``.
        run: Does it once.
        forward: Its forward pass alone, for what is kept for the backward pass; None for none.
        weight: How often a network of its kind does it (blocks of a ViT).
    """

    what: str
    network: str
    run: Callable[[], object]
    forward: Callable[[], torch.Tensor] | None = None
    weight: int = 1


def block_cases(
    model_config: DictConfig, device: torch.device, precision: torch.dtype, batch: int
) -> list[Case]:
    """Forward and backward of each anchor's blocks, in windows and global, ours and detectron2's.

    Ours with relative positions as the config has them, and without.
    """
    cases = []
    for name in ANCHORS:
        anchor = model_config.backbone.net[name]
        with torch.device("meta"):
            built: AnchorViT = instantiate(anchor)
        grid = built_grid(anchor)
        for window in sorted({block.window_size for block in built.blocks}, reverse=True):
            count = sum(block.window_size == window for block in built.blocks)
            side = window or grid
            sizes = dict(dim=anchor.embed_dim, num_heads=anchor.num_heads, window_size=window)
            kind = f"{name} {'window' if window else 'global'}"
            blocks = {
                f"stitched {kind}": Block(**sizes, rel_pos_size=(side, side)),
                f"stitched {kind} without relative positions": Block(**sizes),
                f"detectron2 {kind}": Detectron2Block(
                    **sizes, use_rel_pos=True, input_size=(side, side)
                ),
            }
            for network, block in blocks.items():
                block = block.to(device).train()
                x = torch.randn(batch, grid, grid, anchor.embed_dim, device=device)
                x.requires_grad_()
                forward = partial(_forward_block, block, x, device, precision)
                cases.append(Case("block", network, partial(_backward, forward), forward, count))
    return cases


def built_grid(anchor: DictConfig) -> int:
    """Side of an anchor's grid of tokens."""
    return anchor.img_size // anchor.patch_size


def _forward_block(
    block: nn.Module, x: torch.Tensor, device: torch.device, precision: torch.dtype
) -> torch.Tensor:
    with autocast(device, precision):
        return block(x)


def _backward(forward: Callable[[], torch.Tensor]) -> None:
    forward().sum().backward()


def detectron2_vitdet(model_config: DictConfig, anchor: str) -> DictConfig:
    """The config of detectron2's own ViTDet of the sizes of one anchor."""
    config = anchor_alone(model_config, anchor)
    ours = config.backbone.net
    with torch.device("meta"):
        blocks = instantiate(ours).blocks
    config.backbone.net = L(ViT)(
        img_size=ours.img_size,
        patch_size=ours.patch_size,
        embed_dim=ours.embed_dim,
        depth=ours.depth,
        num_heads=ours.num_heads,
        drop_path_rate=ours.get("drop_path_rate", 0.0),
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        window_size=ours.get("window_size", 14),
        window_block_indexes=[i for i, block in enumerate(blocks) if block.window_size],
        use_rel_pos=bool(ours.get("use_rel_pos", True)),
        pretrain_img_size=ours.get("pretrain_img_size", 224),
        out_feature="last_feat",
    )
    return config


def _detectors(
    model_config: DictConfig, device: torch.device, stitches: Iterable[str | int]
) -> Iterable[tuple[str, nn.Module, Callable[[], None]]]:
    """Name, detector and what puts it into effect: each stitch, then detectron2's own."""
    model = instantiate(model_config).to(device)
    backbone = find_stitched_vit(model)
    for stitch in stitches:
        name = f"stitch {backbone.space[stitch].name}"
        yield name, model, partial(backbone.set_stitch, stitch)
    for anchor in ANCHORS:
        own = instantiate(detectron2_vitdet(copy.deepcopy(model_config), anchor)).to(device)
        yield f"detectron2 ViTDet {anchor}", own, lambda: None


def training_cases(
    model_config: DictConfig,
    device: torch.device,
    precision: torch.dtype,
    batch: Sequence[dict],
    stitches: Iterable[str | int],
) -> list[Case]:
    """Forward, backward and a step of AdamW on a batch of training images.

    Raises:
        InputError: If a stitch has nothing to learn.
    """
    cases = []
    for network, model, choose in _detectors(model_config, device, stitches):
        choose()
        if isinstance(model, JoinedRCNN) and not model.backbone.net.stitch.cuts:
            raise InputError(
                f"{network} of a joined detector has nothing to learn: measure the training of "
                "stitches with a cut, such as --stitches FS,SF"
            )
        parameters = tuple(p for p in model.parameters() if p.requires_grad)
        forward = partial(_losses, model, choose, batch, device, precision)
        # The learning rate is 0: every repetition has the same weights.
        optimizer = torch.optim.AdamW(parameters, lr=0.0)
        run = partial(_step, forward, optimizer)
        cases.append(Case("training", network, run, forward))
    return cases


def _losses(
    model: nn.Module,
    choose: Callable[[], object],
    batch: Sequence[dict],
    device: torch.device,
    precision: torch.dtype,
) -> torch.Tensor:
    choose()
    torch.manual_seed(0)
    with EventStorage(), autocast(device, precision):
        return sum(model.train()(list(batch)).values())


def _step(forward: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    forward().backward()
    optimizer.step()


def inference_cases(
    model_config: DictConfig,
    device: torch.device,
    precision: torch.dtype,
    batch: Sequence[dict],
    stitches: Iterable[str | int],
) -> list[Case]:
    """Detections in a batch of images."""
    return [
        Case("inference", network, partial(_infer, model, choose, batch, device, precision))
        for network, model, choose in _detectors(model_config, device, stitches)
    ]


@torch.no_grad()
def _infer(
    model: nn.Module,
    choose: Callable[[], object],
    batch: Sequence[dict],
    device: torch.device,
    precision: torch.dtype,
) -> None:
    choose()
    with autocast(device, precision):
        model.eval()([{"image": sample["image"]} for sample in batch])


def sweep_cases(
    model_config: DictConfig,
    device: torch.device,
    precision: torch.dtype,
    batch: Sequence[dict],
    stitches: Sequence[str | int],
) -> list[Case]:
    """Many stitches on a batch of images: in one pass, and each by itself. Without scoring."""
    model = instantiate(model_config).to(device)
    backbone = find_stitched_vit(model)
    tree = PrefixTree(backbone.space[stitch] for stitch in stitches)
    images = [{"image": sample["image"]} for sample in batch]

    def one_pass() -> None:
        with merged(model.eval()), autocast(device, precision):
            for _ in detect(model, images, tree):
                pass

    @torch.no_grad()
    def separate() -> None:
        with merged(model.eval()), autocast(device, precision):
            for stitch in stitches:
                with backbone.using_stitch(stitch):
                    model(images)

    network = f"{len(stitches)} stitches"
    return [
        Case("sweep", f"{network} in one pass", one_pass),
        Case("sweep", f"{network} separately", separate),
    ]

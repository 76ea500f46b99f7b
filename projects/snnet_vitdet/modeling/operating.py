"""A detector at other image sizes and with other numbers of proposals than it was trained with.

Weights do not depend on the image size, besides the relative positions of global blocks: these
belong to the training's grid, and attention interpolates them to the grid at hand.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import ImageList
from torch import nn

from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import OperatingPoint, Stitch, split_point_name

from .anchor import AnchorViT
from .attention import Attention, resize_rel_pos, resize_rel_pos_table
from .block import Block
from .joined import PerExit
from .stitched_vit import find_stitched_vit

__all__ = [
    "most_proposals",
    "operating_at",
    "patch_size_of",
    "point_of",
    "resized_positions",
    "take_position_grids",
    "tight_shape",
    "trained_with",
]


def trained_with(model: GeneralizedRCNN, stitch: Stitch) -> tuple[int, int]:
    """Image size and number of proposals of a detector that runs as it was trained.

    Args:
        model: A detector on a ViT.
        stitch: A stitch of its space; any other for a detector without stitches.

    Raises:
        InputError: If the detector does not pad images to a square.
    """
    side = model.backbone.padding_constraints["square_size"]
    if not side:
        raise InputError(
            "model.backbone.square_pad is 0, so the model has no image size of its own"
        )
    return side, _rpn_of(model, stitch).post_nms_topk[False]


def most_proposals(model: GeneralizedRCNN, stitch: Stitch) -> int:
    """Largest number of proposals that the RPN of a stitch can give: those before its NMS."""
    rpn = _rpn_of(model, stitch)
    return rpn.pre_nms_topk[False] * len(rpn.in_features)


def _rpn_of(model: GeneralizedRCNN, stitch: Stitch) -> RPN:
    rpn = model.get_submodule("proposal_generator")
    return rpn[stitch.exit] if isinstance(rpn, PerExit) else rpn


def point_of(model: GeneralizedRCNN, name: str) -> OperatingPoint:
    """The operating point of a stitched detector by its name.

    Args:
        model: The detector, running as it was trained.
        name: Such as ``FS-3@640/300``, or ``FS-3`` for the stitch as it was trained.

    Raises:
        InputError: If the detector does not pad images to a square.
        KeyError: If the detector has no such stitch.
        ValueError: If the text names no operating point.
    """
    stitch_name, given = split_point_name(name)
    backbone = find_stitched_vit(model)
    if backbone is None:
        raise KeyError("the detector has no stitches")
    stitch = backbone.space[stitch_name]
    own = trained_with(model, stitch)
    return OperatingPoint(stitch, *(given or own), is_trained=given in (None, own))


@contextmanager
def operating_at(
    model: GeneralizedRCNN,
    image_size: int | None,
    num_proposals: int | None,
    padding: str = "square",
) -> Iterator[None]:
    """Runs a detector on other images, and with other numbers of proposals, inside the context.

    Args:
        model: A detector on a ViT.
        image_size: Side in pixels of the square that images are padded to; a multiple of the
            patch size. The images must be resized to it. None changes nothing.
        num_proposals: Largest number of proposals that reach the box head. None changes nothing.
        padding: ``square``, or ``tight``: images are padded as :func:`tight_shape` says, and those
            of a batch to their largest height and width. Positions are those of the square,
            cropped, so that a square image gives the same as before.
    """
    if image_size is None and num_proposals is None and padding == "square":
        # A training enters here in each iteration: it need not search the model.
        yield
        return
    pyramids = [m for m in model.modules() if isinstance(m, SimpleFeaturePyramid)]
    # A joined detector has two.
    rpns = [module for module in model.modules() if isinstance(module, RPN)]
    sides = [pyramid._square_pad for pyramid in pyramids]
    counts = [rpn.post_nms_topk for rpn in rpns]
    with_positions: list[AnchorViT | Attention] = []
    try:
        if image_size is not None:
            for pyramid in pyramids:
                pyramid._square_pad = image_size
        if padding == "tight" and (side := pyramids[0]._square_pad):
            with_positions = list(_with_positions_of_the_image(model))
            for module in with_positions:
                module.position_side = side // patch_size_of(model)
            for pyramid in pyramids:
                pyramid._square_pad = 0
            # In place of the class's own method.
            model.preprocess_image = partial(_preprocessed, model, side)
        if num_proposals is not None:
            for rpn in rpns:
                rpn.post_nms_topk = {**rpn.post_nms_topk, False: num_proposals}
        yield
    finally:
        for pyramid, side in zip(pyramids, sides, strict=True):
            pyramid._square_pad = side
        for rpn, count in zip(rpns, counts, strict=True):
            rpn.post_nms_topk = count
        for module in with_positions:
            module.position_side = 0
        if with_positions:
            del model.preprocess_image


def _preprocessed(
    model: GeneralizedRCNN, image_size: int, batch: Sequence[dict[str, torch.Tensor]]
) -> ImageList:
    images = type(model).preprocess_image(model, batch)
    height, width = images.tensor.shape[-2:]
    rows, columns = tight_shape(model, image_size, (height, width))
    images.tensor = F.pad(images.tensor, (0, columns - width, 0, rows - height))
    return images


def tight_shape(model: GeneralizedRCNN, image_size: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width that tight padding gives an image.

    Sides become multiples of the stride of the pyramid's coarsest stage (32 pixels for ``p5``), so
    that it sees the whole image, but not longer than those of the square.

    Args:
        model: The detector.
        image_size: Side of the square in pixels.
        shape: Height and width of the image in pixels.
    """
    stride = model.backbone.padding_constraints["size_divisiblity"]  # detectron2's spelling
    height, width = (max(side, min(-(-side // stride) * stride, image_size)) for side in shape)
    return height, width


def _with_positions_of_the_image(model: nn.Module) -> Iterator[AnchorViT | Attention]:
    """The modules with positions of the whole image; those of a window do not depend on it."""
    for module in model.modules():
        if isinstance(module, AnchorViT):
            yield module
        elif isinstance(module, Block) and not module.window_size:
            yield module.attn


def patch_size_of(model: GeneralizedRCNN) -> int:
    """Side in pixels of a patch of a detector's ViT."""
    (output,) = model.backbone.net.output_shape().values()
    return output.stride


def take_position_grids(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Gives the relative positions of global blocks the sizes that they have in a state dict.

    So weights of one image size are loaded as they are into a model that is built for another.

    Args:
        model: A model on a ViT. Its optimizer keeps the parameters.
        state: State dict of the same model, built for any image size. If it is that of another
            model, such as one with other windows, nothing changes.
    """
    for _, table, saved in _other_grids(model, state):
        table.data = table.new_empty(saved.shape)


def resized_positions(
    model: nn.Module, state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Interpolates the relative positions of global blocks to the image size of a model.

    The result is what attention makes of them at this size, so a training can start from it.

    Args:
        model: A model on a ViT.
        state: As for :func:`take_position_grids`.

    Returns:
        The state dict with these tables resized.
    """
    resized = {
        key: resize_rel_pos(saved, len(table))
        if table.ndim == 2
        else resize_rel_pos_table(saved, table.shape[1:])
        for key, table, saved in _other_grids(model, state)
    }
    return {**state, **resized}


def _other_grids(
    model: nn.Module, state: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, nn.Parameter, torch.Tensor]]:
    """Name, parameter and saved value of the tables that are saved for another grid."""
    tables: dict[str, list[tuple[str, nn.Parameter, torch.Tensor]]] = {}
    with_windows = set()
    for name, block in model.named_modules():
        if not isinstance(block, Block):
            continue
        vit = name.rpartition(".blocks.")[0]
        if block.window_size:
            with_windows.add(vit)
            continue
        for key, table in block.attn.named_parameters(f"{name}.attn", recurse=False):
            if key in state:
                tables.setdefault(vit, []).append((key, table, state[key]))
    # In a ViT with windows, a table of their size may be that of a block with windows.
    windows = {2 * m.window_size - 1 for m in model.modules() if isinstance(m, AnchorViT)}
    for vit, group in tables.items():
        lengths = {_offsets(table, saved) for _, table, saved in group}
        if len(lengths) > 1 or None in lengths or (vit not in with_windows and lengths & windows):
            continue
        yield from (each for each in group if each[1].shape != each[2].shape)


def _offsets(table: torch.Tensor, saved: torch.Tensor) -> int | None:
    """Number of offsets of a saved table of relative positions; None if it is no such table."""
    if saved.ndim != table.ndim or saved.ndim < 2:
        return None
    # (offsets, C) if decomposed, (heads, offsets, offsets) if a table of biases.
    offsets = saved.shape[-1] if table.ndim == 3 else saved.shape[0]
    wanted = (table.shape[0], offsets, offsets) if table.ndim == 3 else (offsets, table.shape[1])
    return offsets if offsets % 2 and saved.shape == wanted else None

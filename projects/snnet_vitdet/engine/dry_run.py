"""Dry runs of detectron2's parts on one synthetic image: mappers, loaders, heads and evaluators.

Whether they can work with a config shows when they run, not when they are built. This runs on the
CPU and takes the time of one iteration. The ViTs are left out: they are large and check themselves.
"""

import contextlib
import copy
import io
import json
from collections.abc import Iterator, MutableMapping

import numpy as np
import torch
from detectron2.config import LazyCall
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from snnet_vitdet.building import build, check_call, located, told_as
from snnet_vitdet.data import CheckedMapper, coco_dicts, dataset_name
from snnet_vitdet.errors import InputError
from snnet_vitdet.files import temporary_folder
from snnet_vitdet.modeling import PerExit

from .memory_probe import synthetic_batch
from .settings import Config

__all__ = ["try_evaluator", "try_heads", "try_loader"]

# The size of a photograph, so that augmentations can crop it.
_HEIGHT, _WIDTH = 480, 640
_BOX = [80, 80, 320, 240]
# Augmentations are random.
_TRIES = 4


def try_loader(key: str, node: MutableMapping) -> None:
    """Builds a mapper and a loader of a config, and loads a batch with them.

    A mapper of the user's own may need more than the sample has: it is built, but not run.

    Args:
        key: The loader's name in the config.
        node: The loader; not changed.

    Raises:
        InputError: If anything goes wrong.
    """
    with _sample() as (json_file, folder):
        if "mapper" in node:
            mapper = build(f"{key}.mapper", node["mapper"])
            if type(mapper) not in (CheckedMapper, DatasetMapper):
                return
            with told_as(f"{key}.mapper cannot map an image with its config"):
                for _ in range(_TRIES):
                    mapper(coco_dicts(json_file, folder, filter_empty=False)[0])
        if "dataset" not in node:
            return
        check_call(f"{key}.dataset", node["dataset"])
        node = copy.deepcopy(node)
        node["dataset"] = LazyCall(coco_dicts)(
            json_file=json_file, image_root=folder, filter_empty=False
        )
        node["mapper"] = _unchanged
        if "num_workers" in node:
            node["num_workers"] = 0
        if "total_batch_size" in node:
            node["total_batch_size"] = comm.get_world_size()
        loader = build(key, node)
        with told_as(f"{key} gives no batch with its config"):
            next(iter(loader), None)


def _unchanged(record: dict) -> dict:
    return record


def try_heads(config: Config, model: nn.Module, training: bool) -> None:
    """Builds region proposal network and heads of a config, and runs them on random features.

    Args:
        config: The whole config.
        model: Its model; it may be on the meta device.
        training: Whether losses and their gradients are looked at as well.

    Raises:
        InputError: If anything goes wrong.
    """
    parts = {"model.proposal_generator": "proposal_generator", "model.roi_heads": "roi_heads"}
    if not all(OmegaConf.select(config, key) and hasattr(model, parts[key]) for key in parts):
        return
    rpn, heads = (build(key, OmegaConf.select(config, key)) for key in parts)
    shapes = model.backbone.output_shape()
    # So large that the coarsest level has a pixel.
    side = max(64, *(shape.stride for shape in shapes.values()))
    features = {
        name: torch.rand(1, shape.channels, side // shape.stride, side // shape.stride)
        for name, shape in shapes.items()
    }
    mapper = OmegaConf.select(config, "dataloader.train.mapper", default={})
    mask_format = mapper.get("instance_mask_format", "polygon")
    (sample,) = synthetic_batch(1, side, max(1, model.roi_heads.num_classes), mask_format)
    if not mapper.get("use_instance_mask", True):
        if model.roi_heads.mask_on:
            raise InputError(
                "dataloader.train.mapper.use_instance_mask=False, but the model has a mask head: "
                "set data.masks=false, which both follow"
            )
        sample["instances"].remove("gt_masks")
    images, targets = ImageList.from_tensors([sample["image"].float()]), [sample["instances"]]
    joined = isinstance(rpn, PerExit)
    pairs = zip(rpn.children(), heads.children(), strict=True) if joined else [(rpn, heads)]
    for pair in pairs:
        _try_pair(*pair, images, features, targets, training)


def _try_pair(
    rpn: nn.Module,
    heads: nn.Module,
    images: ImageList,
    features: dict[str, torch.Tensor],
    targets: list[Instances],
    training: bool,
) -> None:
    with EventStorage():
        if training:
            with told_as("model.proposal_generator cannot be trained with its config"):
                proposals, losses = rpn(images, features, targets)
                sum(losses.values()).backward()
            with told_as("model.roi_heads cannot be trained with its config"):
                _, losses = heads(images, features, proposals, targets)
                sum(losses.values()).backward()
        rpn.eval()
        heads.eval()
        with torch.no_grad():
            with told_as("model.proposal_generator cannot work with its config"):
                proposals, _ = rpn(images, features)
            with told_as("model.roi_heads cannot work with its config"):
                heads(images, features, proposals)


def try_evaluator(node: MutableMapping) -> None:
    """Builds the evaluator of a config, and scores a perfect detection.

    Only a COCOEvaluator is built: others may need more than the sample has.

    Args:
        node: ``dataloader.evaluator``; not changed.

    Raises:
        InputError: If anything goes wrong.
    """
    key, node = "dataloader.evaluator", copy.deepcopy(node)
    with told_as(f"{key} cannot be built from its config"):
        target = located(node.get("_target_"))
        if not callable(target):
            raise TypeError(f"{target} is not callable")
    if not isinstance(target, type) or not issubclass(target, COCOEvaluator):
        return
    data = node.get("dataset_name")
    if not isinstance(data, str):
        check_call(f"{key}.dataset_name", data)
    elif data not in DatasetCatalog:
        raise InputError(
            f"{key}.dataset_name={data} is no data set that detectron2 knows: leave it out, to "
            "evaluate on data.test_json"
        )
    with _sample() as (json_file, folder), contextlib.redirect_stdout(io.StringIO()):
        name = node["dataset_name"] = dataset_name(json_file, folder)
        # This process runs before the others of a training: it must not wait for them.
        node["distributed"] = False
        if node.get("output_dir"):
            node["output_dir"] = folder
        try:
            evaluator = build(key, node)
            with told_as(f"{key} cannot score with its config"):
                evaluator.reset()
                evaluator.process([{"image_id": 1}], [{"instances": _found()}])
                evaluator.evaluate()
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def _found() -> Instances:
    """The object of the sample, as a detector outputs it."""
    x, y, width, height = _BOX
    found = Instances((_HEIGHT, _WIDTH))
    found.pred_boxes = Boxes(torch.tensor([[x, y, x + width, y + height]]))
    found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    found.pred_masks = torch.zeros(1, _HEIGHT, _WIDTH, dtype=torch.bool)
    found.pred_masks[:, y : y + height, x : x + width] = True
    return found


@contextlib.contextmanager
def _sample() -> Iterator[tuple[str, str]]:
    """Yields the annotation file of one image with one object, and the folder of both."""
    x, y, width, height = _BOX
    outline = [x, y, x + width, y, x + width, y + height, x, y + height]
    found = {"bbox": _BOX, "segmentation": [outline], "area": width * height, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "sample.png", "height": _HEIGHT, "width": _WIDTH}],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **found}],
    }
    with temporary_folder("snnet_vitdet_") as folder:
        pixels = np.linspace(0, 255, _HEIGHT * _WIDTH * 3, dtype=np.uint8)
        Image.fromarray(pixels.reshape(_HEIGHT, _WIDTH, 3)).save(f"{folder}/sample.png")
        with open(f"{folder}/sample.json", "w", encoding="utf-8") as file:
            json.dump(content, file)
        yield f"{folder}/sample.json", folder

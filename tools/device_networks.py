"""Checks of tools/check_device.py on networks: attention, ViT and a sweep beside the CPU's."""

import copy
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from pycocotools import mask as mask_util
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark_detectors import OnePass
from device_checks import NANO, TOLERANCES, Row, Setting, make_decisive, relative_error
from snnet_vitdet.data import coco_dicts, dataset_name, generate_shapes
from snnet_vitdet.engine import load_config
from snnet_vitdet.engine.precision import autocast
from snnet_vitdet.evaluation import CocoScorer
from snnet_vitdet.evaluation.detections import unpacked
from snnet_vitdet.evaluation.one_pass import as_detections
from snnet_vitdet.modeling import (
    attention_implementation,
    find_stitched_vit,
)
from snnet_vitdet.modeling.attention import Attention
from snnet_vitdet.stitching import OperatingPoint, merged

# Smallest AP of the device's detections with those of the CPU as truth.
LOWEST_AP = {"float32": 98.0, "TF32": 90.0, "float16": 90.0, "bfloat16": 75.0}


# -------------------------------------------------------------------------------------- attention


def check_attention(setting: Setting) -> Iterator[Row]:
    """Fused attention beside the reference in float64, and the kernel that torch chooses."""
    shapes = {}
    for anchor in setting.anchors:
        with torch.device("meta"):
            blocks = instantiate(anchor).blocks
        for block in blocks:
            attention = block.attn
            side = block.window_size or anchor.img_size // anchor.patch_size
            width = attention.qkv.in_features // attention.num_heads
            shapes[side, width, attention.rel_pos] = block.window_size
    for (side, width, rel_pos), window in shapes.items():
        torch.manual_seed(0)
        size = (side, side) if rel_pos else None
        module = Attention(2 * width, 2, size, rel_pos_table=rel_pos == "table")
        make_decisive(module)
        x = torch.randn(4 if window else 1, side, side, 2 * width)
        grad = torch.randn_like(x)
        with attention_implementation(module, "reference"):
            expected = _forward_backward(copy.deepcopy(module).double(), x.double(), grad.double())
        for name, precision in setting.precisions():
            ours, inputs = copy.deepcopy(module).to(setting.device), x.to(setting.device)
            with autocast(setting.device, precision):
                with _Kernels() as kernels, torch.no_grad():
                    ours(inputs)
                found = _forward_backward(ours, inputs, grad.to(setting.device))
            error = _worst_error(found, expected)
            figure = f"error {error:.1e} (at most {TOLERANCES[name]:.0e}), kernel: "
            # Without one, torch keeps the weights of all pairs of tokens.
            figure += ", ".join(sorted(kernels.names)) or "none"
            row = f"attention, {side} x {side} tokens of {width}, {name}"
            yield row, bool(kernels.names) and error <= TOLERANCES[name], figure


class _Kernels(TorchDispatchMode):
    """Notes the kernels of fused attention that run inside it, such as ``flash_attention``."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.startswith("_scaled_dot_product_"):
            self.names.add(name.removeprefix("_scaled_dot_product_"))
        return func(*args, **(kwargs or {}))


def _forward_backward(module, x, grad):
    """Output, gradient of the input and of all parameters that took part, by name."""
    x = x.detach().requires_grad_()
    output = module(x)
    output.backward(grad.to(output.dtype))
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"output": output, "input": x.grad, **gradients}


def _worst_error(found, expected):
    """The largest relative error; small gradients count by the mean norm of all."""
    mean = np.mean([each.double().norm().item() for each in expected.values()])
    errors = []
    for name, each in expected.items():
        norm = each.detach().double().norm().item()
        error = relative_error(found[name], each) if name in found else math.inf
        errors.append(error * min(1.0, norm / (0.01 * mean)) if norm else 0.0)
    return math.inf if any(map(math.isnan, errors)) else max(errors)


# -------------------------------------------------------------------------------------------- ViT


class _Walks(nn.Module):
    """The outputs of some stitches of a ViT, side by side, on images in the type of its weights."""

    def __init__(self, net, stitches):
        super().__init__()
        self.net, self.stitches = net, stitches

    def forward(self, images):
        if not self.stitches:
            return self.net(images)["last_feat"]
        outputs = []
        for stitch in self.stitches:
            with self.net.using_stitch(stitch):
                outputs.append(*self.net(images).values())
        return torch.cat(outputs, dim=1)


def some_stitches(space) -> list[int]:
    """The anchors and the stitch in the middle of the last kind, which has the most cuts."""
    last = [stitch.id for stitch in space if stitch.kind == space.kinds[-1]]
    return sorted({*(stitch.id for stitch in space.anchors), last[len(last) // 2]})


def check_vit(setting: Setting) -> Iterator[Row]:
    """Outputs and gradients of the ViT with fused attention, beside the reference in float64."""
    net_config = setting.config.model.backbone.net
    torch.manual_seed(0)
    net = instantiate(net_config).eval()
    make_decisive(net)
    is_stitched = find_stitched_vit(net) is not None
    walks = _Walks(net, some_stitches(net.space) if is_stitched else [])
    side = min(setting.vit_size, setting.config.data.image_size)
    images = torch.randn(1, 3, side, side)
    expected = copy.deepcopy(walks).double()
    with attention_implementation(expected, "reference"):
        with torch.no_grad():
            grad = torch.randn_like(expected(images.double()))
        expected = _forward_backward(expected, images.double(), grad)
    for name, precision in setting.precisions():
        ours, inputs = copy.deepcopy(walks).to(setting.device), images.to(setting.device)
        with autocast(setting.device, precision):
            found = _forward_backward(ours, inputs, grad.to(setting.device))
        error = _worst_error(found, expected)
        figure = (
            f"error {error:.1e} (at most {TOLERANCES[name]:.0e}), output and "
            f"{len(expected) - 1} gradients at {side} pixels"
        )
        yield f"ViT, {name}", error <= TOLERANCES[name], figure


# ------------------------------------------------------------------------------------------ sweep


def check_sweep(setting: Setting) -> Iterator[Row]:
    """A sweep of three stitches of a small detector, scored with the CPU's detections as truth."""
    config = load_config(str(NANO), [])
    torch.manual_seed(0)
    model = instantiate(config.model).eval()
    make_decisive(model)
    with torch.no_grad():
        # The scores and masks of new heads are nearly equal, so that rounding would change them.
        for layer in (model.roi_heads.box_predictor.cls_score, model.roi_heads.mask_head.predictor):
            layer.weight.mul_(30)
        # An empty mask matches nothing, not even itself; these fill a third of the box or more.
        model.roi_heads.mask_head.predictor.bias.fill_(0.05)
    space = find_stitched_vit(model).space
    size, most = config.data.image_size, model.proposal_generator.post_nms_topk[False]
    points = [OperatingPoint(space[i], size, most, True) for i in some_stitches(space)]
    with tempfile.TemporaryDirectory(prefix="check_device_") as folder:
        scenes = generate_shapes(f"{folder}/scenes", 1, setting.num_images, size)
        records = coco_dicts(scenes.test_json, scenes.test_images, filter_empty=False)
        mapper = instantiate(config.dataloader.test.mapper)
        batch = [mapper(record) for record in records]
        reference = OnePass(copy.deepcopy(model), points, torch.float32)
        with attention_implementation(reference.model, "reference"):
            reference.choose_threshold(batch)
            expected = _detections(reference, batch)
        threshold = reference.model.roi_heads.box_predictor.test_score_thresh
        scorers = {
            name: _scorer_of(found, scenes, Path(folder, f"{name}.json"))
            for name, found in expected.items()
        }
        count = sum(len(each["scores"]) for each in expected.values())
        for name, precision in setting.precisions():
            ours = OnePass(copy.deepcopy(model).to(setting.device), points, precision)
            ours.model.roi_heads.box_predictor.test_score_thresh = threshold
            found = _detections(ours, batch)
            scores = [scorers[stitch].score(each) for stitch, each in found.items()]
            box, mask = (min(s[f"{task}_AP"] for s in scores) for task in ("bbox", "segm"))
            figure = (
                f"box AP {box:.1f}, mask AP {mask:.1f} (at least {LOWEST_AP[name]:.0f}) with the "
                f"CPU's {count} detections as truth"
            )
            yield f"sweep, {name}", count > 0 and min(box, mask) >= LOWEST_AP[name], figure


def _detections(one_pass, batch):
    """The detections of each stitch, as a sweep scores them."""
    with merged(one_pass.model):
        return {stitch.name: _arrays_of(found, batch) for stitch, found in one_pass(batch)}


def _arrays_of(found, batch):
    """The detections in all images of a batch, as arrays."""
    of_images = []
    for instances, sample in zip(found, batch, strict=True):
        ((_, arrays),) = as_detections(instances, sample["image_id"], [""]).packed()
        of_images.append(arrays)
    return {name: np.concatenate([each[name] for each in of_images]) for name in of_images[0]}


def _scorer_of(detections, scenes, path):
    """A scorer whose truth are some detections in generated scenes."""
    content = json.loads(Path(scenes.test_json).read_text(encoding="utf-8"))
    content["annotations"] = [
        {
            "id": number,
            "image_id": found["image_id"],
            "category_id": content["categories"][found["category_id"]]["id"],
            "bbox": found["bbox"],
            "segmentation": found["segmentation"],
            "area": float(mask_util.area(found["segmentation"])),
            "iscrowd": 0,
        }
        for number, found in enumerate(unpacked(detections), start=1)
    ]
    path.write_text(json.dumps(content), encoding="utf-8")
    return CocoScorer(dataset_name(str(path), scenes.test_images))

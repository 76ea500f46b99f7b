"""The checks of tools/check_device.py: the device beside the CPU, and one training step.

Each check yields rows: a name, whether it is as it should be (None if the device cannot do it), and
a figure.
"""

import copy
import json
import math
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torchvision
from detectron2.config import instantiate
from detectron2.layers import paste_masks_in_image
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from pycocotools import mask as mask_util
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark_cases import OnePass, optimizer_of
from snnet_vitdet.data import coco_dicts, dataset_name, generate_shapes
from snnet_vitdet.engine import load_config, set_float32_arithmetic, synthetic_batch
from snnet_vitdet.engine.memory_probe import memory_to_come
from snnet_vitdet.engine.precision import autocast, training_precision
from snnet_vitdet.engine.trainer import wrap_for_processes
from snnet_vitdet.evaluation import CocoScorer
from snnet_vitdet.evaluation.mask_rle import encode_masks
from snnet_vitdet.evaluation.one_pass import records_of
from snnet_vitdet.modeling import (
    attention_implementation,
    find_stitched_vit,
    is_joined,
    operating_at,
    stitch_costs,
)
from snnet_vitdet.modeling.attention import Attention
from snnet_vitdet.stitching import OperatingPoint, merged

NANO = Path(__file__).parent.parent / "configs/shapes/mask_rcnn_snnet_nano.py"
# Largest error of outputs and gradients over their norm. Rounding alone gives a tenth of it.
TOLERANCES = {"float32": 5e-5, "TF32": 2e-2, "float16": 2e-2, "bfloat16": 1e-1}
# Smallest AP of the device's detections with those of the CPU as truth.
LOWEST_AP = {"float32": 98.0, "TF32": 90.0, "float16": 90.0, "bfloat16": 75.0}
_SECONDS_FOR_PROCESSES = 60

Row = tuple[str, bool | None, str]


@dataclass(frozen=True)
class Setting:
    """What all checks share.

    Attributes:
        config: The whole config.
        device: The device.
        num_images: Number of images of the sweep.
        vit_size: Largest side of the images that a ViT is compared on.
    """

    config: object
    device: torch.device
    num_images: int = 4
    vit_size: int = 320

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @cached_property
    def anchors(self) -> list:
        """The configs of the ViTs."""
        net = self.config.model.backbone.net
        return [net[name] for name in ("small", "large") if name in net] or [net]

    def precisions(self) -> Iterator[tuple[str, torch.dtype]]:
        """Sets each precision of the device; yields its name, and the type of autocast."""
        for name in TOLERANCES:
            if name == "TF32" and not self.on_gpu:
                continue
            with _tf32(name == "TF32"):
                yield name, getattr(torch, "float32" if name == "TF32" else name)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    set_float32_arithmetic(allowed)
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    expected = expected.detach().double().cpu()
    return ((found.detach().double().cpu() - expected).norm() / expected.norm()).item()


# --------------------------------------------------------------------------------------- versions


def check_versions(setting: Setting) -> Iterator[Row]:
    """Versions, and torchvision's operators, which fail if it is built for another torch."""
    figure = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    if not setting.on_gpu:
        yield "versions", True, f"{figure}, {torch.get_num_threads()} threads"
    else:
        cudnn = torch.backends.cudnn.version()
        name = torch.cuda.get_device_name(setting.device)
        versions = f"CUDA {torch.version.cuda}, cuDNN {cudnn}, driver {_driver()}"
        yield "versions", cudnn is not None, f"{figure}, {versions}, {name}"
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(1000, 2, generator=generator) * 200
    boxes = torch.cat([corners, corners + 50], dim=1)
    scores = torch.rand(1000, generator=generator)
    features = torch.rand(1, 8, 64, 64, generator=generator)
    rois = torch.cat([torch.zeros(1000, 1), boxes], dim=1)
    results = []
    for device in (torch.device("cpu"), setting.device):
        moved = [tensor.to(device) for tensor in (boxes, scores, features, rois)]
        kept = torchvision.ops.nms(*moved[:2], 0.5).cpu()
        pooled = torchvision.ops.roi_align(*moved[2:], 7, 0.25, aligned=True)
        results.append((kept, pooled))
    error = relative_error(results[1][1], results[0][1])
    same = torch.equal(results[0][0], results[1][0])
    figure = f"{len(results[0][0])} boxes left, RoIAlign {error:.1e}"
    yield "torchvision's NMS and RoIAlign", same and error < 1e-5, figure


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return "unknown"


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


def make_decisive(module: nn.Module) -> None:
    """Gives a new module weights like trained ones where it starts at zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
            elif "rel_pos" in name:
                parameter.normal_(std=0.2)
            elif name.endswith(("lora_b", "bias")):
                parameter.normal_(std=0.02)


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


# ------------------------------------------------------------------------------------------ masks


def check_masks(setting: Setting) -> Iterator[Row]:
    """Encoded masks: on the device those that pycocotools makes there, and those of the CPU."""
    generator = torch.Generator().manual_seed(0)
    height, width, count = 480, 640, 100
    coarse = torch.rand(count, 1, 7, 7, generator=generator)
    probabilities = nn.functional.interpolate(coarse, (28, 28), mode="bilinear")
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
    low, high = corners[:, 0], corners[:, 1] + 0.02
    boxes = torch.cat([low, high.clamp(max=1)], dim=1) * torch.tensor([width, height] * 2)
    here = probabilities.to(setting.device), boxes.to(setting.device)
    on_device = encode_masks(*here, (height, width))
    pasted = paste_masks_in_image(here[0][:, 0], here[1], (height, width)).cpu().numpy()
    expected = [mask_util.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in pasted]
    same = sum(
        ours["counts"] == theirs["counts"].decode()
        for ours, theirs in zip(on_device, expected, strict=True)
    )
    filled = int(pasted.sum())
    figure = f"{same} of {count} strings are pycocotools', {filled} pixels"
    yield "masks, encoded", same == count and filled > 0, figure
    if setting.on_gpu:
        on_cpu = encode_masks(probabilities, boxes, (height, width))
        same = sum(a == b for a, b in zip(on_device, on_cpu, strict=True))
        pixels = sum(
            int((mask_util.decode(a) != mask_util.decode(b)).sum())
            for a, b in zip(on_device, on_cpu, strict=True)
        )
        # The last bit of a probability may turn a pixel.
        figure = f"{same} of {count} strings are the CPU's, {pixels} pixels differ"
        yield "masks, beside the CPU", pixels <= 1e-5 * filled, figure


# --------------------------------------------------------------------------------------- training


def check_training(setting: Setting) -> Iterator[Row]:
    """Two iterations of the most expensive stitch, at the largest image size of the training."""
    config = copy.deepcopy(setting.config)
    config.train.device = str(setting.device)
    own = config.data.image_size
    with setting.device:
        model = instantiate(config.model).train()
    optimizer = instantiate_optimizer(config, model)
    precision = training_precision(config)
    stitch = "baseline"
    if backbone := find_stitched_vit(model):
        costs, joined = stitch_costs(config.model), is_joined(config.model)
        # In a joined detector, the stitches of a single ViT have nothing to train.
        trained = [each for each in backbone.space if each.cuts or not joined]
        stitch = backbone.set_stitch(max(trained, key=lambda s: costs[s.id].flops).id).name
    processes = max(1, torch.cuda.device_count()) if setting.on_gpu else 1
    parts = processes * config.train.accumulation.steps
    num_images = max(1, config.dataloader.train.total_batch_size // parts)
    for size in sorted({own, max(config.train.image_sizes or [own])}):
        batch = synthetic_batch(num_images, size, model.roi_heads.num_classes)
        if setting.on_gpu:
            torch.cuda.reset_peak_memory_stats(setting.device)
        for _ in range(2):  # the first one also makes what is kept
            start = time.perf_counter()
            at_size = operating_at(model, size if size != own else None, None)
            with at_size, EventStorage(), autocast(setting.device, precision):
                loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            finite = bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients)
            optimizer.step()
            if setting.on_gpu:
                torch.cuda.synchronize(setting.device)
            seconds = time.perf_counter() - start
        used, there = _memory(setting, memory_to_come(model, optimizer))
        figure = (
            f"peak {used:.1f} of {there:.1f} GiB, {seconds:.2f} s, "
            f"{num_images} image{'s' if num_images > 1 else ''}, loss {loss.item():.2f}"
        )
        name = f"training step, {stitch} at {size}, {str(precision).removeprefix('torch.')}"
        yield name, finite and used < there, figure


def instantiate_optimizer(config, model):
    """The optimizer of a config, with its learning rate."""
    optimizer = optimizer_of(config, model)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    return optimizer


def _memory(setting, to_come):
    """Peak memory with what is to come, and that of the device, in GiB."""
    if setting.on_gpu:
        used = torch.cuda.max_memory_allocated(setting.device) + to_come
        there = torch.cuda.get_device_properties(setting.device).total_memory
    else:
        used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + to_come
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return used / 2**30, there / 2**30


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
    space = find_stitched_vit(model).space
    size, most = config.data.image_size, model.proposal_generator.post_nms_topk[False]
    points = [OperatingPoint(space[i], size, most, True) for i in some_stitches(space)]
    with tempfile.TemporaryDirectory(prefix="check_device_") as folder:
        scenes = generate_shapes(f"{folder}/scenes", 1, setting.num_images, size)
        records = coco_dicts(scenes.test_json, scenes.test_images, filter_empty=False)
        mapper = instantiate(config.dataloader.test.mapper)
        batch = [mapper(record) for record in records]
        reference = OnePass(copy.deepcopy(model), points, _Precision(torch.float32))
        with attention_implementation(reference.model, "reference"):
            reference.choose_threshold(batch)
            expected = _detections(reference, batch)
        threshold = reference.model.roi_heads.box_predictor.test_score_thresh
        scorers = {
            name: _scorer_of(found, scenes, Path(folder, f"{name}.json"))
            for name, found in expected.items()
        }
        count = sum(map(len, expected.values()))
        for name, precision in setting.precisions():
            ours = OnePass(copy.deepcopy(model).to(setting.device), points, _Precision(precision))
            ours.model.roi_heads.box_predictor.test_score_thresh = threshold
            found = _detections(ours, batch)
            scores = [scorers[stitch].score(each) for stitch, each in found.items()]
            box, mask = (min(s[f"{task}_AP"] for s in scores) for task in ("bbox", "segm"))
            figure = (
                f"box AP {box:.1f}, mask AP {mask:.1f} (at least {LOWEST_AP[name]:.0f}) with the "
                f"CPU's {count} detections as truth"
            )
            yield f"sweep, {name}", count > 0 and min(box, mask) >= LOWEST_AP[name], figure


@dataclass(frozen=True)
class _Precision:
    """What OnePass asks of its setting."""

    precision: torch.dtype


def _detections(one_pass, batch):
    """The detections of each stitch, as a sweep scores them."""
    with merged(one_pass.model):
        return {
            stitch.name: [
                record
                for sample, instances in zip(batch, found, strict=True)
                for record in records_of(instances, sample["image_id"])
            ]
            for stitch, found in one_pass(batch)
        }


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
        for number, found in enumerate(detections, start=1)
    ]
    path.write_text(json.dumps(content), encoding="utf-8")
    return CocoScorer(dataset_name(str(path), scenes.test_images))


# -------------------------------------------------------------------------------------- processes


def check_processes(setting: Setting) -> Iterator[Row]:
    """Two processes exchange gradients; both then have those of one process with both images."""
    backend = "nccl" if setting.on_gpu else "gloo"
    name = f"two processes, {backend}"
    if setting.on_gpu and torch.cuda.device_count() < 2:
        yield name, None, f"{torch.cuda.device_count()} GPU"
        return
    with tempfile.TemporaryDirectory(prefix="check_device_") as folder:
        torch.multiprocessing.spawn(_process, (setting.device.type, backend, folder), nprocs=2)
        errors = json.loads(Path(folder, "errors.json").read_text(encoding="utf-8"))
    limit = TOLERANCES["float32"]
    apart = errors.pop("apart")
    figure = f"error {max(errors.values()):.1e} (at most {limit:.0e}), apart {apart:.1e}"
    yield name, max(errors.values()) <= limit < apart, figure


def _process(rank, device_type, backend, folder):
    """What each process does: the first one writes the errors of both."""
    torch.set_num_threads(1)
    device = torch.device(device_type, rank if device_type == "cuda" else None)
    if device_type == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend,
        f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=_SECONDS_FOR_PROCESSES),
    )
    try:
        comm.create_local_process_group(2)
        config = load_config(str(NANO), [f"train.device={device_type}"])
        torch.manual_seed(0)
        net = instantiate(config.model.backbone.net)
        make_decisive(net)
        net = net.to(device)
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
        alone = _gradient(net, images)
        own = _gradient(net, images[rank : rank + 1])
        together = _gradient(
            wrap_for_processes(config, net, torch.float32), images[rank : rank + 1]
        )
        found = [torch.empty_like(together) for _ in range(2)]
        dist.all_gather(found, together)
        if rank == 0:
            errors = {
                "first": relative_error(found[0], alone),
                "second": relative_error(found[1], alone),
                "apart": relative_error(own, alone),
            }
            Path(folder, "errors.json").write_text(json.dumps(errors), encoding="utf-8")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _gradient(model, images):
    """All gradients of the mean over some images, in one vector; zero where there is none."""
    model.zero_grad(set_to_none=True)
    (output,) = model(images).values()
    output.square().mean().backward()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    )


CHECKS = {
    "versions": check_versions,
    "attention": check_attention,
    "vit": check_vit,
    "masks": check_masks,
    "training": check_training,
    "sweep": check_sweep,
    "processes": check_processes,
}

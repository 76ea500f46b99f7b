"""Checks of tools/check_device.py: versions, masks, training step, processes; what all share.

Each check yields rows: a name, whether it is as it should be (None if the device cannot do it), and
a figure.
"""

import copy
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
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

from benchmark_detectors import optimizer_of, scaler_of
from snnet_vitdet.engine import load_config, set_float32_arithmetic, synthetic_batch
from snnet_vitdet.engine.ddp import wrap_for_processes
from snnet_vitdet.engine.memory_probe import memory_to_come
from snnet_vitdet.engine.precision import autocast, training_precision
from snnet_vitdet.evaluation.mask_rle import find_runs
from snnet_vitdet.modeling import (
    find_stitched_vit,
    is_joined,
    operating_at,
    stitch_costs,
)

NANO = Path(__file__).parent.parent / "configs/shapes/mask_rcnn_snnet_nano.py"
# Largest error of outputs and gradients over their norm. Rounding alone gives a quarter or less.
TOLERANCES = {"float32": 1e-4, "TF32": 2e-2, "float16": 2e-2, "bfloat16": 1e-1}
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

    @property
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


def make_decisive(module: nn.Module) -> None:
    """Gives a new module weights like trained ones where it starts near zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("qkv.weight"):
                # Without this, each token would look at all others alike.
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif name.endswith("gamma"):
                parameter.fill_(0.5)
            elif "rel_pos" in name:
                parameter.normal_(std=0.2)
            elif name.endswith(("lora_b", "bias")):
                parameter.normal_(std=0.02)


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
    on_device = find_runs(*here, (height, width)).encoded()
    pasted = paste_masks_in_image(here[0][:, 0], here[1], (height, width)).cpu().numpy()
    expected = [mask_util.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in pasted]
    same = sum(
        ours["counts"] == theirs["counts"] for ours, theirs in zip(on_device, expected, strict=True)
    )
    filled = int(pasted.sum())
    figure = f"{same} of {count} strings are pycocotools', {filled} pixels"
    yield "masks, encoded", same == count and filled > 0, figure
    if setting.on_gpu:
        on_cpu = find_runs(probabilities, boxes, (height, width)).encoded()
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
    stitch = _set_most_expensive(config, model)
    processes = max(1, torch.cuda.device_count()) if setting.on_gpu else 1
    parts = processes * config.train.accumulation.steps
    count = max(1, config.dataloader.train.total_batch_size // parts)
    images = f"{count} image{'s' if count > 1 else ''}"
    for size in sorted({own, max(config.train.image_sizes or [own])}):
        name = f"training step, {stitch} at {size}, {str(precision).removeprefix('torch.')}"
        batch = synthetic_batch(count, size, model.roi_heads.num_classes)
        if setting.on_gpu:
            torch.cuda.reset_peak_memory_stats(setting.device)
        try:
            with operating_at(model, size if size != own else None, None):
                loss, finite, seconds = _two_steps(setting, model, optimizer, batch, precision)
        except torch.OutOfMemoryError:
            remedies = "more GPUs, train.accumulation.steps, activation_checkpointing of the ViTs"
            yield name, False, f"{images} do not fit into the memory; try {remedies}"
            return
        used, there = _memory(setting, memory_to_come(model, optimizer))
        figure = f"peak {used:.1f} of {there:.1f} GiB, {seconds:.2f} s, {images}, loss {loss:.2f}"
        yield name, finite and used < there, figure


def _set_most_expensive(config, model):
    """Selects the most expensive stitch; returns its name."""
    backbone = find_stitched_vit(model)
    if backbone is None:
        return "baseline"
    costs, joined = stitch_costs(config.model), is_joined(config.model)
    # In a joined detector, the stitches of a single ViT have nothing to train.
    trained = [stitch for stitch in backbone.space if stitch.cuts or not joined]
    return backbone.set_stitch(max(trained, key=lambda s: costs[s.id].flops).id).name


def _two_steps(setting, model, optimizer, batch, precision):
    """Loss of the second step, whether it and its gradients are finite, and its time in seconds."""
    scaler = scaler_of(setting.device, precision)
    for _ in range(2):  # the first one also makes what is kept
        start = time.perf_counter()
        with EventStorage(), autocast(setting.device, precision):
            loss = sum(model(batch).values())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        numbers = [loss, *(p.grad for p in model.parameters() if p.grad is not None)]
        finite = bool(torch.stack([each.isfinite().all() for each in numbers]).all())
        scaler.step(optimizer)
        scaler.update()
        if setting.on_gpu:
            torch.cuda.synchronize(setting.device)
        seconds = time.perf_counter() - start
    return loss.item(), finite, seconds


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

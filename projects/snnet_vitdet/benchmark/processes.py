"""What grows with the number of processes of a training."""

import copy
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.config import instantiate
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch.multiprocessing import get_context

from snnet_vitdet.engine import (
    StitchedTrainer,
    build_sampler,
    fit_stitching_layers,
    launch_here,
    synthetic_batch,
)
from snnet_vitdet.modeling import find_stitched_vit, stitch_costs

__all__ = ["ProcessesMeasurement", "measure_processes"]


@dataclass(frozen=True)
class ProcessesMeasurement:
    """A training of some processes, the batch of all together being the same for any number.

    Attributes:
        num_processes: How many.
        batch: Images of a process in an iteration.
        seconds: Median duration of an iteration.
        cpu_seconds: Processor time of an iteration, of all processes together, on average.
        fit_seconds: Duration of the fit of the stitching layers.
        agree_seconds: Median duration of asking all processes whether one of them is to stop.
        reduced_bytes: What a process hands in to be added up over the processes in an iteration.
        peak_bytes: Largest memory of a process.
    """

    num_processes: int
    batch: int
    seconds: float
    cpu_seconds: float
    fit_seconds: float
    agree_seconds: float
    reduced_bytes: int
    peak_bytes: int


def measure_processes(
    config: DictConfig, num_processes: int, total_batch: int, repeats: int = 10, warmup: int = 2
) -> ProcessesMeasurement:
    """Trains on images of noise on the CPU, in float32, one thread a process.

    Every process trains the same stitches in the same order (``shared`` sampling).

    Args:
        config: Of a stitched detector.
        num_processes: How many are started.
        total_batch: Images of an iteration, a multiple of the processes.
        repeats: Iterations that count.
        warmup: Iterations before these.
    """
    queue = get_context("spawn").SimpleQueue()
    args = (queue, config, total_batch // num_processes, repeats, warmup)
    if num_processes == 1:
        _measure(*args)
    else:
        launch_here(_measure, num_processes, *args)
    return ProcessesMeasurement(**queue.get())


def _measure(queue, config: DictConfig, batch: int, repeats: int, warmup: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = _trained(config, batch, repeats, warmup)
    finally:
        torch.set_num_threads(threads)
    if comm.is_main_process():
        queue.put(found)


def _trained(config: DictConfig, batch: int, repeats: int, warmup: int) -> dict[str, object]:
    config = copy.deepcopy(config)
    seed_all_rng(0)
    model = instantiate(config.model)
    backbone = find_stitched_vit(model)
    config.optimizer.params.model = model
    images = synthetic_batch(batch, config.data.image_size, model.roi_heads.num_classes)
    start = time.perf_counter()
    fit_stitching_layers(model, images, images[:1])
    fit_seconds = time.perf_counter() - start
    model = create_ddp_model(model.train(), find_unused_parameters=True, device_ids=None)
    trainer = StitchedTrainer(
        model,
        [images] * (warmup + repeats),
        instantiate(config.optimizer),
        backbone=backbone,
        sampler=build_sampler(config, stitch_costs(config.model)),
    )
    reduced = _count_reduced(model)
    seconds, cpu = [], 0.0
    with EventStorage(0) as trainer.storage:
        for trainer.iter in range(warmup + repeats):
            comm.synchronize()
            reduced.clear()
            start, cpu_start = time.perf_counter(), time.process_time()
            trainer.run_step()
            comm.synchronize()
            if trainer.iter >= warmup:
                seconds.append(time.perf_counter() - start)
                cpu += time.process_time() - cpu_start
    agreeing = []
    for _ in range(50):
        start = time.perf_counter()
        comm.all_gather(None)
        agreeing.append(time.perf_counter() - start)
    return {
        "num_processes": comm.get_world_size(),
        "batch": batch,
        "seconds": statistics.median(seconds),
        "cpu_seconds": sum(comm.all_gather(cpu)) / repeats,
        "fit_seconds": fit_seconds,
        "agree_seconds": statistics.median(agreeing),
        "reduced_bytes": sum(reduced),
        "peak_bytes": max(comm.all_gather(_peak_bytes())),
    }


def _count_reduced(model: torch.nn.Module) -> list[int]:
    """The bytes of every gradient bucket that DDP adds up from now on."""
    sizes: list[int] = []

    def count(_state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buffer = bucket.buffer()
        sizes.append(buffer.numel() * buffer.element_size())
        # As DDP itself does it: first the mean's division, then the sum.
        buffer.div_(comm.get_world_size())
        work = dist.all_reduce(buffer, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    if comm.get_world_size() > 1:
        model.register_comm_hook(None, count)
    return sizes


def _peak_bytes() -> int:
    """The largest memory of this process so far; 0 where the system does not list it (not Linux).

    The usual ``getrusage`` gives a started process the peak of the one that has started it.
    """
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

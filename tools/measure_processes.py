#!/usr/bin/env python
"""Measures what grows with the number of processes of a training, by gloo on this machine's CPU.

    python tools/measure_processes.py
    python tools/measure_processes.py --processes 1 2 4 8 --total-batch 8 --config-file F
    python tools/measure_processes.py +train.ddp.bucket_cap_mb=0.05

Trains on images of noise in float32, with one thread per process. An iteration has the same number
of images for any number of processes. Writes processes.csv. The gradients of a small model fit into
one of DDP's buckets of 25 MiB; smaller buckets show the order in which they are exchanged.
"""

import argparse
import copy
import csv
import statistics
import time
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import torch
import torch.distributed as dist
from detectron2.config import instantiate
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch.multiprocessing import get_context

from snnet_vitdet.engine import (
    StitchedTrainer,
    build_sampler,
    fit_stitching_layers,
    launch_here,
    load_config,
    parse_with_overrides,
    synthetic_batch,
)
from snnet_vitdet.engine.ddp import wrap_for_processes
from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.modeling import find_stitched_vit, stitch_costs

WARMUP = 2
COCO_CLASSES = 80


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="configs/shapes/mask_rcnn_snnet_nano.py")
    parser.add_argument("--processes", nargs="+", type=int, default=(1, 2, 4))
    parser.add_argument("--total-batch", type=int, default=4, help="images of an iteration")
    parser.add_argument("--repeats", type=int, default=10, help="iterations that count")
    parser.add_argument("--output", default="output/benchmark", metavar="FOLDER")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parse_with_overrides(parser)


def measure_processes(config, num_processes, total_batch, repeats):
    """Trains with some processes; all train the same stitches in the same order.

    Returns:
        A row of processes.csv: number of processes, images of each in an iteration, median duration
        of an iteration, mean processor time of an iteration of all processes together, duration of
        the fit of the stitching layers, median duration of asking all processes whether to stop,
        mean number of bytes that each process hands in to be summed in an iteration, mean number of
        them that it hands in after the backward pass has made half of its gradients, largest
        memory of a process.
    """
    queue = get_context("spawn").SimpleQueue()
    args = (queue, config, total_batch // num_processes, repeats)
    if num_processes == 1:
        threads = torch.get_num_threads()
        train(*args)
        torch.set_num_threads(threads)
    else:
        launch_here(train, num_processes, *args)
    return queue.get()


def train(queue, config, batch, repeats):
    """What each process does; the first one puts the row into the queue."""
    torch.set_num_threads(1)
    config = copy.deepcopy(config)
    seed_all_rng(0)
    model = instantiate(config.model)
    backbone = find_stitched_vit(model)
    config.optimizer.params.model = model
    images = synthetic_batch(batch, config.data.image_size, model.roi_heads.num_classes)
    start = time.perf_counter()
    fit_stitching_layers(model, images, images[:1])
    fit_seconds = time.perf_counter() - start
    config.train.device = "cpu"
    model = wrap_for_processes(config, model.train(), torch.float32)
    trainer = StitchedTrainer(
        model,
        [images] * (WARMUP + repeats),
        instantiate(config.optimizer),
        backbone=backbone,
        sampler=build_sampler(config, stitch_costs(config.model)),
    )
    reduced, made = count_reduced(model)
    seconds, handed_in, late, cpu = [], [], [], 0.0
    with EventStorage(0) as trainer.storage:
        for trainer.iter in range(WARMUP + repeats):
            comm.synchronize()
            reduced.clear()
            made.clear()
            start, cpu_start = time.perf_counter(), time.process_time()
            trainer.run_step()
            comm.synchronize()
            if trainer.iter >= WARMUP:
                seconds.append(time.perf_counter() - start)
                cpu += time.process_time() - cpu_start
                handed_in.append(sum(size for size, _ in reduced))
                late.append(sum(size for size, number in reduced if 2 * number > len(made)))
    agreeing = []
    for _ in range(50):
        start = time.perf_counter()
        comm.all_gather(None)
        agreeing.append(time.perf_counter() - start)
    row = {
        "num_processes": comm.get_world_size(),
        "batch": batch,
        "seconds": statistics.median(seconds),
        "cpu_seconds": sum(comm.all_gather(cpu)) / repeats,
        "fit_seconds": fit_seconds,
        "agree_seconds": statistics.median(agreeing),
        "reduced_bytes": statistics.mean(handed_in),
        "late_bytes": statistics.mean(late),
        "peak_bytes": max(comm.all_gather(peak_bytes())),
    }
    if comm.is_main_process():
        queue.put(row)


def count_reduced(model):
    """Two lists that training fills: the buckets of gradients that DDP sums, and the gradients.

    A bucket is its size in bytes, and the number of gradients that were made before.
    """
    buckets, made = [], []

    def count(_state, bucket):
        buffer = bucket.buffer()
        buckets.append((buffer.numel() * buffer.element_size(), len(made)))
        # As DDP itself does it: divide for the mean, then sum.
        buffer.div_(comm.get_world_size())
        work = dist.all_reduce(buffer, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    if comm.get_world_size() > 1:
        model.register_comm_hook(None, count)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(made.append)
    return buckets, made


def peak_bytes():
    """The largest memory of this process so far; 0 where the system does not list it (not Linux).

    The usual ``getrusage`` gives a started process the peak of the one that has started it.
    """
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def run(args):
    """Measures, prints and writes everything."""
    wrong = [number for number in args.processes if number < 1 or args.total_batch % number]
    if wrong:
        raise InputError(
            f"--processes {wrong[0]} cannot share --total-batch {args.total_batch}: give a "
            "multiple of each"
        )
    config = load_config(args.config_file, args.opts)
    if not isinstance(config.model.roi_heads.num_classes, int):
        config.model.roi_heads.num_classes = COCO_CLASSES  # it would be read from the data
    rows = []
    for number in args.processes:
        row = measure_processes(config, number, args.total_batch, args.repeats)
        rows.append(row)
        print(
            f"{number} processes of batch {row['batch']}: {row['seconds']:.3f} s an iteration, "
            f"{row['cpu_seconds']:.3f} s of all processors, fit {row['fit_seconds']:.2f} s"
        )
        print(
            f"    each: {row['reduced_bytes'] / 2**20:.1f} MiB reduced, of which "
            f"{row['late_bytes'] / 2**20:.1f} late, "
            f"{1000 * row['agree_seconds']:.2f} ms to agree, "
            f"{row['peak_bytes'] / 2**20:.0f} MiB memory"
        )
    path = Path(args.output) / "processes.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"Results in {path}")


def main():
    """Runs the program."""
    with exit_on_input_error():
        run(arguments())


if __name__ == "__main__":
    main()

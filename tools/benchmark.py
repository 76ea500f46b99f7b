#!/usr/bin/env python
"""Measures speed and memory of the stitches of a config, beside detectron2's own ViTDet in one run.

    python tools/benchmark.py                                              # what suits this machine
    python tools/benchmark.py --config-file F --what blocks training --precision bfloat16

Times are medians over rounds in which everything is measured in turn. Writes benchmark.csv,
benchmark.json and benchmark.png. Weights are random; needs neither data nor network.
"""

import argparse
import csv
import json
import os
import platform

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import torch

from snnet_vitdet.benchmark import (
    block_cases,
    inference_cases,
    load_without_data,
    measure,
    sweep_cases,
    training_cases,
)
from snnet_vitdet.benchmark.measuring import bytes_kept_for_backward
from snnet_vitdet.engine import synthetic_batch
from snnet_vitdet.errors import exit_on_input_error
from snnet_vitdet.modeling import stitch_costs
from snnet_vitdet.report import drawing, plot_benchmark
from snnet_vitdet.stitching import select_stitches

WHAT = ("blocks", "training", "inference", "sweep")
COLUMNS = (
    *("what", "network", "precision", "batch", "image_size", "gflops", "weight"),
    *("median_s", "min_s", "max_s", "kept_mib", "peak_mib", "over_detectron2"),
)
# Without a GPU, the embedded default; its images are 256 pixels.
DEFAULT_CONFIG = {
    "cpu": "configs/shapes/mask_rcnn_snnet_nano.py",
    "cuda": "configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py",
}


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--stitches", help="as sweep.stitch_ids; the anchors, in a sweep all, if not given"
    )
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile the anchors' blocks")
    parser.add_argument("--output", default="output/benchmark", metavar="FOLDER")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parser.parse_args()


def baseline_of(case):
    """The name of detectron2's case that one is compared with, if any."""
    if case.what == "block":
        _, anchor, kind, *_ = case.network.split()
        return f"detectron2 {anchor} {kind}"
    if case.what == "sweep":
        return case.network.replace("in one pass", "separately")
    return "detectron2 ViTDet large"


def rows_of(cases, args, config, precision, device, gflops):
    """Measures some cases together; one row each, as in COLUMNS."""
    functions = {case.network: case.run for case in cases}
    results = measure(functions, device, args.repeats, args.warmup)
    for case in cases:
        found = results[case.network]
        baseline = results.get(baseline_of(case))
        kept = None
        if case.forward is not None:
            kept = bytes_kept_for_backward(case.forward) / 2**20
        yield {
            "what": case.what,
            "network": case.network,
            "precision": str(precision).removeprefix("torch."),
            "batch": args.batch,
            "image_size": config.data.image_size,
            "gflops": gflops.get(case.network),
            "weight": case.weight,
            "median_s": found.median,
            "min_s": min(found.seconds),
            "max_s": max(found.seconds),
            "kept_mib": kept,
            "peak_mib": None if found.peak_bytes is None else found.peak_bytes / 2**20,
            "over_detectron2": found.median / baseline.median if baseline else None,
        }


def compile_blocks():
    """Lets torch compile every block of an anchor that is built from now on."""
    from snnet_vitdet.modeling.anchor import Block

    own = Block.__init__

    def compiled(block, *args, **kwargs):
        own(block, *args, **kwargs)
        block.compile()

    Block.__init__ = compiled


def run(args):
    """Measures, prints and writes everything."""
    device = torch.device(args.device)
    config = load_without_data(args.config_file or DEFAULT_CONFIG[device.type], args.opts)
    precision = args.precision or ("bfloat16" if device.type == "cuda" else "float32")
    precision = getattr(torch, precision)
    if args.compile:
        compile_blocks()
    costs = stitch_costs(config.model)
    stitches = select_stitches(args.stitches or "anchors", costs.space)
    swept = select_stitches(args.stitches or "all", costs.space)
    gflops = {f"stitch {costs.space[i].name}": costs[i].gflops for i in stitches}
    batch = synthetic_batch(args.batch, config.data.image_size, config.model.roi_heads.num_classes)
    common = (config.model, device, precision)
    makers = {
        "blocks": lambda: block_cases(*common, args.batch),
        "training": lambda: training_cases(*common, batch, stitches),
        "inference": lambda: inference_cases(*common, batch, stitches),
        "sweep": lambda: sweep_cases(*common, batch, swept),
    }
    rows = []
    for what in args.what:
        for row in rows_of(makers[what](), args, config, precision, device, gflops):
            rows.append(row)
            ratio = row["over_detectron2"]
            compared = "" if ratio is None else f", {ratio:.2f} of its counterpart"
            kept = "" if row["kept_mib"] is None else f", keeps {row['kept_mib']:.0f} MiB"
            print(f"{row['what']:9}  {row['network']}: {row['median_s']:.4f} s{kept}{compared}")
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    facts = {
        "device": machine,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compile": args.compile,
        "rows": rows,
    }
    os.makedirs(args.output, exist_ok=True)
    with open(os.path.join(args.output, "benchmark.csv"), "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    with open(os.path.join(args.output, "benchmark.json"), "w", encoding="utf-8") as f:
        json.dump(facts, f, indent=1)
    print(f"Results in {args.output}")
    picture = os.path.join(args.output, "benchmark.png")
    with drawing(picture):
        plot_benchmark(rows, picture)


def main():
    """Runs the program."""
    with exit_on_input_error():
        run(arguments())


if __name__ == "__main__":
    main()

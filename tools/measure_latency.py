#!/usr/bin/env python
"""Measures time and memory of every stitch of a trained model on this device.

    python tools/measure_latency.py --config-file output/my/config.yaml
    python tools/measure_latency.py --config-file output/my/config.yaml --stitches frontier \
        --precision float16 --batch 4 --images my/images

Writes latency.json beside the sweep, where tools/predict.py, StitchTable and report.html find it,
and stitches_measured.csv: the sweep's table with latency_ms, latency_ms_p90 and memory_mb.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import numpy as np
import torch

from snnet_vitdet.data import coco_dicts
from snnet_vitdet.deploy import Predictor, image_files, measure_points
from snnet_vitdet.engine import load_config, set_float32_arithmetic
from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.evaluation import LATENCY_FILE, MEASURED_CSV, StitchTable
from snnet_vitdet.evaluation.results import MEASURED, counted_points
from snnet_vitdet.files import read_json, write_atomically
from snnet_vitdet.modeling import point_of
from snnet_vitdet.sweep_run import costs_of, points_named


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", metavar="FILE", help="default: the training's last checkpoint")
    parser.add_argument(
        "--stitches",
        default="all",
        help="as sweep.stitch_ids, or points, or frontier: the sweep's, by box AP",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--precision", default="float32", choices=("float32", "float16", "bfloat16")
    )
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument(
        "--images", metavar="FOLDER", help="images to detect in; default: the config's test images"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="default: latency.json beside the sweep of the training"
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parser.parse_args()


def images_for(args, config):
    """A batch of images: those given, else the test set's, else noise."""
    if args.images:
        files = image_files(args.images)
    elif os.path.isfile(config.data.test_json):
        data = coco_dicts(config.data.test_json, config.data.test_images, filter_empty=False)
        files = [record["file_name"] for record in data[: args.batch]]
    else:
        print("Neither --images nor the config's test images are there: measuring on noise.")
        side = config.data.image_size
        return [np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)] * args.batch
    # Fewer files than images at once: some are taken again.
    return [files[i % len(files)] for i in range(args.batch)]


def chosen_points(selection, config, predictor, swept):
    """The operating points to measure."""
    if selection != "frontier":
        return points_named(config, predictor.model, selection)
    if swept is None:
        raise InputError("--stitches frontier needs a sweep: run train_net.py --eval-only first")
    names = [row["name"] for row in swept if row["on_pareto"]]
    return [point_of(predictor.model, name) for name in names]


def run(args):
    """Measures, prints and writes."""
    for name in ("batch", "repeats"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be 1 or more, got {getattr(args, name)}")
    config = load_config(args.config_file, args.opts)
    set_float32_arithmetic(config.train.tf32)
    folder = Path(config.train.output_dir, "sweep")
    swept = (folder / "stitches.json").is_file()
    table = StitchTable.read(folder) if swept else None
    sweep_rows = table.rows() if swept else None
    predictor = Predictor(config, args.weights, device=args.device, precision=args.precision)
    if predictor.stitch is None:
        raise InputError("this model is a baseline: it has no stitches to measure")
    if table is not None:
        predictor.check_table(table)
    try:
        points = chosen_points(args.stitches, config, predictor, sweep_rows)
    except (KeyError, ValueError) as error:
        raise InputError(f"--stitches {args.stitches}: {error.args[0]}") from error
    costs = costs_of(config, points)
    images = images_for(args, config)
    device = predictor.device
    on_gpu = device.type == "cuda"
    rounds = f"{args.warmup} + {args.repeats} rounds"
    print(f"{counted_points([point.name for point in points])}, {rounds}, batches of {len(images)}")
    rows = measure_points(
        predictor, points, lambda point: costs[point.name], images, args.repeats, args.warmup
    )
    facts = {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine() + " CPU",
        "precision": args.precision,
        "batch": args.batch,
        "image_size": config.data.image_size,
        **({"padding": "tight"} if predictor.padding == "tight" else {}),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    output = Path(args.output or folder / LATENCY_FILE)
    everything = with_earlier(rows, facts, output)
    write_atomically(output, json.dumps({**facts, "rows": everything}, indent=1).encode())
    wide = max(12, *(len(point.name) for point in points))
    print(f"{'stitch':>{wide}}  {'GFLOPs':>8}  {'ms':>8}  {'p90':>8}  {'MB':>8}")
    for row in rows:
        values = [costs[row["name"]].gflops, *(row[name] for name in MEASURED)]
        print(f"{row['name']:>{wide}}  " + "  ".join(f"{value:8.1f}" for value in values))
    print(f"Results in {output}")
    measured = {row["name"] for row in everything}
    known = {stitch.name for stitch in predictor.stitches}
    known |= {row["name"] for row in sweep_rows or ()}
    if missing := len(known - measured):
        print(
            f"Note: {missing} of {counted_points(known)} have no measurement, so no budget of time "
            "or memory takes them."
        )
    if swept:
        path = output.with_name(MEASURED_CSV)
        StitchTable.read(folder, output).write_measured(path)
        print(f"The sweep's table with it: {path}")


def with_earlier(rows, facts, path):
    """The new rows, and the earlier ones of other stitches if those were measured alike."""
    try:
        earlier = read_json(path)
        kept = earlier.pop("rows")
        if earlier != facts:
            print(f"Note: {path} was measured in another way; its {len(kept)} rows are replaced.")
            return rows
        by_name = {row["name"]: row for row in [*kept, *rows]}
        return sorted(by_name.values(), key=lambda row: row["stitch_id"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return rows  # there was none, or none to keep


def main():
    """Runs the program."""
    with exit_on_input_error():
        run(arguments())


if __name__ == "__main__":
    main()

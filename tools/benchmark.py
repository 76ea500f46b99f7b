#!/usr/bin/env python
"""Measures speed and memory of the stitches of a config beside detectron2's own ViTDet.

    python tools/benchmark.py                                      # a config for this machine
    python tools/benchmark.py --config-file F --what blocks training --precision bfloat16
    python tools/benchmark.py --stitches L,S@512/300 --what inference sweep --limit 120

Times are medians over rounds, and each round measures the cases of one model in turn. Each part
runs in a process of its own. After each row, benchmark.csv and benchmark.json are written, and
benchmark.png at the end. Weights are random; needs neither data nor network. docs/performance.md
explains the rows.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.multiprocessing import get_context

from benchmark_cases import Setting, block_groups, rows_of_groups
from benchmark_detectors import inference_groups, sweep_groups, training_groups
from benchmark_pipeline import pipeline_rows
from snnet_vitdet.deploy.loading import device_named
from snnet_vitdet.engine import load_config, parse_with_overrides, set_float32_arithmetic
from snnet_vitdet.errors import InputError, exit_on_input_error, first_line
from snnet_vitdet.files import temporary_folder, write_csv
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.report import drawing
from snnet_vitdet.sweep_run import costs_of, points_named

GROUPS = {
    "blocks": block_groups,
    "training": training_groups,
    "inference": inference_groups,
    "sweep": sweep_groups,
}
WHAT = (*GROUPS, "pipeline")
COCO_CLASSES = 80
# Without a GPU, the embedded default; its images are 256 pixels.
DEFAULT_CONFIG = {
    "cpu": "configs/shapes/mask_rcnn_snnet_nano.py",
    "cuda": "configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py",
}
PANELS = {
    "block": "a block forward and backward (over detectron2's)",
    "ViT": "all blocks of a ViT forward and backward (over detectron2's)",
    "training": "a training step (over that of detectron2's ViTDet of the large anchor)",
    "inference": "inference (over that of detectron2's ViTDet of the large anchor)",
    "sweep": "many stitches, without scoring (over one by one)",
    "pipeline": "stages of a sweep, one after the other (share)",
}
OURS, OTHERS = "#0072B2", "#E69F00"  # Okabe and Ito's palette


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--stitches",
        help="as sweep.stitch_ids, or points such as S@512/300; by default the anchors, and all "
        "stitches in sweep and pipeline",
    )
    parser.add_argument(
        "--draws", type=int, default=16, help="stitches that stand for the sampler's; 0 for none"
    )
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="end each part after this")
    parser.add_argument("--compile", action="store_true", help="torch.compile the anchors' blocks")
    parser.add_argument("--output", default="output/benchmark", metavar="FOLDER")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parse_with_overrides(parser)


def device_and_config(args):
    """The device and the config of ``--device``, ``--config-file`` and the overrides.

    Raises:
        InputError: If there is no such device, or the config cannot be used.
    """
    device = device_named(args.device)
    if device.type not in DEFAULT_CONFIG:
        raise InputError(f"--device must be auto, cpu or cuda, got {args.device}")
    config = load_config(args.config_file or DEFAULT_CONFIG[device.type], args.opts)
    if not isinstance(config.model.roi_heads.num_classes, int):
        config.model.roi_heads.num_classes = COCO_CLASSES  # it would be read from the data
    return device, config


def setting_of(args) -> Setting:
    """The setting that the arguments describe.

    Raises:
        InputError: If the config or the selection cannot be used.
    """
    for name, lowest in {"batch": 1, "repeats": 1, "warmup": 0, "draws": 0}.items():
        if getattr(args, name) < lowest:
            raise InputError(f"--{name} must be {lowest} or more, got {getattr(args, name)}")
    if args.limit is not None and not args.limit > 0:
        raise InputError(f"--limit must be above 0, got {args.limit:g}")
    device, config = device_and_config(args)
    config.train.device = str(device)
    model = build_on_meta(config.model)
    precision = args.precision or ("bfloat16" if device.type == "cuda" else "float32")
    return Setting(
        config=config,
        device=device,
        precision=getattr(torch, precision),
        num_images=args.batch,
        points=points_named(config, model, args.stitches or "anchors"),
        swept=points_named(config, model, args.stitches or "all"),
        draws=args.draws,
        repeats=args.repeats,
        warmup=args.warmup,
        compile=args.compile,
    )


# ------------------------------------------------------------------------------------------ parts


def measure_part(what, args, folder, connection):
    """What the process of a part does: it sends rows, then how it ended."""
    tempfile.tempdir = folder  # which is removed even if this process is killed
    try:
        setting = setting_of(args)
        set_float32_arithmetic(setting.config.train.tf32)
        if what == "pipeline":
            rows = pipeline_rows(setting)
        else:
            rows = rows_of_groups(GROUPS[what](setting), setting)
        for row in rows:
            connection.send(row)
        connection.send("done")
    except Exception as error:
        if not isinstance(error, InputError):
            traceback.print_exc()
        connection.send(f"failed: {first_line(error)}")


def run_part(what, args, take_row):
    """Measures a part in a process of its own, which frees all its memory and can be ended.

    Args:
        what: The part.
        args: The command line.
        take_row: Called with each row.

    Returns:
        How it ended: ``done``, or why it did not.
    """
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    end = time.monotonic() + (args.limit or 0)
    folder = temporary_folder("benchmark_")
    process = context.Process(target=measure_part, args=(what, args, folder.name, writer))
    process.start()
    writer.close()
    try:
        while reader.poll(max(0.0, end - time.monotonic()) if args.limit else None):
            message = reader.recv()
            if isinstance(message, str):
                return message
            take_row(message)
        return f"ended after its limit of {args.limit:g} s"
    except EOFError:
        process.join()
        return f"failed: its process ended with exit status {process.exitcode}"
    finally:
        process.kill()
        process.join()
        folder.cleanup()


# ---------------------------------------------------------------------------------------- results


def write_results(rows, ends, args):
    """Writes benchmark.csv and benchmark.json."""
    folder = Path(args.output)
    facts = {
        "device": rows[0]["device"],  # asking for it here would take memory of the GPU
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compile": args.compile,
        "parts": ends,
        "rows": rows,
    }
    write_csv(folder / "benchmark.csv", list(rows[0]), (list(row.values()) for row in rows))
    (folder / "benchmark.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def line_of(row):
    """A row as a line of text."""
    details = []
    if row["kept_mib"] is not None:
        details.append(f"keeps {row['kept_mib']:.0f} MiB")
    if row["peak_mib"] is not None:
        details.append(f"peak {row['peak_mib']:.0f} MiB")
    if row["detections"] is not None:
        details.append(f"{row['detections']:.0f} detections an image")
    if row["over_detectron2"] is not None:
        details.append(f"{row['over_detectron2']:.2f} of its counterpart")
    if row["share"] is not None:
        details.append(f"{row['share']:.1%}")
    return f"{row['what']:9}  {row['network']}: {row['median_s']:.4f} s, {', '.join(details)}"


def plot(rows, path):
    """Writes a PNG with a panel for each kind of measurement and a bar for each network."""
    # Beside the time of an image, those of most stages would be too small to see.
    rows = [row for row in rows if row["share"] != 1]
    groups = {what: [row for row in rows if row["what"] == what] for what in PANELS}
    groups = {what: group for what, group in groups.items() if group}
    heights = [0.85 + 0.24 * len(group) for group in groups.values()]  # inches
    figure = Figure((8, sum(heights) + 0.4), dpi=160, layout="constrained")
    panels = figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (what, group) in zip(panels, groups.items(), strict=True):
        times, fastest, slowest = (
            np.array([1000 * row[key] for row in group]) for key in ("median_s", "min_s", "max_s")
        )
        errors = [times - fastest, slowest - times]
        others = ("detectron2" in row["network"] or "separately" in row["network"] for row in group)
        colours = [OTHERS if other else OURS for other in others]
        ratio = "share" if what == "pipeline" else "over_detectron2"
        labels = [f"{row['network']}   ({row[ratio]:.2f})" for row in group]
        axes.barh(labels, times, xerr=errors, color=colours, ecolor="#333333", height=0.7)
        axes.set_title(PANELS[what], fontsize=9, fontweight="bold", loc="right", pad=12)
        axes.tick_params(labelsize=8)
        axes.invert_yaxis()
        # Without this, one stall of the machine would squeeze all bars.
        axes.set_xlim(0, 1.25 * max(times))
        axes.spines[["top", "right"]].set_visible(False)
    first = rows[0]
    figure.suptitle(
        f"milliseconds for {first['batch']} x {first['image_size']}² pixels in "
        f"{first['precision']}: median, and from the fastest to the slowest round",
        fontsize=9,
    )
    figure.savefig(path)


def run(args) -> int:
    """Measures, prints and writes everything; returns 1 if a part did not reach its end, else 0."""
    setting = setting_of(args)  # errors in the arguments end the program here
    costs = costs_of(setting.config, [*setting.points, *setting.swept])
    gflops = {f"stitch {name}": cost.gflops for name, cost in costs.items()}
    rows: list[dict] = []
    ends: dict[str, dict] = {}

    def take_row(row):
        rows.append(row | {"gflops": gflops.get(row["network"])})
        print(line_of(row), flush=True)
        write_results(rows, ends, args)

    for what in args.what:
        start = time.monotonic()
        how = run_part(what, args, take_row)
        ends[what] = {"end": how, "seconds": round(time.monotonic() - start, 1)}
        print(f"{what:9}  {how} ({ends[what]['seconds']} s)", flush=True)
    if rows:
        write_results(rows, ends, args)
        print(f"Results in {args.output}")
        with drawing(str(Path(args.output, "benchmark.png"))):
            plot(rows, Path(args.output, "benchmark.png"))
    return int(any(end["end"] != "done" for end in ends.values()))


def main():
    """Runs the program."""
    with exit_on_input_error():
        sys.exit(run(arguments()))


if __name__ == "__main__":
    main()

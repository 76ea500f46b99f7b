#!/usr/bin/env python
"""Lists every stitch of a config: id, name, kind, cuts, GFLOPs, parameters, sampling probability;
and what a training iteration costs on average.

    python tools/list_stitches.py --config-file configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py

Needs neither weights nor data nor network: the model is built without memory (torch's meta device).
"""

import argparse
import csv

from detectron2.config import instantiate
from omegaconf.errors import InterpolationToMissingValueError
from tabulate import tabulate

from snnet_vitdet.engine import load_config
from snnet_vitdet.errors import InputError, exit_with
from snnet_vitdet.modeling import anchor_alone, baseline_cost, stitch_costs
from snnet_vitdet.modeling.cost import image_size_of

COLUMNS = ("stitch_id", "name", "kind", "cuts", "gflops", "params_m", "probability")


def sampler_of(config, costs):
    """The sampler of the training, on the real costs."""
    config.sampler.gflops = list(costs.gflops)
    return instantiate(config.sampler)


def rows_of(costs, probabilities):
    """One row a stitch, as in COLUMNS."""
    return [
        (
            stitch.id,
            stitch.name,
            stitch.kind,
            "-".join(map(str, stitch.cuts)),
            round(costs[stitch.id].gflops, 4),
            round(costs[stitch.id].params_m, 4),
            round(probabilities[stitch.id], 6),
        )
        for stitch in costs.space
    ]


def training_lines(sampler, costs, large_alone):
    """What a training of these stitches costs an iteration, and how often it trains the anchors."""
    probabilities = sampler.probabilities()
    mean = sum(p * gflops for p, gflops in zip(probabilities, costs.gflops, strict=True))
    yield (
        f"Training iteration: {mean:.1f} GFLOPs an image on average, "
        f"{mean / large_alone.gflops:.3f} of the baseline on the large anchor"
    )
    # Uniform sampling has no bins.
    if bins := getattr(sampler, "bins", None):
        yield f"Bins of {sampler.step:g} GFLOPs that hold a stitch: {len(bins)}"
    if costs.space.anchors:
        share = sum(probabilities[anchor.id] for anchor in costs.space.anchors)
        yield f"Iterations that train an anchor alone: {100 * share:.1f} %"


def write_csv(path, rows):
    """Writes the table to a file."""
    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def main():
    """Prints the table, and writes it if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--csv", metavar="OUT", help="also write the table to this file")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_args()
    try:
        config = load_config(args.config_file, args.opts)
        costs = stitch_costs(config.model)
        sampler = sampler_of(config, costs)
        rows = rows_of(costs, sampler.probabilities())
        size = image_size_of(config.model)
        baselines = {
            name: baseline_cost(anchor_alone(config.model, name)) for name in ("small", "large")
        }
        if args.csv:
            write_csv(args.csv, rows)
    except InputError as error:
        exit_with(error)
    except InterpolationToMissingValueError as error:
        exit_with(
            f"the config leaves data to you ({str(error).splitlines()[0]}); for the costs alone "
            "give model.roi_heads.num_classes=80"
        )
    print(tabulate(rows, COLUMNS, disable_numparse=[1, 2, 3]))
    print(
        f"\n{len(rows)} stitches at {size} x {size} pixels. "
        "GFLOPs are multiply-accumulates / 1e9 of the whole detector,\n"
        "parameters are in millions, probability is that of being trained in an iteration."
    )
    for anchor in costs.space.anchors:
        print(f"{anchor.name} in the supernet: {costs[anchor.id].gflops:.1f} GFLOPs")
    for name, cost in baselines.items():
        print(f"ViTDet on the {name} anchor alone (baseline): {cost.gflops:.1f} GFLOPs")
    for line in training_lines(sampler, costs, baselines["large"]):
        print(line)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Lists the stitches of a config: id, name, kind, cuts, GFLOPs, parameters, sampling probability;
then the mean cost of a training iteration.

    python tools/list_stitches.py --config-file configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py

With "sweep.image_sizes=[512,1024]" and "sweep.proposals=[300,1000]", every stitch is listed at each
image size and with each number of proposals.

Needs neither weights nor data nor network: the model is built without memory (torch's meta device).
"""

import argparse

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from omegaconf.errors import InterpolationToMissingValueError
from tabulate import tabulate

from snnet_vitdet.engine import (
    build_sampler,
    cost_aspect_ratio,
    costs_by_size,
    ends_plan,
    load_config,
    mean_gflops,
    training_shares,
)
from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.evaluation.results import counted_points
from snnet_vitdet.files import write_csv
from snnet_vitdet.modeling import anchor_alone, baseline_cost, is_joined, stitch_costs
from snnet_vitdet.modeling.cost import build_on_meta, image_size_of
from snnet_vitdet.modeling.operating import tight_shape
from snnet_vitdet.stitching import EndsSampler
from snnet_vitdet.sweep_run import costs_of, points_of

COLUMNS = (
    *("stitch_id", "name", "kind", "cuts", "gflops", "params_m"),
    *("probability", "image_size", "num_proposals"),
)


def rows_of(points, costs, probabilities):
    """One row a point, as in COLUMNS; only a stitch as it is trained has a probability."""
    return [
        (
            point.stitch.id,
            point.name,
            point.stitch.kind,
            "-".join(map(str, point.stitch.cuts)),
            round(costs[point.name].gflops, 4),
            round(costs[point.name].params_m, 4),
            round(probabilities[point.stitch.id], 6) if point.is_trained else None,
            point.image_size,
            point.num_proposals,
        )
        for point in points
    ]


def training_lines(sampler, shares, mean, costs, large_alone):
    """Sentences on the mean cost of a training iteration and on the share of the anchors."""
    yield (
        f"Training iteration: {mean:.5g} GFLOPs an image on average, "
        f"{mean / large_alone.gflops:.3f} of the baseline on the large anchor"
    )
    if isinstance(sampler, EndsSampler):
        yield ends_plan(sampler, costs.space)
        sampler = sampler.of
    # Uniform sampling has no groups.
    if groups := getattr(sampler, "groups", None):
        yield f"Groups of {sampler.step:g} GFLOPs: {len(groups)}"
    if costs.space.anchors:
        share = sum(shares[anchor.id] for anchor in costs.space.anchors)
        yield f"Iterations that train an anchor alone: {100 * share:.1f} %"


def main():
    """Runs the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--csv", metavar="OUT", help="also write the table to this file")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_args()
    with exit_on_input_error():
        run(args)


def run(args):
    """Prints the table, and writes it if asked to."""
    try:
        config = load_config(args.config_file, args.opts)
        costs = stitch_costs(config.model)
        # Each image size of a training has costs, and with them groups, of its own.
        tables = [costs]
        if config.train.image_sizes:
            by_size = costs_by_size(config)
            tables = [by_size[size] for size in config.train.image_sizes]
        samplers = [build_sampler(config, table) for table in tables]
        each = [training_shares(sampler, config.train.max_iter) for sampler in samplers]
        shares = [sum(column) / len(each) for column in zip(*each, strict=True)]
        mean = sum(map(mean_gflops, each, tables)) / len(each)
        size = image_size_of(config.model)
        model = build_on_meta(config.model)
        config.sweep.stitch_ids = "all"
        points = points_of(config, model)
        rows = rows_of(points, costs_of(config, points), shares)
        ratio = cost_aspect_ratio(config)
        shown = stitch_costs(config.model, aspect_ratio=ratio)
        alone = {name: anchor_alone(config.model, name) for name in ("small", "large")}
        baselines = {name: baseline_cost(each, aspect_ratio=ratio) for name, each in alone.items()}
        # A training pads to the square.
        large_alone = baseline_cost(alone["large"])
        if args.csv:
            write_csv(args.csv, COLUMNS, rows)
    except InterpolationToMissingValueError as error:
        raise InputError(
            "the number of classes comes from data that the config leaves to you; for the costs "
            "alone give model.roi_heads.num_classes=80"
        ) from error
    print(tabulate(rows, COLUMNS, disable_numparse=[1, 2, 3]))
    many = counted_points([point.name for point in points])
    shorter, _ = tight_shape(model, size, (int(size / (ratio or 1) + 0.5), size))
    at = "" if config.sweep.image_sizes else f" at {size} x {shorter} pixels"
    print(
        f"\n{many}{at}. GFLOPs are multiply-accumulates / 1e9 of the whole detector,\n"
        "parameters are in millions, probability is that of being trained in an iteration,\n"
        "averaged over the training."
    )
    whole = "joined detector" if is_joined(config.model) else "supernet"
    for anchor in costs.space.anchors:
        print(f"{anchor.name} in the {whole}: {shown[anchor.id].gflops:.5g} GFLOPs")
    for name, cost in baselines.items():
        print(f"ViTDet on the {name} anchor alone (baseline): {cost.gflops:.5g} GFLOPs")
    for line in training_lines(samplers[0], shares, mean, costs, large_alone):
        print(line)


if __name__ == "__main__":
    main()

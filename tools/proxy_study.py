#!/usr/bin/env python
"""Trains the proxy in many variants and tells what each gains and costs; see docs/accuracy.md.

    python tools/proxy_study.py --seeds 0 1 2
    python tools/proxy_study.py --seeds 0 1 2 --variants paper full_rank [key=value ...]
    python tools/proxy_study.py --seeds 3 --rows elsewhere/study.csv
    python tools/proxy_study.py --seeds --rows docs/accuracy.csv

For each seed, both ViTs are trained alone from random weights; from their backbones, then, each
again alone, and the supernet of every variant, for the same number of iterations. Writes study.csv,
a row a run as soon as there is one, and gaps.png; started again, it goes on. Seeds can be run on
several machines, and their rows be put together; without seeds, nothing is trained.
"""

import argparse
import os
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from snnet_vitdet.engine import load_config
from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.modeling import baseline_cost, stitch_costs
from snnet_vitdet.report import drawing
from snnet_vitdet.report.gap_plot import Gap, plot_gaps
from snnet_vitdet.study import (
    ALONE,
    CONFIGS,
    PAPER,
    VARIANTS,
    Runner,
    Study,
    StudyTable,
    scores_of,
    training_cost,
)

ROOT = Path(__file__).resolve().parent.parent
# What a training may cost over the paper's recipe to become the default.
DEAR = 1.3


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--pretrain-iter", type=int, default=2000)
    parser.add_argument("--max-iter", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--folder", default="output/proxy")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[],
        metavar="CSV",
        help="also take in the rows of these study.csv, of other seeds or variants",
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of every run")
    return parser.parse_intermixed_args()


class Takings:
    """Puts what the runs have reached into a table, which is written whenever there is more."""

    def __init__(self, table, path, variants, costs):
        self.table, self.path, self.costs = table, path, costs
        self.vits = {variant.name: variant.vit for variant in variants}
        self.alone = {}

    def add(self, seed, name, rows):
        """Takes in a run; those that the others are compared with come first."""
        if vit := self.vits[name]:
            (row,) = rows
            values = {vit: row["bbox_AP"]}
            if name == ALONE[vit].name:
                self.alone[seed, vit] = row
            else:
                values[f"{vit}_gap"] = row["bbox_AP"] - self.alone[seed, vit]["bbox_AP"]
        else:
            found = scores_of(rows, *(self.alone[seed, vit] for vit in ALONE))
            values = {key: value for key, value in vars(found).items() if key != "by_kind"}
            values |= found.by_kind
        values["cost"] = self.costs[name]
        self.table.add(seed, name, values)
        self.table.write(self.path)
        shown = ", ".join(f"{key} {value:.2f}" for key, value in values.items())
        print(f"seed {seed}, {name}: {shown}", flush=True)


def run(args):
    """Plays the study, and prints it."""
    if len(set(args.seeds)) < len(args.seeds):
        raise InputError(f"--seeds {args.seeds} names one twice")
    if not args.seeds and not args.rows:
        raise InputError("nothing is asked for: give --seeds to run, or --rows of others that ran")
    table = StudyTable(cost_of(PAPER, args))
    for path in args.rows:
        table.read(path)
    variants = [variant for variant in VARIANTS if variant.name in args.variants]
    # Each with its overrides, so that a mistake is found before anything is trained.
    runs = [*ALONE.values(), *variants] if args.seeds else []
    costs = {variant.name: cost_of(variant, args) for variant in runs}
    folder = Path(args.folder).resolve()
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    runner = Runner(ROOT / "train_net.py", folder, tuple(args.opts), threads)
    takings = Takings(table, folder / "study.csv", runs, costs)
    study = Study(runner, args.pretrain_iter, args.max_iter)
    study.play(args.seeds, variants, args.jobs, takings.add)
    print(f"\n{table.summary()}")
    print(f"Results in {folder}")
    picture = folder / "gaps.png"
    with drawing(str(picture)):
        plot_gaps(list(gaps(table)), picture, DEAR)


def cost_of(variant, args):
    """Arithmetic of a whole training over that of the large ViT alone, of the usual length."""
    overrides = [*args.opts, f"train.max_iter={args.max_iter}", *variant.overrides]
    config = load_config(str(ROOT / CONFIGS[variant.vit or "supernet"]), overrides)
    if variant.vit is None:
        cost = training_cost(config, stitch_costs(config.model))
    else:
        large = load_config(str(ROOT / CONFIGS["large"]), args.opts)
        cost = baseline_cost(config.model).gflops / baseline_cost(large.model).gflops
    return variant.length * cost


def gaps(table):
    """What is drawn of each variant."""
    for name in table.runs:
        if values := table.results(name, "small_gap"):
            yield Gap(name, [*values.values()], *table.mean(name, "small_gap"), table.times(name))


def main():
    """Runs the program."""
    with exit_on_input_error():
        run(arguments())


if __name__ == "__main__":
    main()

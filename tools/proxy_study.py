#!/usr/bin/env python
"""Trains the proxy in many variants and tells what each gains and costs; see docs/accuracy.md.

    python tools/proxy_study.py --seeds 0 1 2
    python tools/proxy_study.py --seeds 0 1 2 --variants paper full_rank [key=value ...]

For each seed, both ViTs are trained alone from random weights; from their backbones, then, each
again alone, and the supernet of every variant, for the same number of iterations. Writes study.csv,
a row a run as soon as there is one, and gaps.png; started again, it goes on.
"""

import argparse
import csv
import io
import math
import os
from collections import defaultdict
from pathlib import Path

from snnet_vitdet.engine import load_config
from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.files import write_atomically
from snnet_vitdet.modeling import stitch_costs
from snnet_vitdet.report.gap_plot import Gap, plot_gaps
from snnet_vitdet.study import PAPER, VARIANTS, Runner, Study, paired, scores_of, training_cost

ROOT = Path(__file__).resolve().parent.parent
SUPERNET = "configs/proxy/mask_rcnn_snnet_proxy.py"
COLUMNS = ("seed", "run", "small", "large", "small_gap", "large_gap", "over_line", "cost")
KINDS = ("FS", "SF", "FSF", "SFS")
# What a training may cost over the paper's recipe to become the default.
DEAR = 1.3


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--pretrain-iter", type=int, default=2000)
    parser.add_argument("--max-iter", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--folder", default="output/proxy")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of every run")
    return parser.parse_intermixed_args()


class Table:
    """The rows of the study, written whenever there is a new one."""

    def __init__(self, path, costs):
        self.path, self.costs = path, costs
        self.rows = []
        self.alone = {}

    def add(self, seed, name, rows):
        """Takes in a run; those of single ViTs come first."""
        if name.endswith("_alone"):
            (row,) = rows
            self.alone[seed, name] = row
            values = {"small" if name.startswith("small") else "large": row["bbox_AP"]}
        else:
            found = scores_of(
                rows, self.alone[seed, "small_alone"], self.alone[seed, "large_alone"]
            )
            values = {key: getattr(found, key) for key in COLUMNS[2:-1]} | found.by_kind
            values["cost"] = self.costs[name]
        self.rows.append({"seed": seed, "run": name, **values})
        text = io.StringIO()
        writer = csv.DictWriter(text, (*COLUMNS, *KINDS), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue().encode())
        shown = ", ".join(f"{key} {value:.2f}" for key, value in values.items())
        print(f"seed {seed}, {name}: {shown}", flush=True)

    def gaps(self):
        """What is drawn of each variant."""
        for (name, key), values in self._by_seed().items():
            if key == "small_gap":
                yield Gap(name, [*values.values()], *_mean(values), self._times(name))

    def _by_seed(self):
        """What was reached, by run and column, then by seed."""
        of = defaultdict(dict)
        for row in self.rows:
            for key in COLUMNS[2:-1]:
                if key in row:
                    of[row["run"], key][row["seed"]] = row[key]
        return of

    def _times(self, name):
        """What a variant's training costs over that of the paper's recipe."""
        return self.costs[name] / self.costs[PAPER.name]

    def summary(self):
        """Means over the seeds, differences to the paper's recipe, as a Markdown table.

        The cost is that of a training iteration over one of the large ViT alone, then over one of
        the paper's recipe.
        """
        of = self._by_seed()
        columns = ("small end", "less S alone", "large end", "less L alone", "over the line")
        lines = [f"| run | {' | '.join(columns)} | cost |", "| --- " * 7 + "|"]
        for name in dict.fromkeys(row["run"] for row in self.rows):
            cells = []
            for key in COLUMNS[2:-1]:
                cells.append(_cell(of[name, key], of[PAPER.name, key]) if of[name, key] else "")
            small, large, small_gap, large_gap, over_line = cells
            cost = (
                f"{self.costs[name]:.2f} ({self._times(name):.2f}×)" if name in self.costs else ""
            )
            cells = (name, small, small_gap, large, large_gap, over_line, cost)
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _mean(values):
    """Of the seeds, and its standard error."""
    return paired(values, dict.fromkeys(values, 0.0))


def _cell(values, of_paper):
    mean, error = _mean(values)
    text = f"{mean:.2f}"
    if not math.isnan(error):
        text += f" ± {error:.2f}"
    if of_paper and values is not of_paper and values.keys() & of_paper.keys():
        gain, error = paired(values, of_paper)
        text += f" ({gain:+.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}") + ")"
    return text


def run(args):
    """Plays the study, and prints it."""
    if len(set(args.seeds)) < len(args.seeds):
        raise InputError(f"--seeds {args.seeds} names one twice")
    variants = [variant for variant in VARIANTS if variant.name in args.variants]
    # Each with its overrides, so that a mistake is found before anything is trained.
    costs = {}
    for variant in {PAPER: None, **dict.fromkeys(variants)}:
        overrides = [*args.opts, f"train.max_iter={args.max_iter}", *variant.overrides]
        config = load_config(str(ROOT / SUPERNET), overrides)
        costs[variant.name] = training_cost(config, stitch_costs(config.model))
    folder = Path(args.folder).resolve()
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    runner = Runner(ROOT / "train_net.py", folder, tuple(args.opts), threads)
    table = Table(folder / "study.csv", costs)
    study = Study(runner, args.pretrain_iter, args.max_iter)
    study.play(args.seeds, variants, args.jobs, table.add)
    plot_gaps(list(table.gaps()), folder / "gaps.png", DEAR)
    print(f"\n{table.summary()}")
    print(f"Results in {folder}")


def main():
    """Runs the program."""
    with exit_on_input_error():
        run(arguments())


if __name__ == "__main__":
    main()

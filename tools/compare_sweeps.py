#!/usr/bin/env python
"""Compares sweeps: at equal cost, over all budgets, and stitch by stitch.

    python tools/compare_sweeps.py output/a output/b
    python tools/compare_sweeps.py ours=output/ours baselines=output/vit_s+output/vit_l
    python tools/compare_sweeps.py r16=output/a0 r16=output/a1 r4=output/b0 r4=output/b1 --by mask

Each argument is the folder of a training or of its sweep, with an optional name before it. Folders
joined by + form one set to choose from, such as baselines trained apart. Arguments with the same
name are runs that differ in their seed: their scores are averaged, with the standard deviation. All
others are compared with the first one.
"""

import argparse
import os
from collections import defaultdict
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from tabulate import tabulate

from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.evaluation import (
    Candidate,
    StitchTable,
    common_range,
    equal_cost_budgets,
    same_stitches,
)
from snnet_vitdet.evaluation.results import METRICS, SCORES, TASKS, has_value, num_images
from snnet_vitdet.files import read_json, write_csv
from snnet_vitdet.report import drawing, plot_comparison

COSTS = {
    "gflops": ("GFLOPs", "GFLOPs (multiply–accumulates / 1e9)"),
    "params_m": ("M params", "parameters (millions)"),
    "latency_ms": ("ms", "latency of an image (ms)"),
    "memory_mb": ("MB", "peak memory (MB)"),
}


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="+", metavar="[NAME=]FOLDER[+FOLDER …]")
    parser.add_argument("--by", default="box", help="box or mask AP, or a score such as bbox_AP50")
    parser.add_argument("--cost", default="gflops", choices=tuple(COSTS))
    parser.add_argument(
        "--at",
        metavar="COST,COST,…",
        help="compare at these costs; default: eight between the ends",
    )
    parser.add_argument("--output", default="output/comparison.png", metavar="FILE.png")
    parser.add_argument("--csv", metavar="FILE", help="write the comparison at equal cost as well")
    return parser.parse_args()


def split(argument):
    """Name and folders of an argument."""
    # A folder may have an equals sign or a plus in its own name.
    if os.path.isdir(argument):
        return argument, [argument]
    name, separator, folders = argument.rpartition("=")
    parts = [folders] if os.path.isdir(folders) else folders.split("+")
    if not all(parts) or (separator and not name):
        raise InputError(f"{argument!r} cannot be read: write FOLDER, or NAME=FOLDER+FOLDER")
    return name or folders, parts


def rows_of(folders, metric, cost):
    """The rows of one or several sweeps, and the data they were scored on."""
    rows, scored_on = [], set()
    for folder in folders:
        table = StitchTable.read(folder)
        own = table.rows()
        if not any(has_value(row, cost) and has_value(row, metric) for row in own):
            raise InputError(f"no stitch of {folder} has both {cost} and {metric}")
        rows += own
        scored_on.add((test_file(folder), max(map(num_images, own))))
    return rows, scored_on


def test_file(folder):
    """Name and size of the annotations that a sweep was scored on, if it noted them."""
    path = Path(folder, "sweep.json")
    path = path if path.is_file() else Path(folder, "sweep", "sweep.json")
    try:
        facts = read_json(path)
        return f"{os.path.basename(facts['test_json'])} of {facts['test_json_bytes']} bytes"
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown annotations"


def candidates_of(arguments_, metric, cost):
    """The candidates in the order of the command line, and notes on what cannot be compared."""
    runs, scored_on = defaultdict(list), {}
    for argument in arguments_:
        name, folders = split(argument)
        rows, images = rows_of(folders, metric, cost)
        runs[name].append(tuple(rows))
        for each in images:
            scored_on.setdefault(each, name)
    notes = []
    if len(scored_on) > 1:
        what = "; ".join(
            f"{name}: {number} images, {file}" for (file, number), name in scored_on.items()
        )
        notes.append(f"Scores of different images cannot be compared ({what}).")
    rows = [row for each in runs.values() for run in each for row in run]
    if len({row["aspect_ratio"] for row in rows}) > 1:
        notes.append(
            "The sweeps have different padding or aspect ratios: their costs are those of images "
            "of different shapes."
        )
    return [Candidate(name, tuple(each), cost, metric) for name, each in runs.items()], notes


def budgets_of(given, low, high):
    """The costs to compare at."""
    if given is None:
        return equal_cost_budgets(low, high)
    try:
        budgets = [float(part) for part in given.split(",")]
    except ValueError:
        raise InputError(f"--at takes numbers with commas between them, got {given!r}") from None
    if outside := [budget for budget in budgets if not low <= budget < float("inf")]:
        raise InputError(
            f"--at {outside[0]:g}: not all sweeps have a stitch that cheap; the lowest is {low:.4g}"
        )
    return budgets


def with_spread(mean, spread, decimals=1):
    """A mean, and the standard deviation if there is one."""
    return f"{mean:.{decimals}f}" + (f" ± {spread:.{decimals}f}" if spread else "")


def equal_cost_table(candidates, budgets, unit):
    """Header and rows: the best score within each budget, and the differences to the first."""
    first, *others = candidates
    header = [unit, first.name, *(head for c in others for head in (c.name, f"Δ {c.name}"))]
    rows = []
    for budget in budgets:
        mean, spread = first.at(budget)
        row = [f"{budget:.4g}", with_spread(mean, spread)]
        for other in others:
            other_mean, other_spread = other.at(budget)
            row += [with_spread(other_mean, other_spread), f"{other_mean - mean:+.1f}"]
        rows.append(row)
    return header, rows


def area_table(candidates, low, high, unit):
    """Header and rows: each candidate over all budgets."""
    header = ["", "stitches", "area", "mean AP", "Δ", f"best, at {unit}", "same stitches, Δ"]
    first, rows = candidates[0], []
    for candidate in candidates:
        mean, spread = candidate.mean(low, high)
        cost, metric = candidate.cost, candidate.metric
        points = [row for run in candidate.points() for row in run]
        best = max(points, key=lambda row: (row[metric], -row[cost]))
        is_first = candidate is first
        row = [
            candidate.name,
            len(candidate.points()[0]),
            with_spread(*candidate.area(low, high)),
            with_spread(mean, spread, 2),
            "" if is_first else f"{mean - first.mean(low, high)[0]:+.2f}",
            f"{best[metric]:.1f} ({best['name']}), {best[cost]:.4g}",
            "" if is_first else same_text(first, candidate),
        ]
        rows.append(row)
    return header, rows


def same_text(first, other):
    """How the scores of the stitches in both differ."""
    differences = same_stitches(first, other)
    if not differences:
        return "none in common"
    mean = sum(differences) / len(differences)
    higher = sum(difference > 0 for difference in differences)
    return f"{mean:+.2f}, {higher} of {len(differences)} higher"


def run(args):
    """Reads, compares, prints and draws."""
    metric = SCORES.get(args.by, args.by)
    if metric not in METRICS:
        raise InputError(f"--by takes box, mask or one of {', '.join(METRICS)}, not {args.by!r}")
    candidates, notes = candidates_of(args.sweeps, metric, args.cost)
    unit, label = COSTS[args.cost]
    low, high = common_range(candidates)
    header, rows = equal_cost_table(candidates, budgets_of(args.at, low, high), unit)
    print(f"Best {metric} within a budget, and the difference to {candidates[0].name}")
    print(tabulate(rows, header, disable_numparse=True, stralign="right"))
    print(f"\nAll budgets from {low:.4g} to {high:.4g} {unit}: area under the frontier of {metric}")
    print(tabulate(*area_table(candidates, low, high, unit)[::-1], disable_numparse=True))
    for note in notes:
        print(f"\nNote: {note}")
    if args.csv:
        write_csv(args.csv, header, rows)
    task, _, ap = metric.partition("_")
    with drawing(args.output):
        plot_comparison(candidates, args.output, label, f"{TASKS[task]} {ap} (COCO, 0–100)")
    print(f"\nThe picture: {args.output}")


def main():
    """Runs the program."""
    with exit_on_input_error():
        run(arguments())


if __name__ == "__main__":
    main()

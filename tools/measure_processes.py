#!/usr/bin/env python
"""Measures what grows with the number of processes of a training, by gloo on this machine's CPU.

    python tools/measure_processes.py
    python tools/measure_processes.py --processes 1 2 4 8 --total-batch 8 --config-file F

The images of an iteration are the same for any number of processes. Writes processes.csv.
"""

import argparse
import csv
import os
from dataclasses import asdict

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from snnet_vitdet.benchmark import load_without_data, measure_processes
from snnet_vitdet.errors import InputError, exit_on_input_error


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
    return parser.parse_args()


def run(args):
    """Measures, prints and writes everything."""
    wrong = [number for number in args.processes if number < 1 or args.total_batch % number]
    if wrong:
        raise InputError(
            f"--processes {wrong[0]} cannot share --total-batch {args.total_batch}: give a "
            "multiple of each"
        )
    config = load_without_data(args.config_file, args.opts)
    rows = []
    for number in args.processes:
        row = measure_processes(config, number, args.total_batch, args.repeats)
        rows.append(asdict(row))
        print(
            f"{number} processes of batch {row.batch}: {row.seconds:.3f} s "
            f"an iteration, {row.cpu_seconds:.3f} s of all processors, fit {row.fit_seconds:.2f} s"
        )
        print(
            f"    each: {row.reduced_bytes / 2**20:.1f} MiB reduced, "
            f"{1000 * row.agree_seconds:.2f} ms to agree, {row.peak_bytes / 2**20:.0f} MiB memory"
        )
    os.makedirs(args.output, exist_ok=True)
    path = os.path.join(args.output, "processes.csv")
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

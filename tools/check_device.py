#!/usr/bin/env python
"""Checks in minutes what a new machine should show before a training of days.

    python tools/check_device.py
    python tools/check_device.py --config-file F --checks attention training

The device's results are compared with those of the CPU: operators, attention, ViT, masks and a
sweep, in each precision. The most expensive stitch of the config takes a training step, and its
memory is shown. Two processes exchange gradients. Weights are random; needs neither data nor
network. The table says ok, differs, or not here for what the machine does not have. Exit status 1
if anything differs.
"""

import argparse
import sys
import time
import traceback

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import torch

from benchmark import device_and_config
from device_checks import Setting, check_masks, check_processes, check_training, check_versions
from device_networks import check_attention, check_sweep, check_vit
from snnet_vitdet.engine import parse_with_overrides
from snnet_vitdet.errors import exit_on_input_error, first_line

CHECKS = {
    "versions": check_versions,
    "attention": check_attention,
    "vit": check_vit,
    "masks": check_masks,
    "training": check_training,
    "sweep": check_sweep,
    "processes": check_processes,
}
STATUS = {True: "ok", False: "differs", None: "not here"}


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE", help="default: one for this machine")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parse_with_overrides(parser)


def rows_of(checks, setting):
    """Runs checks; yields name, status and figure. An error is a row, and the next check runs."""
    for name in checks:
        try:
            for row, is_right, figure in CHECKS[name](setting):
                yield row, STATUS[is_right], figure
        except Exception as error:
            traceback.print_exc()
            yield name, STATUS[False], f"{type(error).__name__}: {first_line(error)}"
        if setting.on_gpu:
            torch.cuda.empty_cache()


def run(args) -> int:
    """Prints the table; returns 1 if anything differs, else 0."""
    device, config = device_and_config(args)
    start = time.monotonic()
    table = []
    for row in rows_of(args.checks, Setting(config, device)):
        table.append(row)
        print(f"{time.monotonic() - start:5.0f} s  {': '.join(row)}", flush=True)
    print()
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    for name, status, figure in table:
        print(f"{name:{widths[0]}}  {status:{widths[1]}}  {figure}")
    different = sum(status == STATUS[False] for _, status, _ in table)
    print(f"\n{different} of {len(table)} differ." if different else "\nNothing differs.")
    return int(different > 0)


def main():
    """Runs the program."""
    with exit_on_input_error():
        sys.exit(run(arguments()))


if __name__ == "__main__":
    main()

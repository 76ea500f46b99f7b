#!/usr/bin/env python
"""Writes report.html beside the results of a sweep: cost, AP and sample detections of stitches.

    python tools/make_report.py --config-file output/my/config.yaml

Every sweep writes this page at its end. Run this program after tools/measure_latency.py to add
latency and memory. The page is a single file that needs no network and no server.
"""

import argparse

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from snnet_vitdet.deploy import Predictor, write_sweep_report
from snnet_vitdet.engine import load_config
from snnet_vitdet.errors import exit_on_input_error
from snnet_vitdet.report import drawing


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="weights for the sample detections; default: the training's last checkpoint",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-samples", action="store_true", help="no sample detections")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parser.parse_args()


def run(args):
    """Writes the page."""
    config = load_config(args.config_file, args.opts)

    def predictor(table):
        return Predictor(config, args.weights, table=table, device=args.device)

    with drawing("report.html"):
        path = write_sweep_report(config, None if args.no_samples else predictor)
    print(f"The report is {path}")


def main():
    """Runs the program."""
    with exit_on_input_error():
        run(arguments())


if __name__ == "__main__":
    main()

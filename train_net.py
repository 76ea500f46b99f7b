#!/usr/bin/env python
"""Train, resume and evaluate: the one entry point.

    python train_net.py --config-file configs/shapes/mask_rcnn_snnet_nano.py [key=value ...]
    python train_net.py --config-file F --resume
    python train_net.py --config-file F --eval-only train.init_checkpoint=output/F/model_final.pth

Behaves as detectron2's lazyconfig_train_net.py; --eval-only sweeps over the stitches of
sweep.stitch_ids and writes tables, pareto.png and report.html to sweep/ in train.output_dir.
"""

import argparse
import contextlib
import logging
import os
import signal
from collections.abc import Sequence

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While libraries load, Ctrl-C ends the process at once. Some of them would turn the
    # KeyboardInterrupt into an ImportError, and the exit status into 1.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from snnet_vitdet.engine import (
    AUTO,
    Config,
    alone_in,
    apply_linear_scaling,
    folder_of_run,
    load_config,
    preflight,
    prepare_run,
    run_in_processes,
    set_up,
    train,
)
from snnet_vitdet.errors import exit_on_input_error
from snnet_vitdet.sweep_run import run_sweep

logger = logging.getLogger("snnet_vitdet.train_net")


def main(args: argparse.Namespace, config: Config, notes: Sequence[str] = ()) -> None:
    """Runs one process of a training or a sweep.

    Args:
        args: The command line, as detectron2 parses it.
        config: The whole config, checked.
        notes: Lines for the log from before it was open.
    """
    if config.train.device == "cpu" and comm.get_local_size() > 1:
        # With more threads than cores, OpenMP's barriers wait ten times longer than the arithmetic.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))
    folder, main_process = folder_of_run(config, args), comm.is_main_process()
    with alone_in(folder) if main_process else contextlib.nullcontext():
        set_up(config, args)
        for note in notes:
            logger.info(note)
        (run_sweep if args.eval_only else train)(config, args.resume)


def cli() -> None:
    """Reads the command line, checks everything, and starts the processes."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = default_argument_parser(epilog=__doc__)
    # detectron2's default is a fixed port, with which one machine runs one training at a time.
    parser.set_defaults(dist_url=AUTO)
    args = parser.parse_args()
    setup_logger(name="snnet_vitdet", distributed_rank=int(os.environ.get("RANK", 0)))

    def prepare(num_processes: int) -> tuple[Config, list[str]]:
        config = load_config(args.config_file, args.opts)
        notes = [] if args.eval_only else apply_linear_scaling(config)
        preflight(
            config, evaluation=args.eval_only, resume=args.resume, num_processes=num_processes
        )
        prepare_run(config, evaluation=args.eval_only, resume=args.resume)
        return config, notes

    with exit_on_input_error():
        run_in_processes(prepare, main, args)


if __name__ == "__main__":
    cli()

"""The folder of a run, with its logs and its config."""

import argparse
import copy
import logging
import os
import sys

from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from .config import save_config
from .log_file import log_to_file
from .precision import set_float32_arithmetic

__all__ = ["run_folder", "set_up"]


def run_folder(config: DictConfig, args: argparse.Namespace) -> str:
    """Where a run has its log, config.yaml and results.

    Args:
        config: The whole config.
        args: The command line, as detectron2 parses it.
    """
    return os.path.join(config.train.output_dir, "sweep" if args.eval_only else "")


def set_up(config: DictConfig, args: argparse.Namespace) -> None:
    """detectron2's set-up of a run, with logs and config.yaml in the folder of the run.

    A folder's config.yaml stays the one of its training: a sweep has its own, and resuming replaces
    it only when the checkpoint has been loaded with what it says.

    Args:
        config: The whole config.
        args: The command line, as detectron2 parses it.
    """
    folder = run_folder(config, args)
    log_to_file(folder, comm.get_rank(), ("detectron2", "fvcore", "snnet_vitdet"))
    # The first process may be the one that has set up the screen for the checks already.
    if not any(map(_writes_to_screen, logging.getLogger("snnet_vitdet").handlers)):
        setup_logger(distributed_rank=comm.get_rank(), name="snnet_vitdet")
    without_folder = copy.deepcopy(config)
    without_folder.train.output_dir = None
    default_setup(without_folder, args)
    set_float32_arithmetic(config.train.tf32)
    path = os.path.join(folder, "config.yaml")
    if comm.is_main_process() and not (args.resume and not args.eval_only and os.path.isfile(path)):
        save_config(config, path)


def _writes_to_screen(handler: logging.Handler) -> bool:
    """Whether a handler of a log is not one of its file."""
    return getattr(handler, "stream", None) is sys.stdout

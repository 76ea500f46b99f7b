"""The programs, run inside the tests' process: importing torch and detectron2 takes seconds."""

import contextlib
import io
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import train_net
from detectron2.engine import default_argument_parser
from omegaconf import DictConfig

from snnet_vitdet.engine import preflight, prepare_run

ROOT = Path(__file__).parent.parent


def run_main(config: DictConfig, *flags: str) -> None:
    """A run of train_net.py with a config that is loaded already, checked as one from its file."""
    args = default_argument_parser().parse_args(list(flags))
    preflight(config, evaluation=args.eval_only, resume=args.resume, num_processes=1)
    prepare_run(config, evaluation=args.eval_only, resume=args.resume)
    train_net.main(args, config)


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        code: Exit status.
        printed: What it wrote to its standard output.
        error: What it wrote to its standard error, or ended with.
    """

    code: int
    printed: str
    error: str


def run_program(path: str, *arguments: str) -> Finished:
    """Runs a program of this repository, such as ``tools/predict.py``."""
    printed, error, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [path, *arguments]),
        mock.patch.object(sys, "path", list(sys.path)),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(error),
    ):
        try:
            runpy.run_path(str(ROOT / path), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=error)
    return Finished(code, printed.getvalue(), error.getvalue())

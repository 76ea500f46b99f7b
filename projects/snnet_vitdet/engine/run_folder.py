"""The folder of a run: one run at a time, its log files, its config."""

import argparse
import contextlib
import copy
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from snnet_vitdet.errors import InputError, cannot_write

from .precision import set_float32_arithmetic
from .saved_config import save_config
from .settings import Config

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["alone_in", "log_to_file", "folder_of_run", "set_up"]

logger = logging.getLogger(__name__)

# A run that was killed, perhaps on another machine, may need a moment to end.
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.5


def folder_of_run(config: Config, args: argparse.Namespace) -> str:
    """The folder for log, config.yaml and results: ``train.output_dir``, or its ``sweep``."""
    return os.path.join(config.train.output_dir, "sweep" if args.eval_only else "")


def set_up(config: Config, args: argparse.Namespace) -> None:
    """detectron2's ``default_setup``, with logs and config.yaml in the folder of the run.

    A sweep has its own config.yaml. A resumed training replaces its config.yaml later, once its
    checkpoint is loaded.

    Args:
        config: The whole config.
        args: The command line, as detectron2 parses it.
    """
    folder = folder_of_run(config, args)
    log_to_file(folder, comm.get_rank(), ("detectron2", "fvcore", "snnet_vitdet"))
    # The first process may have set up the screen for its checks already.
    handlers = logging.getLogger("snnet_vitdet").handlers
    if not any(getattr(handler, "stream", None) is sys.stdout for handler in handlers):
        setup_logger(distributed_rank=comm.get_rank(), name="snnet_vitdet")
    without_folder = copy.deepcopy(config)
    without_folder.train.output_dir = None
    default_setup(without_folder, args)
    set_float32_arithmetic(config.train.tf32)
    path = os.path.join(folder, "config.yaml")
    resumes = args.resume and not args.eval_only and os.path.isfile(path)
    if comm.is_main_process() and not resumes:
        save_config(config, path)


@contextlib.contextmanager
def alone_in(folder: str, patience: float = _PATIENCE_SECONDS) -> Iterator[None]:
    """Keeps other runs out of a folder, where they would overwrite each other's checkpoints.

    The lock is the operating system's and ends with the process, even if that is killed; the file
    ``.lock`` stays. On a file system without locks there is none.

    Args:
        folder: The folder; made if it does not exist.
        patience: Seconds to wait for another run to end.

    Raises:
        InputError: If another run is still there.
    """
    path = Path(folder, ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): choose another train.output_dir"
        ) from error
    with file:  # closing it releases the lock
        if fcntl is not None:
            _lock(file, folder, patience)
        yield


def _lock(file: TextIO, folder: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    waiting = False
    while True:
        try:
            # Unlike flock, lockf is not inherited by data workers, which may outlive a killed run.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            if time.monotonic() > deadline:
                raise InputError(
                    f"another run ({holder}) is at work in {folder}: wait for its end, stop it, or "
                    "choose another train.output_dir"
                ) from None
            if not waiting:
                logger.warning("Another run (%s) is in %s; waiting for its end.", holder, folder)
                waiting = True
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no other run in it.", folder, error)
            return
    # The name of the holder, for others to read. On a full disk, the lock holds without it.
    with contextlib.suppress(OSError):
        os.truncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def log_to_file(folder: str, rank: int, names: tuple[str, ...]) -> None:
    """Adds ``log.txt`` (``log.txt.rank1`` and so on) to loggers, as detectron2 does.

    In contrast to detectron2's, a full disk does not end the run: it is reported once.

    Args:
        folder: Folder of the run.
        rank: Index of this process.
        names: Names of the loggers.

    Raises:
        InputError: If the file cannot be opened.
    """
    path = os.path.abspath(os.path.join(folder, f"log.txt.rank{rank}" if rank else "log.txt"))
    try:
        os.makedirs(folder, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
    handler.setFormatter(
        logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
    )
    for each in map(logging.getLogger, names):
        each.setLevel(logging.DEBUG)
        each.propagate = False
        # An earlier run of this process in the same folder has left its handler.
        for other in each.handlers[:]:
            if isinstance(other, _LogFile) and other.baseFilename == path:
                each.removeHandler(other)
        each.addHandler(handler)


class _LogFile(logging.FileHandler):
    """Reports once that it cannot write; logging's own prints a traceback for every record."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by ``emit`` when writing fails."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            sys.stderr.write(f"warning: {cannot_write(self.baseFilename, error)}\n")

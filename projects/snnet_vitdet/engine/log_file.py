"""The log file of a run, which goes on where the disk is full."""

import logging
import os
import sys

from snnet_vitdet.errors import cannot_write

__all__ = ["log_to_file"]


def log_to_file(folder: str, rank: int, names: tuple[str, ...]) -> None:
    """Lets loggers write ``log.txt``, or ``log.txt.rank1`` and so on, as detectron2 would.

    Args:
        folder: Of the run.
        rank: Index of this process.
        names: Of the loggers.

    Raises:
        InputError: If the file cannot be opened.
    """
    path = os.path.abspath(os.path.join(folder, f"log.txt.rank{rank}" if rank else "log.txt"))
    loggers = [logging.getLogger(name) for name in names]
    try:
        os.makedirs(folder, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
    handler.setFormatter(
        logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
    )
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        # Of an earlier run of this process in the same folder.
        for other in logger.handlers[:]:
            if isinstance(other, _LogFile) and other.baseFilename == path:
                logger.removeHandler(other)
        logger.addHandler(handler)


class _LogFile(logging.FileHandler):
    """Says once that it cannot write, where others print a traceback for every record."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by ``emit`` where it has failed."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            sys.stderr.write(f"warning: {cannot_write(self.baseFilename, error)}\n")

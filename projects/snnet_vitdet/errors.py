"""The exception for wrong input of the user, and how a program ends with it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from snnet_vitdet.encoding import in_utf8
from snnet_vitdet.text import neutral

__all__ = ["InputError", "cannot_write", "exit_on_input_error", "exit_with", "first_line"]


class InputError(ValueError):
    """Wrong input: a config, an override, a weight file or data.

    The message is one or two sentences that name the fault and the remedy. The command-line
    programs print it without a traceback and exit with status 2. Callers can catch it as a
    ``ValueError``.
    """

    def __init__(self, message: object = "") -> None:
        # The message may contain any name from a file.
        super().__init__(neutral(message))


def exit_with(error: InputError | str) -> NoReturn:
    """Ends a command-line program: prints the error to stderr and exits with status 2."""
    sys.stderr.write(f"error: {neutral(error)}\n")
    sys.exit(2)


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Ends a command-line program by :func:`exit_with` if an InputError is raised inside.

    The context encloses the whole program, because :func:`.encoding.in_utf8` may restart it.
    """
    in_utf8()
    try:
        yield
    except InputError as error:
        exit_with(error)


def cannot_write(path: object, error: Exception) -> InputError:
    """The error to raise where a file cannot be written.

    Args:
        path: Path of the file.
        error: The error of its writer.
    """
    reason = getattr(error, "strerror", None) or first_line(error)
    return InputError(
        f"cannot write {path}: {reason}. Check the folder's permissions and free space, or "
        "write to another folder"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    # A message may quote a whole file.
    return line if len(line) <= 500 else f"{line[:500]}…"

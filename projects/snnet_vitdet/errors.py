"""The one exception that means "what the user gave us is wrong", and how a program ends with it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from snnet_vitdet.encoding import in_utf8
from snnet_vitdet.text import neutral

__all__ = ["InputError", "cannot_write", "exit_on_input_error", "exit_with", "first_line"]


class InputError(ValueError):
    """Wrong input from outside: a config, an override, a weight file or data.

    The message is one sentence or two that name the thing and the remedy. The command-line programs
    print it without a traceback and exit with status 2; code that calls the package can catch it as
    a ``ValueError``.
    """

    def __init__(self, message: object = "") -> None:
        # What it names may be called anything.
        super().__init__(neutral(message))


def exit_with(error: InputError | str) -> NoReturn:
    """Ends a command-line program: the sentence on the standard error output, status 2."""
    sys.stderr.write(f"error: {neutral(error)}\n")
    sys.exit(2)


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Ends a command-line program, as :func:`exit_with` does, at an InputError.

    Around all that a program does, see :func:`.encoding.in_utf8`.
    """
    in_utf8()
    try:
        yield
    except InputError as error:
        exit_with(error)


def cannot_write(path: object, error: Exception) -> InputError:
    """What to raise where a file cannot be written.

    Args:
        path: Of the file.
        error: What its writer has raised.
    """
    reason = getattr(error, "strerror", None) or first_line(error)
    return InputError(
        f"cannot write {path}: {reason}. Check the folder's permissions and free space, or "
        "write to another folder"
    )


def first_line(error: BaseException) -> str:
    """The first line of what an error of a library says, or its type if it says nothing."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    # It may quote a whole file.
    return line if len(line) <= 500 else f"{line[:500]}…"

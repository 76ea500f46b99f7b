"""The one exception that means "what the user gave us is wrong", and how a program ends with it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from .encoding import in_utf8

__all__ = ["InputError", "exit_on_input_error", "exit_with", "first_line"]


class InputError(ValueError):
    """Wrong input from outside: a config, an override, a weight file or data.

    The message is one sentence or two that name the thing and the remedy. The command-line programs
    print it without a traceback and exit with status 2; code that calls the package can catch it as
    a ``ValueError``.
    """


def exit_with(error: InputError | str) -> NoReturn:
    """Ends a command-line program: the sentence on the standard error output, status 2."""
    sys.stderr.write(f"error: {error}\n")
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


def first_line(error: BaseException) -> str:
    """The first line of what an error of a library says, or its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""What only draws must not end a program whose results are there."""

from collections.abc import Iterator
from contextlib import contextmanager

from snnet_vitdet.errors import InputError, first_line

__all__ = ["drawing"]


@contextmanager
def drawing(what: str) -> Iterator[None]:
    """Makes a sentence of whatever goes wrong when a picture or a page is made.

    Args:
        what: The picture or page, such as the path of its file.

    Raises:
        InputError: If anything goes wrong, or something wants to end the program. Ctrl-C does.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # of any library that draws
        raise InputError(
            f"{what} cannot be made ({type(error).__name__}: {first_line(error)}); the results "
            "are not touched by it"
        ) from error

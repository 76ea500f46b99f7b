"""Samples that cannot be made, handed from data workers to the process that wants them.

An exception raised in a worker would arrive as its traceback in text, without its cause.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from snnet_vitdet.errors import InputError

__all__ = ["DATA_ERRORS", "Failure", "failure_of", "raise_failures"]

DATA_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What reading and mapping raise for data that are wrong; Pillow has SyntaxError for damage."""


@dataclass(frozen=True)
class Failure:
    """What a worker hands over in place of a sample.

    Attributes:
        message: What is wrong, for an InputError.
        cause: What was raised.
    """

    message: str
    cause: BaseException | None = None


def failure_of(record: dict, error: Exception, purpose: str) -> Failure:
    """The failure of a sample.

    Args:
        record: Its dataset dict.
        error: What the mapper has raised.
        purpose: ``training`` or ``test``.
    """
    if isinstance(error, InputError):
        return Failure(str(error), _portable(error.__cause__))
    portable = _portable(error)
    return Failure(
        f"The {purpose} image {record.get('file_name')} cannot be used "
        f"({portable}): replace the file, or take it out of the annotations.",
        portable,
    )


def raise_failures(batch: Sequence) -> None:
    """Ends at the first sample that could not be made.

    Raises:
        InputError: If there is one.
    """
    for sample in batch:
        if isinstance(sample, Failure):
            raise InputError(sample.message) from sample.cause


def _portable(error: BaseException | None) -> BaseException | None:
    """The error, or its text if it cannot leave the worker."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # any failure means that it cannot
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error

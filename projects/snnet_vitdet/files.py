"""Files that are written completely or not at all, even in a crash."""

import csv
import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from snnet_vitdet.errors import InputError, cannot_write

__all__ = [
    "read_file",
    "read_json",
    "replacing",
    "temporary_folder",
    "write_atomically",
    "write_csv",
]


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file; reading a pipe or /dev/zero might never end.

    Raises:
        OSError: If it cannot be read, or is not a regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return Path(path).read_bytes()


@contextmanager
def replacing(path: str | os.PathLike[str], *errors: type[Exception]) -> Iterator[Path]:
    """Yields a temporary path to write to, which replaces ``path`` at the end of the context.

    If anything goes wrong, the temporary file is removed and the old file stays.

    Args:
        path: Path of the file; its folder is made.
        *errors: Errors besides OSError that the writer raises if it cannot write.

    Raises:
        InputError: If the file cannot be written.
    """
    path = Path(path)
    # A fixed name, so that the next attempt overwrites the file of a killed process. The same
    # suffix, because some writers require it.
    temporary = path.with_name(f".tmp.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        try:
            mode = temporary.stat().st_mode
            yield temporary
            # Some writers make files that only their owner may read.
            temporary.chmod(mode)
            # Content before name, so that a loss of power leaves no empty file.
            _sync(temporary, os.O_RDWR)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, *errors) as error:
        raise cannot_write(path, error) from error


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes bytes to a file by :func:`replacing`.

    Raises:
        InputError: If it cannot be written; an old file of this name then stays.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_csv(path: str | os.PathLike[str], header: Sequence, rows: Iterable[Sequence]) -> None:
    """Writes a table to a file, whose folder is made, or to a device.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
    except OSError as error:
        raise cannot_write(path, error) from error


def read_json(path: str | os.PathLike[str], **kwargs: object) -> object:
    """Parses a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        path: Path of the file.
        **kwargs: Arguments of ``json.loads``.

    Raises:
        OSError: If it cannot be read, or is not a regular file.
        ValueError: If it is not JSON, or nested too deeply.
    """
    # As bytes: text would be decoded with the encoding of the locale, which may be ASCII.
    content = read_file(path)
    try:
        return json.loads(content, **kwargs)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def temporary_folder(prefix: str) -> tempfile.TemporaryDirectory:
    """A temporary folder that is removed with the object.

    Args:
        prefix: Start of its name.

    Raises:
        InputError: If it cannot be made.
    """
    try:
        return tempfile.TemporaryDirectory(prefix=prefix)
    except OSError as error:
        raise InputError(
            f"There is no folder for temporary files ({error.strerror}): set TMPDIR to one that "
            "can be written."
        ) from error


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

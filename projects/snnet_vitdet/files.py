"""Files that are written as a whole or not at all: no crash and no reader meets half of one."""

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
    """The content of a regular file: a pipe would be waited for, and /dev/zero be read, forever.

    Raises:
        OSError: If it cannot be read, or is anything else than a regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return Path(path).read_bytes()


@contextmanager
def replacing(path: str | os.PathLike[str], *errors: type[Exception]) -> Iterator[Path]:
    """Gives the name of a file to write, which takes the place of ``path`` once it is on the disk.

    If anything goes wrong, it is removed, and what was there before is still whole.

    Args:
        path: Of the file; its folder is made.
        *errors: What else than OSError the writer raises where it cannot write.

    Raises:
        InputError: If it cannot be written.
    """
    path = Path(path)
    # A fixed name: what a killed process leaves behind is overwritten by the next attempt. Of the
    # same suffix: some writers ask for it.
    temporary = path.with_name(f".tmp.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        try:
            mode = temporary.stat().st_mode
            yield temporary
            # Some writers make files that their owner alone may read.
            temporary.chmod(mode)
            # First the content, then the name: after a loss of power there must be no empty file.
            _sync(temporary, os.O_RDWR)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, *errors) as error:
        raise cannot_write(path, error) from error


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file of some bytes, see :func:`replacing`.

    Raises:
        InputError: If it cannot be written; a file of this name from before is then still whole.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_csv(path: str | os.PathLike[str], header: Sequence, rows: Iterable[Sequence]) -> None:
    """Writes a table that a user asked for, to a file in a folder that is made, or to a device.

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
    """Parses a JSON file in UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

    Args:
        path: Of the file.
        **kwargs: As for ``json.loads``.

    Raises:
        OSError: If it cannot be read, or is no regular file.
        ValueError: If it is no JSON, or nested too deeply to be read.
    """
    # As bytes: text would be decoded as the locale says, which may be ASCII.
    content = read_file(path)
    try:
        return json.loads(content, **kwargs)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def temporary_folder(prefix: str) -> tempfile.TemporaryDirectory:
    """A folder of this process, which is removed with the object.

    Args:
        prefix: What its name begins with.

    Raises:
        InputError: If there is nowhere to make it.
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

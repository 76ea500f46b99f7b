"""Files in memory, for writers of a library that take a path and keep quiet about a full disk."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

__all__ = ["files_in_memory"]

_PREFIX = "snnet-memory://"


@contextmanager
def files_in_memory() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Gives a folder that detectron2 can write to, and the content of its files by name."""
    _HANDLER.files = {}
    yield _PREFIX, _HANDLER.files


class _File(io.BytesIO):
    def __init__(self, files: dict[str, bytes], name: str) -> None:
        super().__init__()
        self._files, self._name = files, name

    def close(self) -> None:
        if not self.closed:
            self._files[self._name] = self.getvalue()
        super().close()


class _Handler(PathHandler):
    files: dict[str, bytes]

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: object) -> io.IOBase:
        file = _File(self.files, path.removeprefix(_PREFIX))
        return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")


_HANDLER = _Handler()
PathManager.register_handler(_HANDLER)

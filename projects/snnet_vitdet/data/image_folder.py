"""Where the image files of a COCO file are."""

import os

from snnet_vitdet.errors import InputError

__all__ = ["ImageFolder"]


class ImageFolder:
    """Finds files by the names that an annotation file has for them."""

    def __init__(self, root: str) -> None:
        """
        Args:
            root: The folder that names are relative to.
        """
        self.root = root
        # One listing a folder: a stat call an image takes minutes on network file systems.
        self._listings: dict[str, set[str]] = {}

    def path(self, file_name: str) -> str:
        """The path of an image file, whether or not it is there.

        A name with backslashes is that of a tool on Windows, unless there is a file of this name.

        Raises:
            InputError: If a folder cannot be listed.
        """
        path = os.path.join(self.root, file_name)
        if "\\" in file_name and not self._has(path):
            return os.path.join(self.root, file_name.replace("\\", "/"))
        return path

    def has(self, file_name: str) -> bool:
        """Whether the file of an image is there.

        Raises:
            InputError: If a folder cannot be listed.
        """
        return self._has(self.path(file_name))

    def _has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._listings:
            self._listings[folder] = _list_folder(folder)
        return name in self._listings[folder]


def _list_folder(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: no name a path can have
        return set()
    except OSError as error:
        raise InputError(
            f"The image folder {folder} cannot be listed ({error.strerror}): check the path."
        ) from error

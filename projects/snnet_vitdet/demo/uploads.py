"""The folder with what visitors upload: of all files of the machine, the page reads these alone."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from snnet_vitdet.files import temporary_folder

__all__ = ["bytes_stored", "is_upload", "private_uploads", "take_uploads_alone"]

# What gradio writes beside the path of a file.
_META = {"_type": "gradio.FileData"}


@contextlib.contextmanager
def private_uploads() -> Iterator[str]:
    """A folder for what gradio stores, gone afterwards; pages must be built within."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with temporary_folder("snnet-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def is_upload(path: str | None) -> bool:
    """Tells whether a path is that of a regular file in the folder, wherever links lead to."""
    try:
        real = Path(path).resolve(strict=True)
        folder = Path(gr.utils.get_upload_folder()).resolve(strict=True)
        return real.is_relative_to(folder) and stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError, TypeError, ValueError):
        # No path, a loop of links, a zero byte: whatever it is, nothing can be read there.
        return False


def bytes_stored() -> int:
    """The size of all files in the folder."""
    total = 0
    for path in Path(gr.utils.get_upload_folder()).rglob("*"):
        # gradio deletes old ones meanwhile.
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def take_uploads_alone(page: gr.Blocks) -> None:
    """Has a page look at all that a visitor sends before gradio does.

    gradio fetches an address wherever one is sent, as the value of a slider, too, and trusts a path
    that does not say to be a file's.
    """
    preprocess = page.preprocess_data

    async def checked(function, inputs, *args, **kwargs):
        for each in _objects_in(inputs):
            if each != _META and not is_upload(each.get("path")):
                raise gr.Error("Only files that were uploaded are taken.", print_exception=False)
        # An image may be missing; a control always has a value, of the kind it is for.
        components = zip(function.inputs, inputs, strict=False)
        if any(value is None and not isinstance(each, gr.Image) for each, value in components):
            raise gr.Error("A control has no value.", print_exception=False)
        try:
            return await preprocess(function, inputs, *args, **kwargs)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise gr.Error("A control has a wrong value.", print_exception=False) from error

    page.preprocess_data = checked


def _objects_in(value: object) -> Iterator[dict]:
    """All JSON objects within a value, at any depth."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _objects_in(each)

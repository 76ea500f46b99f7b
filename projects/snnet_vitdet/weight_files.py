"""The one reader of weight files. It never runs code that a file contains.

It reads three formats: torch's (``weights_only``), safetensors, and the bare pickles of
detectron2's model zoo, with an unpickler that accepts containers and arrays of numbers only. The
content of a file determines its format; the suffix of its name must agree.
"""

import os
import pickle
from collections.abc import Mapping

import numpy as np
import safetensors.torch
import torch

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.text import shown

__all__ = ["EXPORT_KEY", "check_state_dict", "export_description", "read_weight_file"]

EXPORT_KEY = "snnet_vitdet"
"""The key of the model's description in the header of an exported file."""

_TORCH = "a file of torch.save"
_SAFETENSORS = "a safetensors file"
_PICKLE = "a bare pickle, as detectron2's model zoo has them"
# Any other suffix is compatible with every format.
_BY_SUFFIX = {
    ".pth": _TORCH,
    ".pt": _TORCH,
    ".bin": _TORCH,
    ".safetensors": _SAFETENSORS,
    ".pkl": _PICKLE,
}
_ZIP = b"PK\x03\x04"
# The first byte of a binary pickle, and what is near the start of one in torch's old format.
_BINARY_PICKLE = b"\x80"
_OLD_TORCH = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")

_REAL_TYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


def read_weight_file(path: str | os.PathLike[str], *, on_disk: bool = False) -> object:
    """The content of a weight file: containers, numbers, texts, and tensors on the CPU.

    Args:
        path: Path of the file.
        on_disk: Whether tensors may stay on the disk until their values are needed.

    Raises:
        InputError: If the file cannot be read, or contains anything else.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder: give a weight file in it, such as model_final.pth")
    if not os.path.isfile(path):
        raise InputError(f"weight file {path} does not exist: check the path")
    try:
        with open(path, "rb") as file:
            head = file.read(64)
        kind = _kind(head, os.path.getsize(path))
        named = _BY_SUFFIX.get(os.path.splitext(path)[1].lower(), kind)
        if named != kind:
            raise InputError(
                f"weight file {path} cannot be read: its name says {named}, its content is {kind}; "
                "give it the suffix of what it is"
            )
        if kind == _SAFETENSORS:
            return safetensors.torch.load_file(path)
        if kind == _TORCH:
            # Files of the old format cannot stay on the disk.
            mmap = on_disk and head.startswith(_ZIP)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        with open(path, "rb") as file:
            # As detectron2 reads them: the oldest were written by Python 2.
            return _with_tensors(_ArrayUnpickler(file, encoding="latin1").load())
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weight file {path} cannot be read as plain tensors ({_reason(error)}): it is "
            "damaged, or holds Python objects, which are never run here; save its state dict alone"
        ) from error
    except Exception as error:  # a damaged file leads the readers to errors of many types
        raise InputError(
            f"weight file {path} cannot be read ({_reason(error)}): it is truncated or no weight "
            "file; download it again, or use an earlier checkpoint"
        ) from error


def check_state_dict(state: object, source: str) -> Mapping[str, torch.Tensor]:
    """Checks that an object maps names to dense tensors of real, finite numbers.

    Args:
        state: The object, part of a weight file.
        source: Its name in an error, e.g. "weight file x.pth".

    Returns:
        The object itself.

    Raises:
        InputError: If it is anything else; names the first entry that is wrong.
    """
    if not isinstance(state, Mapping) or not state:
        what = "nothing" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise InputError(
            f"{source} holds no state dict (names to tensors) but {what}: save model.state_dict()"
        )
    for key, value in state.items():
        if fault := _fault(key, value):
            raise InputError(
                f"{source} holds no state dict (names to tensors) that can be used: "
                f"{shown(key)} {fault}; save dense tensors of real, finite numbers"
            )
    return state


def _fault(key: object, value: object) -> str:
    """What is wrong with an entry of a state dict, if anything."""
    if not isinstance(key, str):
        return f"is a {type(key).__name__}, not a name"
    if not torch.is_tensor(value):
        return f"is a {type(value).__name__}"
    if value.is_nested:
        return "is a nested tensor"
    if value.layout != torch.strided:
        return f"is a sparse tensor ({value.layout})"
    if value.dtype not in _REAL_TYPES:
        return f"is a tensor of {value.dtype}"
    if value.is_meta:
        return "is a tensor without values"
    # An expanded tensor has more elements than the file has values.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"is {tuple(value.shape)}, of which the file holds a part"
    # A model keeps them in single precision, where larger numbers become infinite.
    if torch.is_floating_point(value) and not torch.isfinite(value.float()).all():
        return "holds NaN or infinite values in float32"
    return ""


def export_description(path: str | os.PathLike[str]) -> str | None:
    """The text that describes the model of an exported file; the weights stay unread.

    Returns:
        What ``tools/export_stitch.py`` wrote; None if it did not write the file, or the file is
        damaged.
    """
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            return (file.metadata() or {}).get(EXPORT_KEY)
    except (OSError, safetensors.SafetensorError):
        return None


def _kind(head: bytes, size: int) -> str:
    """The format of a file by its first bytes."""
    if not head:
        raise ValueError("it is empty")
    if head.startswith(_ZIP):
        return _TORCH
    # The length of the header, then the header, which is JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return _SAFETENSORS
    if head.startswith(_BINARY_PICKLE):
        return _TORCH if _OLD_TORCH in head else _PICKLE
    raise ValueError("it is of another format")


def _reason(error: Exception) -> str:
    # torch's messages are long; the first sentence gives the reason.
    return first_line(error).partition(". ")[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Builds containers, numbers, texts, and stand-ins for numpy's arrays; nothing else."""

    def find_class(self, module: str, name: str) -> object:
        """The object for a name in a pickle."""
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


class _NumberType:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: str, *_: object) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"it has an array of {self.dtype}")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.ndarray`` and for what makes an empty one."""

    def __init__(self, *_: object) -> None:
        self.tensor = torch.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, number_type, fortran, data = state
        self.tensor = _tensor(data, number_type, shape, "F" if fortran else "C")


def _tensor(
    data: bytes | str, number_type: _NumberType, shape: tuple[int, ...], order: str, *_: object
) -> torch.Tensor:
    """Stands for ``numpy._core.numeric._frombuffer``; as large as its bytes in the file."""
    data = data.encode("latin1") if isinstance(data, str) else bytes(data)
    array = np.frombuffer(data, number_type.dtype).reshape(shape, order=order)
    return torch.from_numpy(np.array(array, number_type.dtype.newbyteorder("="), order="C"))


def _bytes(text: str = "", _: str = "latin1") -> bytes:
    """Stands for ``bytes()`` and ``codecs.encode``, with which Python 2 pickles have bytes."""
    return text.encode("latin1")


_STAND_INS = {
    ("collections", "OrderedDict"): dict,
    ("__builtin__", "bytes"): _bytes,
    ("_codecs", "encode"): _bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _NumberType,
    # numpy 1 and 2.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _tensor for core in ("core", "_core")},
}


def _with_tensors(node: object, depth: int = 2) -> object:
    """The content with its arrays as tensors; a state dict is at most two dicts deep."""
    if isinstance(node, dict) and depth:
        return {key: _with_tensors(value, depth - 1) for key, value in node.items()}
    return node.tensor if isinstance(node, _Array) else node

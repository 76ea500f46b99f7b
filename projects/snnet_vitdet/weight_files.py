"""The one reader of weight files. What it reads is data: nothing in a file is ever run.

Three formats are read: torch's (``weights_only``), safetensors, and the bare pickles of
detectron2's model zoo, by an unpickler that knows containers and arrays of numbers alone. Which of
them a file has is told by its content, and its name must not say otherwise.
"""

import os
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

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
# A name of another suffix, or of none, says nothing.
_BY_SUFFIX = {
    ".pth": _TORCH,
    ".pt": _TORCH,
    ".bin": _TORCH,
    ".safetensors": _SAFETENSORS,
    ".pkl": _PICKLE,
}
_ZIP = b"PK\x03\x04"
# The first byte of every binary pickle, and what follows soon in one of torch's old format.
_BINARY_PICKLE = b"\x80"
_OLD_TORCH = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")

# A file of the old format begins with these many pickles; the tensors' values follow.
_OLD_PICKLES = 5
# What a tuple of a file may hold, all in it counted; those of tensors hold about twenty.
_MAX_TUPLE = 10_000

_REAL_TYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


def read_weight_file(path: str | os.PathLike[str], *, on_disk: bool = False) -> object:
    """The content of a weight file: containers, numbers, texts, and tensors on the CPU.

    Args:
        path: Of the file.
        on_disk: Whether tensors may stay on the disk until their values are asked for.

    Raises:
        InputError: If it cannot be read, or holds anything else.
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
            _refuse_bombs(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            return _plain(content, {})
        with open(path, "rb") as file:
            _refuse_large_tuples(file)
            file.seek(0)
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


def check_state_dict(state: object, source: str) -> None:
    """Checks what is to become weights of a model: names to dense tensors of real, finite numbers.

    Args:
        state: Part of a weight file.
        source: What to call it in an error, e.g. "weight file x.pth".

    Raises:
        InputError: If it is anything else; names the first entry that is.
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
    # A few bytes can be spread over any number of elements.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"is {tuple(value.shape)}, of which the file holds a part"
    # As a model keeps them, in single precision, beyond whose range others become infinite.
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
    # The length of a header, then the header, which is JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return _SAFETENSORS
    if head.startswith(_BINARY_PICKLE):
        return _TORCH if _OLD_TORCH in head else _PICKLE
    raise ValueError("it is of another format")


def _reason(error: Exception) -> str:
    # Of torch's long texts, the first sentence says what it is.
    return first_line(error).partition(". ")[0]


def _refuse_bombs(path: str) -> None:
    """Refuses files of torch that are small and would take much time or memory."""
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            for _ in range(_OLD_PICKLES):
                _refuse_large_tuples(file)
            return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(
                    f"it has the compressed part {shown(entry.filename)}, as torch never writes it"
                )
            # torch finds the parts by names of any case.
            if entry.filename.lower().endswith(".pkl"):
                with archive.open(entry) as part:
                    _refuse_large_tuples(part)


def _refuse_large_tuples(file: BinaryIO) -> None:
    """Reads one pickle, makes nothing of it, and refuses tuples that hold too much.

    A tuple can hold another many times over at a few bytes for each; whatever then goes through all
    that is in it, as a dict does with its keys, takes forever.
    """
    stack, sizes, mark = [], {}, None
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            sizes[len(sizes) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(sizes[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(mark)
        elif opcode.stack_before or opcode.stack_after:
            held = []
            before = opcode.stack_before
            if pickletools.stackslice in before:
                while (size := stack.pop()) is not mark:
                    held.append(size)
                before = before[: before.index(pickletools.markobject)]
            held += [stack.pop() for _ in before]
            size = 1 + sum(held) if "TUPLE" in name else 1
            if size > _MAX_TUPLE:
                raise pickle.UnpicklingError("it has a tuple of too many parts")
            stack += [size] * len(opcode.stack_after)


def _plain(node: object, done: dict[int, object]) -> object:
    """A content of dicts, lists, tuples and tensors that have no attributes of the file's own.

    torch lets a file set those of parameters and ordered dicts, in the place of their methods.
    """
    if isinstance(node, torch.Tensor):
        return torch.Tensor.detach(node)
    if not isinstance(node, dict | list | tuple):
        return node
    if id(node) not in done:
        if isinstance(node, dict):
            made = {key: _plain(value, done) for key, value in dict.items(node)}
        elif isinstance(node, list):
            made = [_plain(value, done) for value in node]
        else:
            made = tuple(_plain(value, done) for value in node)
        done[id(node)] = made
    return done[id(node)]


class _ArrayUnpickler(pickle.Unpickler):
    """Makes containers, numbers, texts and our own stand-ins of numpy's arrays; nothing else."""

    def find_class(self, module: str, name: str) -> object:
        """Called for whatever a pickle names."""
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
    """Stands for ``numpy.ndarray``, made of the bytes of the file alone."""

    def __init__(self, *_: object) -> None:
        self.tensor = torch.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, number_type, fortran, data = state
        self.fill(data, number_type, shape, "F" if fortran else "C")

    def fill(
        self, data: bytes | str, number_type: _NumberType, shape: tuple[int, ...], order: str
    ) -> "_Array":
        """Takes over the values."""
        data = data.encode("latin1") if isinstance(data, str) else bytes(data)
        array = np.frombuffer(data, number_type.dtype).reshape(shape, order=order)
        native = number_type.dtype.newbyteorder("=")
        self.tensor = torch.from_numpy(np.array(array, native, order="C"))
        return self


def _empty_array(*_: object) -> _Array:
    return _Array()


def _array_of_bytes(
    data: bytes | str, number_type: _NumberType, shape: tuple[int, ...], order: str, *_: object
) -> _Array:
    return _Array().fill(data, number_type, shape, order)


def _bytes(text: str = "", _: str = "latin1") -> bytes:
    """Stands for ``bytes()`` and ``codecs.encode``, as which bytes are written for Python 2."""
    return text.encode("latin1")


_STAND_INS = {
    ("collections", "OrderedDict"): dict,
    ("__builtin__", "bytes"): _bytes,
    ("_codecs", "encode"): _bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _NumberType,
    # numpy 1 and 2.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_bytes for core in ("core", "_core")},
}


def _with_tensors(node: object, depth: int = 2) -> object:
    """A content with a tensor for each array in its dicts, which a state dict is two deep in."""
    if isinstance(node, dict) and depth:
        return {key: _with_tensors(value, depth - 1) for key, value in node.items()}
    return node.tensor if isinstance(node, _Array) else node

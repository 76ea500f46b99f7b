"""Mixed precision of a run, and the arithmetic of float32 on a GPU."""

import contextlib

import torch

from .settings import Config

__all__ = ["autocast", "machine_epsilon", "set_float32_arithmetic", "training_precision"]

# TF32 has the range of float32 and ten bits of mantissa.
_TF32_EPSILON = 2.0**-10


def training_precision(config: Config) -> torch.dtype:
    """The type a training computes in: that of mixed precision on a GPU, else float32."""
    if not (config.train.amp.enabled and config.train.device.startswith("cuda")):
        return torch.float32
    name = config.train.amp.precision
    if name == "auto":
        # Older GPUs emulate it, slowly.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bfloat16" if native else "float16"
    return getattr(torch, name)


def set_float32_arithmetic(tf32: bool) -> None:
    """Allows or forbids TF32 on a GPU, in matrix products and convolutions alike.

    torch's defaults use TF32 for convolutions only. Nothing changes on a CPU or under autocast.

    Args:
        tf32: Whether inputs are rounded to the 10 bits of TF32 (``train.tf32``).
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def machine_epsilon(precision: torch.dtype) -> float:
    """The relative spacing of the inputs of a matrix product.

    Args:
        precision: Type of autocast; float32 for none, which is TF32 where that is allowed.
    """
    tf32 = torch.cuda.is_available() and torch.backends.cuda.matmul.allow_tf32
    if precision == torch.float32 and tf32:
        return _TF32_EPSILON
    return torch.finfo(precision).eps


def autocast(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager:
    """Autocast to a precision; nothing for float32."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)

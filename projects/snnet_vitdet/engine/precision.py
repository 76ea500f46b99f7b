"""The arithmetic of a run: its mixed precision, and what float32 means on a GPU."""

import contextlib

import torch
from omegaconf import DictConfig

__all__ = ["autocast", "machine_epsilon", "set_float32_arithmetic", "training_precision"]

# TF32 has the range of float32 and ten bits of mantissa.
_TF32_EPSILON = 2.0**-10


def training_precision(config: DictConfig) -> torch.dtype:
    """The type that a training computes in: that of mixed precision on a GPU, else float32.

    Args:
        config: The whole config.
    """
    if not (config.train.amp.enabled and config.train.device.startswith("cuda")):
        return torch.float32
    name = config.train.amp.precision
    if name == "auto":
        # Older GPUs only emulate it, slowly.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bfloat16" if native else "float16"
    return getattr(torch, name)


def set_float32_arithmetic(tf32: bool) -> None:
    """Says how a GPU multiplies in float32, in matrix products and convolutions alike.

    torch's own defaults round the convolutions to TF32 and the matrix products not at all. Nothing
    changes on a CPU or under autocast.

    Args:
        tf32: Whether inputs are rounded to the 10 bits of TF32 (``train.tf32``).
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def machine_epsilon(precision: torch.dtype) -> float:
    """The relative spacing of the values that enter a matrix product.

    Args:
        precision: Of autocast; float32 stands for none, and is TF32 where that is allowed.
    """
    if precision == torch.float32 and torch.cuda.is_available():
        return (
            _TF32_EPSILON if torch.backends.cuda.matmul.allow_tf32 else torch.finfo(precision).eps
        )
    return torch.finfo(precision).eps


def autocast(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision for a while; float32 is none."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)

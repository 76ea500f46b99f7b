"""A detector that runs in half precision and gives what it finds in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.structures import Boxes, Instances
from torch import nn

__all__ = ["running_in"]


@contextmanager
def running_in(model: nn.Module, precision: torch.dtype) -> Iterator[None]:
    """Runs a detector by autocast in a precision, and its results' last steps in float32.

    detectron2 pastes masks into an image in the type that the mask head gave: in bfloat16 the
    places that it reads them at are rounded to 1/256 of the box, which moves the masks' edges.

    Args:
        model: A detectron2 model in evaluation mode; what its RoI heads give comes as float32.
        precision: float32, for which nothing changes, float16 or bfloat16.
    """
    if precision == torch.float32:
        yield
        return
    # A joined detector has two.
    heads = [module for module in model.modules() if isinstance(module, ROIHeads)]
    hooks = [each.register_forward_hook(_in_float32) for each in heads]
    try:
        with torch.autocast(next(model.parameters()).device.type, dtype=precision):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _in_float32(
    heads: nn.Module, given: tuple, output: tuple[list[Instances], dict[str, torch.Tensor]]
) -> None:
    for instances in output[0]:
        fields = instances.get_fields()
        for name, value in fields.items():
            if isinstance(value, Boxes):
                fields[name] = Boxes(value.tensor.float())
            elif isinstance(value, torch.Tensor) and value.is_floating_point():
                fields[name] = value.float()

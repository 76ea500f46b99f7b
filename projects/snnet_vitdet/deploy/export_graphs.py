"""A detector for other programs: backbone and pyramid as ONNX and as a torch.export program, the
whole detector as TorchScript. Each is compared with the model before it is kept.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances
from torch import nn

from snnet_vitdet.errors import InputError
from snnet_vitdet.files import replacing
from snnet_vitdet.modeling.operating import patch_size_of

__all__ = [
    "TOLERANCE",
    "PixelsToPyramid",
    "export_onnx",
    "export_program",
    "export_torchscript",
    "largest_difference",
]

TOLERANCE = 1e-3
"""Largest difference over the largest feature, in float32: kernels add up in different orders."""

# Largest differences of detections: pixels, classes, probabilities and scores.
_DETECTION_TOLERANCES = {"pred_boxes": 1e-2, "pred_classes": 0, "pred_masks": 1e-3, "scores": 1e-4}
_INPUT = "image"
# A protobuf file can have 2 GiB, of which the graph needs some.
_ONNX_BYTES = 2_000_000_000


class PixelsToPyramid(nn.Module):
    """From the pixels of images to the maps of the feature pyramid, normalisation included.

    An image of another shape has to be padded with ``pixel_mean`` at the bottom and at the right,
    as the detector does.
    """

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.names = tuple(model.backbone.output_shape())
        """Names of the outputs in their order: ``p2`` … ``p6``."""
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Args:
            image: (B, 3, H, W), 0 to 255, in the model's order of colours.

        Returns:
            A map for each of ``names``, (B, C, H / stride, W / stride).
        """
        features = self.backbone((image - self.pixel_mean) / self.pixel_std)
        return tuple(features[name] for name in self.names)


def noise_images(batch_size: int, shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Random pixels, (batch_size, 3, *shape), 0 to 255."""
    generator = torch.Generator().manual_seed(seed)
    return 255 * torch.rand(batch_size, 3, *shape, generator=generator)


@torch.no_grad()
def largest_difference(
    path: str | os.PathLike[str],
    module: PixelsToPyramid,
    other: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    shape: tuple[int, int],
    batch_size: int | None = 1,
) -> float:
    """Compares the maps of an export with those of its model.

    Args:
        path: The export's file, for the error.
        module: The model.
        other: The export.
        shape: Height and width of the images in pixels.
        batch_size: Number of different images; None for one, two and three of them.

    Returns:
        The largest difference over the largest feature of a map.

    Raises:
        InputError: If it is above ``TOLERANCE``.
    """
    largest = 0.0
    for number in (batch_size,) if batch_size else (1, 2, 3):
        # Other images than the traced ones show values that tracing has turned into constants.
        images = noise_images(number, shape, seed=1).to(module.pixel_mean.device)
        for own, found in zip(module(images), other(images), strict=True):
            difference = (found - own).abs().max() / own.abs().max()
            # NaN compares as no difference.
            largest = max(largest, torch.nan_to_num(difference, nan=torch.inf).item())
    if largest > TOLERANCE:
        raise InputError(
            f"{path} is not kept: its features differ from the model's by {largest:.1e} of the "
            f"largest one, more than {TOLERANCE:g}"
        )
    return largest


@torch.no_grad()
def export_onnx(
    model: GeneralizedRCNN,
    path: str | os.PathLike[str],
    shape: tuple[int, int],
    batch_size: int | None = 1,
    metadata: Mapping[str, str] | None = None,
) -> float:
    """Writes backbone and pyramid as ONNX, and compares its results in onnxruntime.

    Args:
        model: A detector on the CPU, in evaluation mode.
        path: The file.
        shape: Height and width of the images in pixels; the file takes no other.
        batch_size: Number of images that the file takes at once; None for any number.
        metadata: Texts by their names, which the file carries.

    Returns:
        The largest difference over the largest feature.

    Raises:
        InputError: If a package is missing, the shape does not fit, the weights are too large for
            such a file, it cannot be written, or its features differ from the model's; there is
            then no file.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"ONNX needs the package {error.name}, which cannot be imported ({error}): "
            "pip install -r requirements-export.txt"
        ) from error
    module, traced = _module_and_arguments(model, shape, batch_size)
    num_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    if num_bytes > _ONNX_BYTES:
        raise InputError(
            f"the weights of backbone and pyramid take {num_bytes / 1e9:.1f} GB, and an ONNX file "
            "cannot be larger than 2: export a smaller stitch, or take --torch-export"
        )
    with replacing(path) as temporary:
        program = torch.onnx.export(
            module,
            **traced,
            input_names=[_INPUT],
            output_names=list(module.names),
            dynamo=True,
            verbose=False,
        )
        program.model.metadata_props.update(metadata or {})
        program.save(str(temporary), external_data=False)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])

        def run(given: torch.Tensor) -> list[torch.Tensor]:
            found = session.run(list(module.names), {_INPUT: given.numpy()})
            return [torch.from_numpy(array) for array in found]

        return largest_difference(path, module, run, shape, batch_size)


@torch.no_grad()
def export_program(
    model: GeneralizedRCNN,
    path: str | os.PathLike[str],
    shape: tuple[int, int],
    batch_size: int | None = 1,
    metadata: Mapping[str, str] | None = None,
) -> float:
    """Writes backbone and pyramid as a torch.export program, loads it again and compares.

    Arguments, return value and errors are those of :func:`export_onnx`. ``torch.export.load`` reads
    the metadata as ``extra_files``.
    """
    module, traced = _module_and_arguments(model, shape, batch_size)
    with replacing(path) as temporary:
        program = torch.export.export(module, **traced, strict=False)
        torch.export.save(program, str(temporary), extra_files=dict(metadata or {}))
        loaded = torch.export.load(str(temporary)).module()
        return largest_difference(path, module, loaded, shape, batch_size)


@torch.no_grad()
def export_torchscript(
    model: GeneralizedRCNN,
    path: str | os.PathLike[str],
    images: Sequence[torch.Tensor],
    batch_size: int = 1,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Writes the whole detector as a traced TorchScript module, loads it again and compares.

    The module takes an image as the model does, (3, H, W), 0 to 255, resized, and gives a tuple:
    boxes in its pixels, classes, masks of 28 x 28 in the boxes (if the model has masks), scores,
    and the image's size. With several images as arguments, the tuple has these tensors of the
    first image, then those of the second one, and so on.

    Args:
        model: A detector on the CPU, in evaluation mode.
        path: The file.
        images: Prepared images; those with the most detections are traced. They are compared in
            batches, of which each begins with another image.
        batch_size: Number of images that the module takes; tracing allows no other.
        metadata: Texts by their names, which ``torch.jit.load`` reads as ``_extra_files``.

    Returns:
        The number of detections that were compared.

    Raises:
        InputError: If nothing is detected in the images, the file cannot be written, or its
            detections differ from the model's; there is then no file.
    """
    count = len(images)
    batches = [[images[(i + k) % count] for k in range(batch_size)] for i in range(count)]
    own = [_detect(model, *batch) for batch in batches]
    counts = [sum(map(len, found)) for found in own]
    if not any(counts):
        raise InputError(
            f"nothing is detected in the {len(images)} images to compare TorchScript on: give "
            "others with --images"
        )
    traced = tuple(batches[counts.index(max(counts))])
    adapter = TracingAdapter(model, traced, _detect)
    with replacing(path) as temporary, warnings.catch_warnings():
        # torch.jit is deprecated, and tracing warns of every shape that becomes a constant.
        warnings.simplefilter("ignore")
        # torch's own check would run the same image again.
        module = torch.jit.trace(adapter, traced, check_trace=False)
        module.save(str(temporary), _extra_files=dict(metadata or {}))
        loaded = torch.jit.load(str(temporary))
        for batch, expected in zip(batches, own, strict=True):
            found = adapter.outputs_schema(loaded(*batch))
            for image, one, other in zip(batch, found, expected, strict=True):
                if not _agree(one, other):
                    raise InputError(
                        f"{path} is not kept: on an image of {tuple(image.shape)} its detections "
                        "differ from the model's"
                    )
    return sum(counts)


def _detect(model: GeneralizedRCNN, *images: torch.Tensor) -> list[Instances]:
    # Postprocessing pastes the masks into the image, which cannot be traced.
    return model.inference([{"image": image} for image in images], do_postprocess=False)


def _agree(found: Instances, expected: Instances) -> bool:
    if len(found) != len(expected):
        return False
    pairs = {name: (found.get(name), value) for name, value in expected.get_fields().items()}
    pairs["pred_boxes"] = tuple(boxes.tensor for boxes in pairs["pred_boxes"])
    return all(
        torch.allclose(one.float(), other.float(), rtol=0, atol=_DETECTION_TOLERANCES[name])
        for name, (one, other) in pairs.items()
    )


def _module_and_arguments(
    model: GeneralizedRCNN, shape: tuple[int, int], batch_size: int | None
) -> tuple[PixelsToPyramid, dict[str, Any]]:
    """The module to trace, and the arguments of torch's two exporters that say on what."""
    patch = patch_size_of(model)
    if any(side < patch or side % patch for side in shape):
        height, width = shape
        raise InputError(
            f"the sides of the image must be multiples of {patch} pixels, got {height} x {width}"
        )
    # torch.export takes one image for a constant, so any number is traced with two.
    arguments: dict[str, Any] = {"args": (noise_images(batch_size or 2, shape, seed=0),)}
    if batch_size is None:
        arguments["dynamic_shapes"] = {_INPUT: {0: torch.export.Dim("batch", min=1)}}
    return PixelsToPyramid(model).eval(), arguments

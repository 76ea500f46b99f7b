"""A detector for other programs: its backbone and feature pyramid as ONNX and as a torch.export
program, the whole of it as TorchScript. Each is compared with the model before it is kept.
"""

import importlib
import os
import warnings
from collections.abc import Sequence
from types import ModuleType

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances

from snnet_vitdet.errors import InputError
from snnet_vitdet.files import replacing

from .export_checks import PixelsToPyramid, largest_difference, noise_image

__all__ = [
    "export_onnx",
    "export_program",
    "export_torchscript",
]

# Pixels, a class, a probability of a pixel, a score.
_DETECTION_TOLERANCES = {"pred_boxes": 1e-2, "pred_classes": 0, "pred_masks": 1e-3, "scores": 1e-4}
_INPUT = "image"
# Of the 2 GiB that a protobuf file can have, the graph needs some.
_ONNX_BYTES = 2_000_000_000


@torch.no_grad()
def export_onnx(model: GeneralizedRCNN, path: str | os.PathLike[str], side: int) -> float:
    """Writes backbone and pyramid as ONNX, and compares what onnxruntime makes of it.

    Args:
        model: On the CPU, in evaluation mode.
        path: Of the file.
        side: Of the square image in pixels; the file takes no other.

    Returns:
        The largest difference over the largest feature.

    Raises:
        InputError: If a package is missing, the side does not fit, the weights are too large for
            such a file, it cannot be written, or its features differ from the model's; there is
            then no file.
    """
    for package in ("onnx", "onnxscript"):
        _needed(package)
    onnxruntime = _needed("onnxruntime")
    module, image = _module_and_image(model, side)
    num_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    if num_bytes > _ONNX_BYTES:
        raise InputError(
            f"the weights of backbone and pyramid take {num_bytes / 1e9:.1f} GB, and an ONNX file "
            "cannot be larger than 2: export a smaller stitch, or take --torch-export"
        )
    with replacing(path) as temporary:
        program = torch.onnx.export(
            module,
            (image,),
            input_names=[_INPUT],
            output_names=list(module.names),
            dynamo=True,
            verbose=False,
        )
        program.save(str(temporary), external_data=False)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])

        def run(given: torch.Tensor) -> list[torch.Tensor]:
            found = session.run(list(module.names), {_INPUT: given.numpy()})
            return [torch.from_numpy(array) for array in found]

        return largest_difference(path, module, run, side)


@torch.no_grad()
def export_program(model: GeneralizedRCNN, path: str | os.PathLike[str], side: int) -> float:
    """Writes backbone and pyramid as a torch.export program, loads it again and compares.

    Arguments, result and errors as for :func:`export_onnx`.
    """
    module, image = _module_and_image(model, side)
    with replacing(path) as temporary:
        torch.export.save(torch.export.export(module, (image,), strict=False), str(temporary))
        loaded = torch.export.load(str(temporary)).module()
        return largest_difference(path, module, loaded, side)


@torch.no_grad()
def export_torchscript(
    model: GeneralizedRCNN, path: str | os.PathLike[str], images: Sequence[torch.Tensor]
) -> int:
    """Writes the whole detector as a traced TorchScript module, loads it again and compares.

    The module takes an image as the model does, (3, H, W), 0 to 255, resized, and gives a tuple:
    boxes in its pixels, classes, masks of 28 x 28 in the boxes (if the model has masks), scores,
    and the image's size.

    Args:
        model: On the CPU, in evaluation mode.
        path: Of the file.
        images: Prepared images; tracing takes the one with the most detections.

    Returns:
        How many detections were compared.

    Raises:
        InputError: If nothing is detected in the images, the file cannot be written, or its
            detections differ from the model's; there is then no file.
    """
    own = [_detect(model, image) for image in images]
    counts = [len(found) for found in own]
    if not any(counts):
        raise InputError(
            f"nothing is detected in the {len(images)} images to compare TorchScript on: give "
            "others with --images"
        )
    image = images[counts.index(max(counts))]
    adapter = TracingAdapter(model, image, _detect)
    with replacing(path) as temporary, warnings.catch_warnings():
        # Of the deprecation of torch.jit, and of every shape that tracing takes for a constant.
        warnings.simplefilter("ignore")
        # torch's own check runs the same image again, and finds nothing else.
        torch.jit.trace(adapter, (image,), check_trace=False).save(str(temporary))
        loaded = torch.jit.load(str(temporary))
        for image, expected in zip(images, own, strict=True):
            found = adapter.outputs_schema(loaded(image))
            if not _agree(found, expected):
                raise InputError(
                    f"{path} is not kept: on an image of {tuple(image.shape)} its detections "
                    "differ from the model's"
                )
    return sum(counts)


def _detect(model: GeneralizedRCNN, image: torch.Tensor) -> Instances:
    # Postprocessing pastes the masks into the image, which cannot be traced.
    return model.inference([{"image": image}], do_postprocess=False)[0]


def _agree(found: Instances, expected: Instances) -> bool:
    if len(found) != len(expected):
        return False
    pairs = {name: (found.get(name), value) for name, value in expected.get_fields().items()}
    pairs["pred_boxes"] = tuple(boxes.tensor for boxes in pairs["pred_boxes"])
    return all(
        torch.allclose(one.float(), other.float(), rtol=0, atol=_DETECTION_TOLERANCES[name])
        for name, (one, other) in pairs.items()
    )


def _needed(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"ONNX needs the package {package}, which cannot be imported ({error}): "
            "pip install -r requirements-export.txt"
        ) from error


def _module_and_image(model: GeneralizedRCNN, side: int) -> tuple[PixelsToPyramid, torch.Tensor]:
    step = model.backbone.padding_constraints["size_divisiblity"]  # detectron2's spelling
    if side < step or side % step:
        raise InputError(f"the side of the image must be a multiple of {step} pixels, got {side}")
    return PixelsToPyramid(model).eval(), noise_image(side, seed=0)

"""A detector with trained weights, and how one is loaded from a training."""

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from omegaconf import OmegaConf
from torch import nn

from snnet_vitdet.building import build
from snnet_vitdet.engine import (
    Config,
    StrictCheckpointer,
    at_image_size,
    check_image_size,
    checkpoint_to_evaluate,
    load_config,
    saved_facts,
)
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import StitchTable
from snnet_vitdet.modeling import is_joined
from snnet_vitdet.stitching import Stitch

from .pictures import ImageLike, to_rgb

__all__ = ["LoadedDetector", "device_named", "load_training", "resizing"]

logger = logging.getLogger(__name__)


def device_named(name: str) -> torch.device:
    """The device of a name; ``auto`` is the GPU if there is one, else the CPU.

    Raises:
        InputError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"there is no device {name!r}: choose auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name} is not there: choose cpu or auto")
    return device


@dataclass(frozen=True)
class LoadedDetector:
    """A detector with trained weights, and what is known about it.

    Attributes:
        model: detectron2's GeneralizedRCNN.
        class_names: Names by ``pred_classes``.
        augmentations: Augmentations that resize images for the model.
        image_format: Order of colours that the model takes: ``RGB`` or ``BGR``.
        stitch: The stitch of an exported file; None for a training.
        table: Results of its sweep, if they are loaded.
        folder: The training's folder, in which the sweep is looked for if ``table`` is None.
        source: The file of the weights.
        iterations: Number of iterations that the weights were trained for, if known.
        config: The training's config, for other image sizes.
        point: Name of the operating point of an exported file that does not run as trained.
        padding: How images are padded: ``square`` or ``tight``.
    """

    model: nn.Module
    class_names: Sequence[str]
    augmentations: Sequence[T.Augmentation]
    image_format: str
    stitch: Stitch | None = None
    table: StitchTable | None = None
    folder: str | None = None
    source: str | None = None
    iterations: int | None = None
    config: Config | None = None
    point: str = ""
    padding: str = "square"

    def resizing_at(self, image_size: int) -> Sequence[T.Augmentation]:
        """The augmentations that resize images to another size than the training's.

        Raises:
            InputError: If the model cannot run at this size.
        """
        if self.config is None:
            raise InputError(
                "this model runs at its own image size only: load it by its training's config for "
                f"{image_size} pixels"
            )
        check_image_size(self.config, image_size)
        return resizing(at_image_size(self.config, image_size).dataloader.test.mapper)[0]

    def prepare(
        self, image: ImageLike, augmentations: Sequence[T.Augmentation]
    ) -> dict[str, object]:
        """Returns an image as the model takes it, see :meth:`.Predictor.prepare`."""
        pixels = to_rgb(image)
        height, width = pixels.shape[:2]
        resized = _Resized(pixels)
        T.AugmentationList(list(augmentations))(resized)
        # Colours are exchanged after resizing, which does not mix them: images may be large.
        pixels = resized.image if self.image_format == "RGB" else resized.image[:, :, ::-1]
        tensor = torch.as_tensor(pixels.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}


def load_training(
    config: str | os.PathLike[str] | Config,
    weights: str | os.PathLike[str] | None = None,
) -> LoadedDetector:
    """Loads a checkpoint of a training; the data of the training need not be there.

    Args:
        config: The training's config as a file or loaded, or the training's folder.
        weights: The checkpoint; the last one of ``train.output_dir`` if None.

    Raises:
        InputError: If config or weights cannot be used.
    """
    if not OmegaConf.is_config(config):
        path = os.fspath(config)
        if path.endswith(".safetensors"):
            raise InputError(f"{path} is an exported detector: load it by Predictor.from_file")
        if path.endswith((".pth", ".pkl")):
            raise InputError(f"{path} holds weights: give the config first, and them as weights=")
        config = load_config(os.path.join(path, "config.yaml") if os.path.isdir(path) else path)
    weights = checkpoint_to_evaluate(str(weights or ""), config.train.output_dir)
    names, iterations = saved_facts(weights)
    if iterations == 0 and not is_joined(config.model):
        logger.warning("%s is what its training starts from: it finds nothing yet.", weights)
    model_config = copy.deepcopy(config.model)
    if names is not None:
        model_config.roi_heads.num_classes = len(names)
    model = build("model", model_config)
    # The sweep scores the same weights.
    averaged = OmegaConf.select(config, "sweep.averaged", default=True)
    StrictCheckpointer(model).load(weights, averaged=averaged)
    names = names or [str(i) for i in range(model.roi_heads.num_classes)]
    return LoadedDetector(
        *(model, names, *resizing(config.dataloader.test.mapper)),
        folder=config.train.output_dir,
        source=weights,
        iterations=iterations,
        config=config,
        padding=OmegaConf.select(config, "sweep.padding", default="square"),
    )


def resizing(mapper: Mapping[str, object]) -> tuple[list[T.Augmentation], str]:
    """Returns the augmentations of a config's mapper and its order of colours."""
    try:
        return list(instantiate(mapper["augmentations"])), mapper["image_format"]
    except (KeyError, TypeError) as error:
        raise InputError(
            "a mapper has augmentations and image_format, such as dataloader.test.mapper of a "
            f"config: {error}"
        ) from error


class _Resized(T.AugInput):
    """An image that keeps at least one pixel on each side."""

    def transform(self, tfm: T.Transform) -> None:
        if isinstance(tfm, T.ResizeTransform) and min(tfm.new_h, tfm.new_w) < 1:
            raise InputError(
                f"an image of {tfm.w} x {tfm.h} pixels is too elongated (resized, a side would "
                "have less than one pixel): cut it into pieces"
            )
        super().transform(tfm)

"""A trained model as a function from images to detections, at the stitch that is wanted."""

import contextlib
import copy
import logging
import operator
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from omegaconf import DictConfig, OmegaConf
from torch import nn

from snnet_vitdet.building import build
from snnet_vitdet.engine import (
    StrictCheckpointer,
    checkpoint_to_evaluate,
    load_config,
    saved_facts,
)
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import StitchTable
from snnet_vitdet.evaluation.score_curves import wanted_precision
from snnet_vitdet.modeling import find_stitched_vit, is_joined, running_in
from snnet_vitdet.stitching import Stitch, merged

from .export_file import load_exported, read_export
from .images import ImageLike, to_rgb
from .instances import ClassNames, Detections
from .masks import PastedMasks

__all__ = ["Predictor"]

logger = logging.getLogger(__name__)

_PROBABILITIES = "mask_probabilities"


class Predictor:
    """Detects objects in images. The stitch can be changed at any time, at no cost.

    Low-rank updates are merged once, so every stitching layer is one matrix product.

    Threads may share a predictor: the model runs for one of them at a time. What ``set_stitch``
    puts into effect is in effect for all of them; ``predictor(image, stitch=...)`` is not touched
    by it. A predictor can be pickled, with its weights, for another process.

    >>> predictor = Predictor("output/my/config.yaml", max_gflops=800)   # doctest: +SKIP
    >>> instances = predictor("photo.jpg")                               # doctest: +SKIP
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | DictConfig,
        weights: str | os.PathLike[str] | None = None,
        *,
        stitch: int | str | None = None,
        max_gflops: float | None = None,
        max_latency_ms: float | None = None,
        max_memory_mb: float | None = None,
        by: str = "box",
        table: StitchTable | None = None,
        score_threshold: float | str = 0.0,
        device: str = "auto",
        precision: str = "float32",
    ) -> None:
        """
        Args:
            config: Of the training, as a file or loaded; or the training's folder.
            weights: Its checkpoint; the last one of ``train.output_dir`` if None. Where it has a
                moving average of the weights, that is taken, as ``sweep.averaged`` says.
            stitch: Id or name of the stitch; without it and a budget, the large anchor.
            max_gflops: A budget, as for :meth:`StitchTable.best`.
            max_latency_ms: Likewise.
            max_memory_mb: Likewise.
            by: What decides within the budget: ``box``, ``mask`` or a score's name.
            table: The results of a sweep, read from ``train.output_dir`` if None and needed.
            score_threshold: Leaves detections of lower scores out; ``f1`` or ``precision=0.9`` is
                the score that gives this for the stitch in effect, as the sweep found it
                (:meth:`StitchTable.threshold`).
            device: ``cuda``, ``cpu``, or ``auto``: the GPU where there is one.
            precision: ``float32``, ``float16`` or ``bfloat16``; other than float32 by autocast.

        Raises:
            InputError: If config, weights, stitch or budget do not fit.
        """
        if not isinstance(config, DictConfig):
            path = os.fspath(config)
            config = load_config(os.path.join(path, "config.yaml") if os.path.isdir(path) else path)
        weights = checkpoint_to_evaluate(str(weights or ""), config.train.output_dir)
        names, iterations = saved_facts(weights)
        if iterations == 0 and not is_joined(config.model):
            logger.warning("%s is what its training starts from: it finds nothing yet.", weights)
        model = _load(config, weights, names)
        names = names or [str(i) for i in range(model.roi_heads.num_classes)]
        mapper = config.dataloader.test.mapper
        self._take(model, names, *_resizing(mapper), device, precision)
        self.source, self.iterations = weights, iterations
        budgets = dict(
            max_gflops=max_gflops, max_latency_ms=max_latency_ms, max_memory_mb=max_memory_mb
        )
        budgets = {name: limit for name, limit in budgets.items() if limit is not None}
        if budgets and stitch is not None:
            raise InputError("give a stitch or budgets, not both")
        self._table, self._folder = table, config.train.output_dir
        if budgets:
            stitch = self.table.best(by, **budgets).id
        if stitch is not None:
            self.set_stitch(stitch)
        self.set_score_threshold(score_threshold)

    @classmethod
    def of_model(
        cls,
        model: nn.Module,
        class_names: Sequence[str],
        mapper: Mapping[str, object],
        *,
        table: StitchTable | None = None,
        score_threshold: float | str = 0.0,
        device: str = "auto",
        precision: str = "float32",
    ) -> "Predictor":
        """A predictor of a model that is loaded already.

        Args:
            model: With trained weights; it is taken over: put into evaluation mode on the device,
                its low-rank updates merged.
            class_names: By ``pred_classes``.
            mapper: How images are prepared: ``augmentations`` and ``image_format``, as in
                ``dataloader.test.mapper`` of a config.
            table: As for the constructor.
            score_threshold: As for the constructor.
            device: As for the constructor.
            precision: As for the constructor.

        Raises:
            InputError: If device or precision are unknown.
        """
        predictor = cls.__new__(cls)
        predictor._take(model, class_names, *_resizing(mapper), device, precision)
        predictor._table, predictor._folder = table, None
        predictor.set_score_threshold(score_threshold)
        return predictor

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        score_threshold: float | str = 0.0,
        device: str = "auto",
        precision: str = "float32",
    ) -> "Predictor":
        """A predictor of the one stitch in a file of ``tools/export_stitch.py``.

        Args:
            path: Of the file, which is plain data: none of its content is run.
            score_threshold: As for the constructor; the sweep's counts are in the file.
            device: As for the constructor.
            precision: As for the constructor.

        Raises:
            InputError: If the file cannot be used, or has no such threshold.
        """
        info = read_export(path)
        predictor = cls.__new__(cls)
        # Its own augmentations: what a mapper of a config names would be run.
        predictor._take(
            load_exported(path),
            info.class_names,
            info.resizing(),
            info.image_format,
            device,
            precision,
        )
        predictor._table, predictor._folder = info.table(os.fspath(path)), None
        predictor._alone = info.stitch
        predictor.source = os.fspath(path)
        predictor.set_score_threshold(score_threshold)
        return predictor

    def _take(
        self,
        model: nn.Module,
        class_names: Sequence[str],
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        device: str,
        precision: str,
    ) -> None:
        if precision not in ("float32", "float16", "bfloat16"):
            raise InputError(f"precision must be float32, float16 or bfloat16, got {precision!r}")
        if not isinstance(model, GeneralizedRCNN):
            raise InputError(
                f"a Predictor is for detectron2's GeneralizedRCNN, not for {type(model).__name__}"
            )
        self.device = _device(device)
        self.model = model.eval().to(self.device)
        self.precision = getattr(torch, precision)
        self.class_names = list(class_names)
        """Names by ``pred_classes``."""
        self._augmentations = T.AugmentationList(list(augmentations))
        self._image_format = image_format
        self._backbone = find_stitched_vit(model)
        self._alone: Stitch | None = None
        self.source: str | None = None
        """The file that the weights are from, if they were loaded here."""
        self.iterations: int | None = None
        """How many iterations the weights were trained for, if their file says it."""
        self._criterion: str | None = None
        self.score_threshold = 0.0
        """Detections of lower scores are left out."""
        self._make_ready()

    def _make_ready(self) -> None:
        # Held while the stitch or the threshold is looked at or changed, and while a model runs.
        self._lock = threading.RLock()
        # For as long as there is this predictor: let go of, the context would end at once.
        self._merged = contextlib.ExitStack()
        self._merged.enter_context(merged(self.model))

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_merged")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._make_ready()

    @property
    def stitch(self) -> Stitch | None:
        """The stitch in effect; None for a baseline, which has none."""
        return self._backbone.stitch if self._backbone else self._alone

    @property
    def stitches(self) -> list[Stitch]:
        """All stitches of the model, by id."""
        if self._backbone:
            return list(self._backbone.space)
        return [self._alone] if self._alone else []

    @property
    def table(self) -> StitchTable:
        """The results of the model's sweep.

        Raises:
            InputError: If there was none.
        """
        if self._table is None:
            folder = self._folder
            if folder is None or not Path(folder, "sweep", "stitches.json").is_file():
                raise InputError(
                    f"{folder or 'this model'} has no sweep, and budgets and thresholds such as "
                    "f1 need one: run train_net.py --eval-only, or give a stitch and a score"
                )
            self._table = StitchTable.read(folder)
            self._table.warn_unless_of(self.source, self.iterations)
        return self._table

    def set_stitch(self, stitch: int | str) -> Stitch:
        """Puts a stitch into effect from the next image on.

        Args:
            stitch: Id or name.

        Raises:
            InputError: If the model has no such stitch; the one in effect stays.
        """
        chosen = self._find(stitch)
        with self._lock:
            self.score_threshold = self._threshold_of(chosen)
            return self._backbone.set_stitch(chosen.id) if self._backbone else chosen

    def _find(self, stitch: int | str) -> Stitch:
        if not isinstance(stitch, str):
            stitch = _id(stitch)
        if self._alone and stitch in (self._alone.id, self._alone.name):
            return self._alone
        if self._alone:
            raise InputError(
                f"the exported file has stitch {self._alone.name} alone: export {stitch}, too"
            )
        if self._backbone is None:
            raise InputError("this model is a baseline: it has no stitches to choose from")
        try:
            return self._backbone.space[stitch]
        except (IndexError, KeyError) as error:
            space = self._backbone.space
            raise InputError(
                f"the model has no stitch {stitch!r}: ids are 0 to {len(space) - 1}, names are "
                f"such as {', '.join(stitch.name for stitch in list(space)[:3])}"
            ) from error

    def _threshold_of(self, stitch: Stitch) -> float:
        if self._criterion is None:
            return self.score_threshold
        return self.table.threshold(stitch.id, self._criterion)

    def set_score_threshold(self, score: float | str) -> float:
        """Leaves detections of lower scores out from the next image on.

        Args:
            score: From 0 to 1; or ``f1`` or ``precision=0.9`` for what gives this with the stitch
                in effect, now and after every change of the stitch.

        Returns:
            The score in effect.

        Raises:
            InputError: If it is none of these, or the sweep has no such score
                (:meth:`StitchTable.threshold`).
        """
        if not isinstance(score, str):
            score = _score(score)
            with self._lock:
                self._criterion, self.score_threshold = None, score
                return self.score_threshold
        wanted_precision(score)  # before a sweep is asked for
        with self._lock:
            if self.stitch is None:
                raise InputError(f"this model is a baseline: give a score instead of {score!r}")
            self.score_threshold = self.table.threshold(self.stitch.id, score)
            self._criterion = score
            return self.score_threshold

    def choose(self, by: str = "box", **budgets: float | None) -> Stitch:
        """Puts the best stitch within some budgets into effect, see :meth:`StitchTable.best`."""
        return self.set_stitch(self.table.best(by, **budgets).id)

    def prepare(self, image: ImageLike) -> dict[str, object]:
        """An image as the model takes it: resized as in the sweep.

        Returns:
            ``image``, float32 (3, H', W') on the CPU in the model's order of colours, and the
            ``height`` and ``width`` that detections are scaled to.

        Raises:
            InputError: If it is no image, or a side of it would have less than one pixel.
        """
        pixels = to_rgb(image)
        height, width = pixels.shape[:2]
        given = _Resized(pixels)
        self._augmentations(given)
        # Only now, as images may be large: no resizing mixes colours.
        pixels = given.image if self._image_format == "RGB" else given.image[:, :, ::-1]
        tensor = torch.as_tensor(pixels.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}

    @torch.no_grad()
    def detect(
        self, inputs: Sequence[dict[str, object]], stitch: int | str | None = None
    ) -> list[Detections]:
        """Runs the model on prepared images at once.

        Args:
            inputs: As :meth:`prepare` makes each.
            stitch: As for :meth:`__call__`.

        Returns:
            For each image what :meth:`__call__` returns.
        """
        chosen = None if stitch is None else self._find(stitch)
        with self._lock:
            threshold = self.score_threshold if chosen is None else self._threshold_of(chosen)
            with self._at(chosen), running_in(self.model, self.precision):
                results = self.model.inference(list(inputs), do_postprocess=False)
        return [
            self._finished(found[found.scores >= threshold].to("cpu"), given)
            for found, given in zip(results, inputs, strict=True)
        ]

    def _at(self, stitch: Stitch | None) -> contextlib.AbstractContextManager:
        if stitch is None or self._backbone is None:
            return contextlib.nullcontext()
        return self._backbone.using_stitch(stitch.id)

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        batch_size: int = 1,
        stitch: int | str | None = None,
    ) -> Detections | list[Detections]:
        """Detects objects.

        Args:
            images: One image or several.
            batch_size: How many go through the model at once.
            stitch: Id or name of the stitch for this call alone, whatever is in effect, with its
                own threshold where that is ``f1`` or a precision; None for the one in effect.

        Returns:
            For one image its detections, for several a list: detectron2's Instances on the CPU with
            ``pred_boxes`` (x0, y0, x1, y1 in pixels of the image given), ``scores``,
            ``pred_classes``, ``pred_masks`` (N, H, W; :class:`PastedMasks`) if the model has masks,
            and ``class_names`` (an array of strings).

        Raises:
            InputError: If something is no image, or the model has no such stitch.
        """
        if isinstance(images, list | tuple):
            return list(self.stream(images, batch_size, stitch))
        return next(self.stream([images], stitch=stitch))

    def stream(
        self,
        images: Sequence[ImageLike],
        batch_size: int = 1,
        stitch: int | str | None = None,
    ) -> Iterator[Detections]:
        """Detections of many images one by one, with no more than a batch in memory."""
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, got {batch_size}")
        batch = []
        for image in images:
            batch.append(self.prepare(image))
            if len(batch) == batch_size:
                yield from self.detect(batch, stitch)
                batch = []
        if batch:
            yield from self.detect(batch, stitch)

    def _finished(self, found: Instances, given: Mapping[str, object]) -> Detections:
        """What the model gives of an image, in pixels of the image as it was before resizing."""
        has_masks = found.has("pred_masks")
        if has_masks:
            # Under another name detectron2 does not paste them.
            found.set(_PROBABILITIES, found.pred_masks[:, 0])
            found.remove("pred_masks")
        found = detector_postprocess(found, given["height"], given["width"])
        fields = found.get_fields()
        if has_masks:
            boxes = found.pred_boxes.tensor
            fields["pred_masks"] = PastedMasks(fields.pop(_PROBABILITIES), boxes, found.image_size)
        fields["class_names"] = ClassNames(self.class_names[i] for i in found.pred_classes.tolist())
        return Detections(found.image_size, **fields)


class _Resized(T.AugInput):
    """An image that no resizing takes a side from."""

    def transform(self, tfm: T.Transform) -> None:
        if isinstance(tfm, T.ResizeTransform) and min(tfm.new_h, tfm.new_w) < 1:
            raise InputError(
                f"an image of {tfm.w} x {tfm.h} pixels is too elongated (resized, a side would "
                "have less than one pixel): cut it into pieces"
            )
        super().transform(tfm)


def _id(stitch: object) -> int:
    try:
        if not isinstance(stitch, bool):
            return operator.index(stitch)
    except TypeError:
        pass
    raise InputError(f"a stitch is chosen by its id or name, not by {stitch!r}")


def _score(score: object) -> float:
    try:
        if not isinstance(score, bool | np.bool_) and 0 <= float(score) <= 1:
            return float(score)
    except (TypeError, ValueError):
        pass
    raise InputError(f"a threshold is a score from 0 to 1, f1, or precision=…, not {score}")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {name} is not there: choose cpu or auto")
    return torch.device(name)


def _resizing(mapper: Mapping[str, object]) -> tuple[list[T.Augmentation], str]:
    """What a config's mapper does to images, and the order of colours it gives."""
    return list(instantiate(mapper["augmentations"])), mapper["image_format"]


def _load(config: DictConfig, weights: str, names: Sequence[str] | None) -> nn.Module:
    """The model of a config with a checkpoint's weights.

    The number of classes is the checkpoint's, so the data of the training need not be there.
    """
    model_config = copy.deepcopy(config.model)
    if names is not None:
        model_config.roi_heads.num_classes = len(names)
    model = build("model", model_config)
    # As the sweep does, whose scores go with the weights.
    averaged = OmegaConf.select(config, "sweep.averaged", default=True)
    StrictCheckpointer(model).load(weights, averaged=averaged)
    return model

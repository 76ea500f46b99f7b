"""A trained model as a function from images to detections."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from numbers import Real
from pathlib import Path

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances
from torch import nn

from snnet_vitdet.engine import Config
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import BASELINE, StitchTable
from snnet_vitdet.evaluation.score_curves import wanted_precision
from snnet_vitdet.modeling import (
    find_stitched_vit,
    operating_at,
    postprocessed,
    running_in,
    trained_with,
)
from snnet_vitdet.stitching import OperatingPoint, Stitch, merged

from .export_file import exported_table, load_exported, read_export
from .instances import ClassNames, Detections, PastedMasks
from .loading import LoadedDetector, device_named, load_training, resizing
from .pictures import ImageLike
from .points_by_name import ChosenPoint, PointsByName

__all__ = ["Predictor"]

# The image size that an input is prepared for; None for the training's.
_SIZE = "prepared_for"


class Predictor:
    """Detects objects in images. The operating point can be changed at any time, at no cost.

    A point is a stitch, such as ``FS-3``, or a stitch at an image size with a number of proposals,
    such as ``FS-3@640/300``. Wherever a stitch is named, a point may be named.

    Low-rank updates are merged once, so every stitching layer is one matrix product.

    Threads may share a predictor: the model runs for one of them at a time. ``set_stitch`` is in
    effect for all threads, but not for ``predictor(image, stitch=...)``. A predictor can be pickled
    with its weights for another process.

    ``Predictor(config)`` loads a training, :meth:`from_file` an exported stitch, and
    :meth:`from_model` takes a model that is in memory. All of them take the same options.

    >>> predictor = Predictor("output/my/config.yaml", max_gflops=800)   # doctest: +SKIP
    >>> instances = predictor("photo.jpg")                               # doctest: +SKIP
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Config | LoadedDetector,
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
        padding: str | None = None,
    ) -> None:
        """
        Args:
            config: The training's config as a file or loaded, the training's folder, or a detector
                that is loaded already.
            weights: A checkpoint of the training; the last one of ``train.output_dir`` if None. A
                moving average of the weights is used if the checkpoint has one and
                ``sweep.averaged`` does not forbid it.
            stitch: Id or name of a stitch (an id may be a string), or name of an operating point;
                without it and a budget, the large anchor.
            max_gflops: A budget, as in :meth:`StitchTable.best`.
            max_latency_ms: A budget, likewise.
            max_memory_mb: A budget, likewise.
            by: Score that decides within the budgets: ``box``, ``mask`` or its name.
            table: Results of a sweep; read from ``train.output_dir`` if None and needed.
            score_threshold: Detections of lower scores are left out. ``f1`` or ``precision=0.9``
                stands for the score that gives this for the stitch in effect, as the sweep found it
                (:meth:`StitchTable.threshold`).
            device: ``cuda``, ``cpu``, or ``auto``: the GPU if there is one.
            precision: ``float32``, ``float16`` or ``bfloat16``; the last two by autocast.
            padding: ``square`` as in the training, or ``tight``: an image is padded to multiples of
                32 pixels only, and a batch to its largest height and width. None for
                ``sweep.padding`` of the config, or for that of the exported file.

        Raises:
            InputError: If config, weights, stitch or budget do not fit.
        """
        if precision not in ("float32", "float16", "bfloat16"):
            raise InputError(f"precision must be float32, float16 or bfloat16, got {precision!r}")
        if padding not in (None, "square", "tight"):
            raise InputError(f"padding must be square or tight, got {padding!r}")
        self.device = device_named(device)
        loaded = config if isinstance(config, LoadedDetector) else load_training(config, weights)
        if not isinstance(loaded.model, GeneralizedRCNN):
            raise InputError(
                "a Predictor is for detectron2's GeneralizedRCNN, not for "
                f"{type(loaded.model).__name__}"
            )
        names, classes = len(loaded.class_names), loaded.model.roi_heads.num_classes
        if names < classes:
            raise InputError(f"the model has {classes} classes, and {names} class names are given")
        self.model = loaded.model.eval().to(self.device)
        self.precision = getattr(torch, precision)
        self.padding = padding or loaded.padding
        """How images are padded: ``square`` or ``tight``."""
        self.class_names = list(loaded.class_names)
        """Names by ``pred_classes``."""
        self.source = loaded.source
        """The file of the weights, if they were loaded from one."""
        self.iterations = loaded.iterations
        """Number of iterations that the weights were trained for, if known."""
        self.score_threshold = 0.0
        """Detections of lower scores are left out."""
        self._criterion: str | None = None
        # Image size and number of proposals; None as trained.
        self._operation: tuple[int, int] | None = None
        self._loaded = loaded
        self._points = PointsByName(loaded)
        self._backbone = find_stitched_vit(loaded.model)
        self._table = table or loaded.table
        self._make_ready()
        if self._table is not None:
            self.check_table(self._table)
        budgets = dict(
            max_gflops=max_gflops, max_latency_ms=max_latency_ms, max_memory_mb=max_memory_mb
        )
        if any(limit is not None for limit in budgets.values()):
            if stitch is not None:
                raise InputError("give a stitch or budgets, not both")
            self.choose(by, **budgets)
        elif stitch is not None:
            self.set_stitch(stitch)
        self.set_score_threshold(score_threshold)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **options: object) -> "Predictor":
        """Loads the stitch in a file of ``tools/export_stitch.py``, with its sweep's results.

        Args:
            path: The file. It is plain data: nothing in it is run.
            **options: As for the constructor.

        Raises:
            InputError: If the file cannot be used, or an option does not fit.
        """
        info, source = read_export(path), os.fspath(path)
        detector = LoadedDetector(
            *(load_exported(path), info.class_names, info.resizing(), info.image_format),
            stitch=info.stitch,
            table=exported_table([info], source),
            source=source,
            point=info.point,
            padding=info.padding,
        )
        return cls(detector, **options)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        class_names: Sequence[str],
        mapper: Mapping[str, object],
        **options: object,
    ) -> "Predictor":
        """Takes a model that is in memory.

        Args:
            model: With trained weights. The predictor takes it over: it is put into evaluation mode
                on the device, and its low-rank updates are merged.
            class_names: Names by ``pred_classes``.
            mapper: How images are prepared: ``augmentations`` and ``image_format``, as in
                ``dataloader.test.mapper`` of a config.
            **options: As for the constructor.

        Raises:
            InputError: If an option does not fit.
        """
        return cls(LoadedDetector(model, class_names, *resizing(mapper)), **options)

    def _make_ready(self) -> None:
        # Held while the stitch or the threshold is read or changed, and while a model runs.
        self._lock = threading.RLock()
        # Kept as long as the predictor: the context would end if it was collected.
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
        return self._backbone.stitch if self._backbone else self._loaded.stitch

    @property
    def stitches(self) -> list[Stitch]:
        """All stitches of the model, by id."""
        if self._backbone:
            return list(self._backbone.space)
        return [self.stitch] if self.stitch else []

    @property
    def table(self) -> StitchTable:
        """The results of the model's sweep.

        Raises:
            InputError: If there was no sweep.
        """
        if self._table is None:
            folder = self._loaded.folder
            if folder is None or not Path(folder, "sweep", "stitches.json").is_file():
                raise InputError(
                    f"{folder or 'this model'} has no sweep, and budgets and thresholds such as "
                    "f1 need one: run train_net.py --eval-only, or give a stitch and a score"
                )
            table = StitchTable.read(folder)
            table.warn_unless_of(self.source, self.iterations)
            self.check_table(table)
            self._table = table
        return self._table

    def check_table(self, table: StitchTable) -> None:
        """Checks that a sweep ran the stitches at the image size of this model.

        Raises:
            InputError: If it ran them at another one, with other numbers of proposals, or with
                other padding.
        """
        stitches = {stitch.id: stitch for stitch in self.stitches}

        def trained(stitch_id: int) -> tuple[int, int]:
            with self._lock:
                return trained_with(self.model, stitches.get(stitch_id, BASELINE))

        table.check_trained_with(trained, self.padding)

    @property
    def name(self) -> str:
        """Name of the operating point in effect: ``FS-3@640/300``, or ``FS-3`` as trained."""
        with self._lock:
            return self._in_effect().name

    def _in_effect(self) -> ChosenPoint:
        return self._points.with_operation(self.stitch or BASELINE, self._operation)

    def _find(self, point: int | str) -> ChosenPoint:
        # Not while a model runs, perhaps at another point.
        with self._lock:
            return self._points.find(point)

    @property
    def point(self) -> OperatingPoint:
        """The operating point in effect.

        Raises:
            InputError: If the model does not pad images to a square.
        """
        with self._lock:
            stitch = self.stitch or BASELINE
            own = trained_with(self.model, stitch)
            is_trained = self._operation is None and not self._loaded.point
            return OperatingPoint(stitch, *(self._operation or own), is_trained)

    def set_point(self, point: int | str) -> OperatingPoint:
        """Puts an operating point into effect from the next image on.

        Args:
            point: Its name, such as ``FS-3@640/300``. Id or name of a stitch alone stand for the
                image size and the number of proposals of the training.

        Raises:
            InputError: If the model has no such stitch or cannot run at this size; the point in
                effect stays.
        """
        self._set(point)
        return self.point

    def set_stitch(self, stitch: int | str) -> Stitch:
        """Puts a stitch into effect from the next image on; as :meth:`set_point`.

        Args:
            stitch: Id or name.

        Raises:
            InputError: If the model has no such stitch; the one in effect stays.
        """
        return self._set(stitch)

    def _set(self, point: int | str) -> Stitch:
        chosen = self._find(point)
        with self._lock:
            self.score_threshold = self._threshold_of(chosen)
            self._operation = chosen.operation
            return self._backbone.set_stitch(chosen.stitch.id) if self._backbone else chosen.stitch

    def _threshold_of(self, point: ChosenPoint) -> float:
        if self._criterion is None:
            return self.score_threshold
        return self.table.threshold(point.name, self._criterion)

    def set_score_threshold(self, score: float | str) -> float:
        """Sets the lowest score of detections, from the next image on.

        Args:
            score: From 0 to 1; or ``f1`` or ``precision=0.9`` for the score that gives this with
                the stitch in effect, now and after every change of the stitch.

        Returns:
            The score in effect.

        Raises:
            InputError: If it is none of these, or the sweep has no such score
                (:meth:`StitchTable.threshold`).
        """
        if not isinstance(score, str):
            if not isinstance(score, Real) or isinstance(score, bool) or not 0 <= score <= 1:
                raise InputError(
                    f"a threshold is a score from 0 to 1, f1, or precision=…, not {score}"
                )
            with self._lock:
                self._criterion, self.score_threshold = None, float(score)
                return self.score_threshold
        wanted_precision(score)  # a wrong one is an error, with or without a sweep
        with self._lock:
            if self.stitch is None:
                raise InputError(f"this model is a baseline: give a score instead of {score!r}")
            self.score_threshold = self.table.threshold(self.name, score)
            self._criterion = score
            return self.score_threshold

    def choose(self, by: str = "box", **budgets: float | None) -> Stitch:
        """Puts the best point within budgets into effect, see :meth:`StitchTable.best`."""
        return self._set(self.table.best(by, **budgets).name)

    def prepare(self, image: ImageLike, stitch: int | str | None = None) -> dict[str, object]:
        """Returns an image as the model takes it: resized as in the sweep.

        Args:
            image: The image.
            stitch: As for :meth:`__call__`.

        Returns:
            ``image``, float32 (3, H', W') on the CPU in the model's order of colours, the
            ``height`` and ``width`` that detections are scaled to, and the image size that it is
            prepared for.

        Raises:
            InputError: If it is no image, or resizing would leave a side with less than one pixel.
        """
        return self._prepare(image, self._in_effect() if stitch is None else self._find(stitch))

    def _prepare(self, image: ImageLike, point: ChosenPoint) -> dict[str, object]:
        prepared = self._loaded.prepare(image, self._points.augmentations(point))
        return {**prepared, _SIZE: self._points.other_size(point)}

    def detect(
        self, inputs: Sequence[dict[str, object]], stitch: int | str | None = None
    ) -> list[Detections]:
        """Runs the model on a batch of prepared images.

        Args:
            inputs: Images as :meth:`prepare` returns them for this point.
            stitch: As for :meth:`__call__`.

        Returns:
            The detections of each image, as :meth:`__call__` returns them.

        Raises:
            InputError: If an image was prepared for another image size.
        """
        return self._detect(inputs, None if stitch is None else self._find(stitch))

    @torch.no_grad()
    def _detect(
        self, inputs: Sequence[dict[str, object]], chosen: ChosenPoint | None
    ) -> list[Detections]:
        with self._lock:
            threshold = self.score_threshold if chosen is None else self._threshold_of(chosen)
            point = chosen or self._in_effect()
            wanted = self._points.other_size(point)
            if any(given.get(_SIZE, wanted) != wanted for given in inputs):
                raise InputError(
                    f"an image was prepared for another image size than that of {point.name}: "
                    "prepare it for this point"
                )
            switched = (
                self._backbone.using_stitch(point.stitch.id)
                if self._backbone
                else contextlib.nullcontext()
            )
            operating = operating_at(self.model, *(point.operation or (None, None)), self.padding)
            with switched, operating, running_in(self.model, self.precision):
                results = self.model.inference(list(inputs), do_postprocess=False)
        return [
            self._in_image(found[found.scores >= threshold].to("cpu"), given)
            for found, given in zip(results, inputs, strict=True)
        ]

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        batch_size: int = 1,
        stitch: int | str | None = None,
    ) -> Detections | list[Detections]:
        """Detects objects.

        Args:
            images: One image or several.
            batch_size: Number of images that go through the model at once.
            stitch: Id or name of a stitch, or name of an operating point, for this call only; None
                for the point in effect. A threshold such as ``f1`` is the one of this point.

        Returns:
            The detections of one image, or a list for several: detectron2's Instances on the CPU
            with ``pred_boxes`` (x0, y0, x1, y1 in pixels of the given image), ``scores``,
            ``pred_classes``, ``class_names`` (an array of strings) and, if the model has masks,
            ``pred_masks`` (N, H, W; :class:`PastedMasks`).

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
        """Yields the detections of each image, with no more than a batch in memory."""
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, got {batch_size}")
        images = iter(images)
        given = None if stitch is None else self._find(stitch)
        while batch := list(islice(images, batch_size)):
            # Images are resized for the point that they go through, whatever is set meanwhile.
            with self._lock:
                chosen = given or self._in_effect()
            inputs = [self._prepare(image, chosen) for image in batch]
            yield from self._detect(inputs, chosen)

    def _in_image(self, found: Instances, given: Mapping[str, object]) -> Detections:
        """The model's detections in pixels of the image before resizing."""
        found = postprocessed(found, given["height"], given["width"])
        fields = found.get_fields()
        if found.has("mask_probabilities"):
            probabilities = fields.pop("mask_probabilities")[:, 0]
            boxes = found.pred_boxes.tensor
            fields["pred_masks"] = PastedMasks(probabilities, boxes, found.image_size)
        fields["class_names"] = ClassNames(self.class_names[i] for i in found.pred_classes.tolist())
        return Detections(found.image_size, **fields)

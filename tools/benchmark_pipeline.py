"""The part ``pipeline`` of tools/benchmark.py: the time of each stage of a sweep."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.modeling import SimpleFeaturePyramid
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from PIL import Image

from benchmark_cases import PHOTOGRAPH, Setting, row_of
from benchmark_detectors import OnePass, by_size
from snnet_vitdet.data import coco_dicts, dataset_name
from snnet_vitdet.engine import at_image_size, synthetic_batch
from snnet_vitdet.evaluation import CocoScorer
from snnet_vitdet.evaluation.detections import DetectionStore
from snnet_vitdet.evaluation.one_pass import as_detections
from snnet_vitdet.evaluation.scoring_pool import score_points
from snnet_vitdet.files import temporary_folder
from snnet_vitdet.modeling import AnchorViT
from snnet_vitdet.stitching import merged

READING, TRANSFER, BACKBONES, PYRAMID = "reading and resizing", "transfer", "backbones", "pyramid"
PROPOSALS, BOXES, MASKS = "RPN", "box heads and NMS", "mask head"
PASTING, ENCODING, WRITING, SCORING = "pasting masks", "encoding and packing", "writing", "scoring"
STAGES = (
    *(READING, TRANSFER, BACKBONES, PYRAMID, PROPOSALS, BOXES, MASKS),
    *(PASTING, ENCODING, WRITING, SCORING),
)


class StageClock:
    """Adds up the time of stages that follow each other without gaps.

    A GPU is waited for at each change of stage, so that its work counts where it was started.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._stage: str | None = None
        self._start = 0.0

    def enter(self, stage: str | None) -> None:
        """Ends the stage before and begins another one; None for none."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] += now - self._start
        self._stage, self._start = stage, now

    @contextmanager
    def watching(self, model: torch.nn.Module) -> Iterator[None]:
        """Enters a stage where the modules of a detector begin or end, inside the context."""

        def entering(stage):
            return lambda *_: self.enter(stage)

        hooks = []
        for module in model.modules():
            if isinstance(module, AnchorViT):
                hooks.append(module.patch_embed.register_forward_pre_hook(entering(BACKBONES)))
            elif isinstance(module, SimpleFeaturePyramid):
                hooks.append(module.stages[0].register_forward_pre_hook(entering(PYRAMID)))
            elif isinstance(module, RPN):
                hooks.append(module.register_forward_pre_hook(entering(PROPOSALS)))
                hooks.append(module.register_forward_hook(entering(BOXES)))
            elif isinstance(module, StandardROIHeads) and module.mask_on:
                hooks.append(module.mask_pooler.register_forward_pre_hook(entering(MASKS)))
                hooks.append(module.mask_head.register_forward_hook(entering(PASTING)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def pipeline_rows(setting: Setting) -> Iterator[dict]:
    """Sweeps generated photographs, an image size after the other; yields a row for each stage."""
    for size, points in by_size(setting.swept).items():
        with temporary_folder("benchmark_") as folder:
            yield from _rows_of_size(setting, size, points, Path(folder))


def _rows_of_size(setting, size, points, folder):
    model = setting.build(setting.config.model)
    one_pass = OnePass(model, points, setting.precision, setting.config.sweep.padding)
    num_batches = setting.warmup + setting.repeats
    json_file = write_photographs(
        folder, num_batches * setting.num_images, setting.config.model.roi_heads.num_classes
    )
    records = coco_dicts(json_file, str(folder), filter_empty=False)
    mapper = instantiate(at_image_size(setting.config, size).dataloader.test.mapper)
    scorer = CocoScorer(dataset_name(json_file, str(folder)))
    store = DetectionStore(folder / "detections")
    store.open({}, (point.name for point in points))
    one_pass.choose_threshold([mapper(record) for record in records[: setting.num_images]])
    clock = StageClock(setting.device)
    laps, num_found = [], 0
    with merged(model), clock.watching(model):
        for first in range(0, len(records), setting.num_images):
            clock.seconds.clear()
            clock.enter(READING)
            batch = [mapper(record) for record in records[first : first + setting.num_images]]
            clock.enter(TRANSFER)
            found = []
            for stitch, results in one_pass(batch):
                names = one_pass.names_of(stitch)
                for sample, instances in zip(batch, results, strict=True):
                    found.append(as_detections(instances, sample["image_id"], names))
                    num_found += int((instances.places >= 0).sum())
                clock.enter(BACKBONES)
            clock.enter(ENCODING)
            store.add(found)
            clock.enter(None)
            laps.append({stage: s / setting.num_images for stage, s in clock.seconds.items()})
    laps = laps[setting.warmup :]
    seconds = {stage: [lap.get(stage, 0.0) for lap in laps] for stage in STAGES}
    # As in a sweep, many images share a file, and a point is scored once.
    clock.seconds.clear()
    clock.enter(WRITING)
    store.flush()
    clock.enter(SCORING)
    for _ in score_points(scorer, store, [point.name for point in points], None, workers=1):
        pass
    clock.enter(None)
    seconds |= {stage: [clock.seconds[stage] / len(records)] for stage in (WRITING, SCORING)}
    total = sum(map(np.median, seconds.values()))
    name = f"{len(points)} point{'s' if len(points) > 1 else ''} at {size}"
    yield row_of(
        *(setting, "pipeline", f"{name}: an image", size, [total]),
        share=1.0,
        detections=num_found / len(records) / len(points),
    )
    for stage, each in seconds.items():
        yield row_of(
            *(setting, "pipeline", f"{name}: {stage}", size, each), share=np.median(each) / total
        )


def write_photographs(folder: Path, num_images: int, num_classes: int) -> str:
    """Makes images as large as COCO's, with the objects of a synthetic batch.

    Returns:
        Path of the annotation file.
    """
    rng, (height, width) = np.random.default_rng(0), PHOTOGRAPH
    images, annotations = [], []
    samples = synthetic_batch(num_images, height, num_classes)
    for number, sample in enumerate(samples, start=1):
        # Smooth, so that it takes as long to decode as a photograph.
        pixels = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        name = f"{number}.jpg"
        image.save(folder / name, quality=90)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        instances = sample["instances"]
        for box, label in zip(instances.gt_boxes, instances.gt_classes.tolist(), strict=True):
            x0, y0, x1, y1 = box.tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(num_classes)]
    path = folder / "annotations.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)

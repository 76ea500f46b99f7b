"""All stitches of a detector in one pass over the images; shared beginnings of walks run once.

An image is read and resized once, and one walk along a tree of all stitches computes its backbone
features; only pyramid and heads run per stitch. The detections equal those of the stitch alone.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

import torch
from detectron2.data.samplers import InferenceSampler
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from torch import nn
from torch.utils.data import DataLoader

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import (
    JoinedRCNN,
    StitchedViT,
    detect_with_counts,
    find_stitched_vit,
    operating_at,
    point_of,
    pyramid_from_features,
    pyramid_of_exit,
)
from snnet_vitdet.stitching import OperatingPoint, PrefixTree, Stitch

from .detections import Detections, DetectionStore
from .mask_rle import find_runs
from .progress import Progress
from .score_curves import ScoreCurve
from .scoring import CocoScorer
from .scoring_pool import score_points
from .writer import DetectionWriter

__all__ = [
    "as_detections",
    "batches_from",
    "detect",
    "evaluate_in_one_pass",
    "fixed_subset",
    "supports_one_pass",
]

logger = logging.getLogger(__name__)

_LOG_SECONDS = 20


def evaluate_in_one_pass(
    model: GeneralizedRCNN,
    points: Sequence[OperatingPoint],
    data_loader: DataLoader,
    scorer: CocoScorer,
    folder: str,
    plan: Mapping[str, object],
    images: Sequence[int] | None = None,
    resume: bool = False,
    padding: str = "square",
    scoring_workers: int = 1,
) -> Iterator[tuple[OperatingPoint, dict[str, float], ScoreCurve]]:
    """Scores many operating points of one image size in one pass over the images.

    All processes must exhaust this iterator.

    Detections are kept in a folder that all processes share until every image is done; an
    interrupted pass can go on from them. Then each process scores a part of the points.

    Args:
        model: The detector; in evaluation mode during the pass.
        points: The points to score, all of the same image size.
        data_loader: A test loader as detectron2 builds it, for this image size.
        scorer: Scorer of the loader's annotations.
        folder: Folder of the detections; deleted when all points are scored.
        plan: What the detections depend on besides the points, as plain JSON.
        images: Indexes of the images to take from the loader's data set; None for all.
        resume: Whether to use detections that are already in the folder.
        padding: ``square`` or ``tight``, see :func:`.operating_at`.
        scoring_workers: Number of processes to score in, see :func:`.score_points`.

    Yields:
        A point, its AP on 0–100 by the names in ``METRICS``, and its score curve.

    Raises:
        InputError: If the processes do not see each other's detections, or one was killed.
    """
    store = DetectionStore(folder, comm.get_rank())
    if comm.is_main_process() and not (resume and points):
        store.delete()
    if not points:
        return
    plan = {**plan, "num_processes": comm.get_world_size(), "images": images}
    names = store.open(plan, (p.name for p in points)) if comm.is_main_process() else []
    detected = [point_of(model, name) for name in comm.all_gather(names)[0]]
    most = max(point.num_proposals for point in detected)
    training = model.training
    model.eval()
    try:
        with operating_at(model, points[0].image_size, most, padding):
            _detect_all(model, data_loader, images, detected, store)
    finally:
        model.train(training)
    comm.synchronize()
    image_ids = store.image_ids()
    num_images = len(data_loader.dataset if images is None else images)
    if len(image_ids) != num_images:
        raise InputError(
            f"{folder} has the detections of {len(image_ids)} of {num_images} images: all "
            "machines have to share this folder; put train.output_dir on a file system they share"
        )
    world = comm.get_world_size()
    own = [point.name for point in points[comm.get_rank() :: world]]
    of_images = None if images is None else image_ids
    with closing(score_points(scorer, store, own, of_images, scoring_workers)) as scores:
        for first in range(0, len(points), world):
            group = points[first : first + world]
            gathered = comm.all_gather(next(scores, None))
            for point, (metrics, curve) in zip(group, gathered, strict=False):
                yield point, metrics, curve
    comm.synchronize()
    if comm.is_main_process():
        store.delete()


def _detect_all(
    model: GeneralizedRCNN,
    data_loader: DataLoader,
    images: Sequence[int] | None,
    points: Sequence[OperatingPoint],
    store: DetectionStore,
) -> None:
    of_stitch: dict[int, list[OperatingPoint]] = defaultdict(list)
    for point in points:
        of_stitch[point.stitch.id].append(point)
    counts = {i: [point.num_proposals for point in group] for i, group in of_stitch.items()}
    tree = PrefixTree({point.stitch.id: point.stitch for point in points}.values())
    done = store.num_images_done()
    batches = batches_from(data_loader, images, done)
    total = done + sum(map(len, batches.batch_sampler))
    if done:
        logger.info("The detections of %d of %d images are there already.", done, total)
    progress = Progress(total, done)
    with DetectionWriter(store) as writer:
        for batch in batches:
            progress.lap("reading images")
            found = [
                as_detections(instances, sample["image_id"], [p.name for p in of_stitch[stitch.id]])
                for stitch, results in detect(model, batch, tree, counts)
                for sample, instances in zip(batch, results, strict=True)
            ]
            progress.lap("the detector")
            writer.add(found)
            progress.lap("writing detections")
            progress.count += len(batch)
            log_every_n_seconds(logging.INFO, str(progress), _LOG_SECONDS, name=__name__)
        writer.flush()
    if progress.count:
        progress.lap("writing detections")
        logger.info(str(progress))


def supports_one_pass(model: nn.Module) -> bool:
    """Whether a model can be evaluated in one pass: a GeneralizedRCNN on a StitchedViT."""
    known = type(model) in (GeneralizedRCNN, JoinedRCNN)
    return known and isinstance(find_stitched_vit(model), StitchedViT)


@torch.no_grad()
def detect(
    model: GeneralizedRCNN,
    batch: Sequence[dict],
    tree: PrefixTree,
    counts: Mapping[int, Sequence[int]] | None = None,
) -> Iterator[tuple[Stitch, list[Instances]]]:
    """What each of many stitches detects in a batch of images.

    Args:
        model: The detector, in evaluation mode.
        batch: Mapped images, as the model takes them.
        tree: The prefix tree of the stitches.
        counts: Numbers of proposals by stitch id, at most that of the RPN; None for the RPN's own.

    Yields:
        A stitch, and for each image what the model with this stitch detects, on the CPU. Masks are
        in ``mask_runs``, a :class:`.MaskRuns`, not in ``pred_masks``. The rows of
        :func:`.rows_with_count` are what the model detects with one number of proposals alone.

    Raises:
        InputError: If the model is not one that can be taken apart.
    """
    if not supports_one_pass(model):
        raise InputError(
            f"one pass over all stitches is for a GeneralizedRCNN on a StitchedViT, not for "
            f"{type(model).__name__}: set sweep.mode=separate"
        )
    pyramid, backbone = model.backbone, model.backbone.net
    images = model.preprocess_image(batch)
    for stitch, features in backbone.forward_tree(images.tensor, tree):
        own = pyramid_of_exit(pyramid, stitch.exit)
        levels = pyramid_from_features(own, features[pyramid.in_feature])
        with backbone.using_stitch(stitch.id):  # a joined detector chooses its heads by it
            rpn, heads = model.proposal_generator, model.roi_heads
        numbers = counts[stitch.id] if counts else [rpn.post_nms_topk[False]]
        proposals, _ = rpn(images, levels, None)
        results = detect_with_counts(heads, images, levels, proposals, numbers)
        yield stitch, list(_in_image_pixels(results, batch, images.image_sizes))


def _in_image_pixels(
    results: Sequence[Instances], batch: Sequence[dict], image_sizes: Sequence[tuple[int, int]]
) -> Iterator[Instances]:
    """Detections from the pixels of the model to those of the images, as :func:`detect` yields."""
    for found, sample, (height, width) in zip(results, batch, image_sizes, strict=True):
        masks = found.get_fields().pop("pred_masks", None)
        # All but the masks is small. A GPU takes less time to copy it than to start the 25
        # operations of the postprocessing, six of which wait for the GPU.
        found = found.to("cpu")
        found.row = torch.arange(len(found))
        found = detector_postprocess(
            found, sample.get("height", height), sample.get("width", width)
        )
        if masks is not None:
            rows, boxes = found.row.to(masks.device), found.pred_boxes.tensor.to(masks.device)
            found.mask_runs = find_runs(masks[rows], boxes, found.image_size)
        found.remove("row")
        yield found


def as_detections(found: Instances, image_id: int, points: Sequence[str]) -> Detections:
    """What :func:`detect` yields of an image, as arrays.

    Args:
        found: The detections.
        image_id: The image.
        points: Name of the operating point with each of the numbers of proposals.
    """
    return Detections(
        image_id,
        points,
        boxes=found.pred_boxes.tensor.numpy(),
        scores=found.scores.numpy(),
        classes=found.pred_classes.numpy(),
        places=found.places.numpy(),
        mask_runs=found.mask_runs if found.has("mask_runs") else None,
    )


def batches_from(
    loader: DataLoader, images: Sequence[int] | None = None, first: int = 0
) -> DataLoader:
    """A detectron2 test loader restricted to some of its images.

    Args:
        loader: The loader.
        images: Indexes into its data set, divided among the processes; None for all.
        first: Number of images of this process to skip at the start.
    """
    own = [index for batch in loader.batch_sampler for index in batch]
    if images is not None:
        own = [images[position] for position in InferenceSampler(len(images))]
    own, size = own[first:], loader.batch_sampler.batch_size
    # The same class: it may handle images that its workers cannot read in its own way.
    return type(loader)(
        loader.dataset,
        batch_sampler=[own[i : i + size] for i in range(0, len(own), size)],
        num_workers=loader.num_workers,
        multiprocessing_context=loader.multiprocessing_context,
        collate_fn=loader.collate_fn,
    )


def fixed_subset(num_images: int, size: int) -> list[int]:
    """Indexes of a fixed random subset of the images, ascending; all if there are no more."""
    return sorted(random.Random(0).sample(range(num_images), min(size, num_images)))

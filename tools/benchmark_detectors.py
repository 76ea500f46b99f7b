"""The cases of tools/benchmark.py that are whole detectors: training, inference and sweep."""

import copy
import statistics
from collections import defaultdict
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import ViT
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from torch import nn

from benchmark_cases import ANCHORS, Case, Groups, Setting
from snnet_vitdet.engine import build_sampler
from snnet_vitdet.engine.training import build_optimizer
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.detections import DetectionStore
from snnet_vitdet.evaluation.one_pass import as_detections, detect
from snnet_vitdet.evaluation.writer import DetectionWriter
from snnet_vitdet.files import temporary_folder
from snnet_vitdet.modeling import (
    JoinedRCNN,
    anchor_alone,
    find_stitched_vit,
    operating_at,
    running_in,
    stitch_costs,
)
from snnet_vitdet.stitching import PrefixTree, merged

# So many that encoding and writing run beside the detection of the next.
_BATCHES_IN_ONE_PASS = 4
# Number of stitches that choose the score threshold of a sweep.
_STITCHES_FOR_THRESHOLD = 8


def detectron2_vitdet(model_config, anchor):
    """The config of detectron2's own ViTDet with the sizes of one anchor."""
    config = anchor_alone(copy.deepcopy(model_config), anchor)
    ours = config.backbone.net
    with torch.device("meta"):
        blocks = instantiate(ours).blocks
    config.backbone.net = L(ViT)(
        img_size=ours.img_size,
        patch_size=ours.patch_size,
        embed_dim=ours.embed_dim,
        depth=ours.depth,
        num_heads=ours.num_heads,
        drop_path_rate=ours.get("drop_path_rate", 0.0),
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        window_size=ours.get("window_size", 14),
        window_block_indexes=[i for i, block in enumerate(blocks) if block.window_size],
        use_rel_pos=bool(ours.get("use_rel_pos", True)),
        pretrain_img_size=ours.get("pretrain_img_size", 224),
        out_feature="last_feat",
    )
    return config


def _groups_of_models(setting, ours, theirs):
    """detectron2's own detectors, then the stitched one."""
    for anchor in ANCHORS:
        yield partial(theirs, setting, anchor)
    yield partial(ours, setting)


def training_groups(setting: Setting) -> Groups:
    """Forward, backward and a step of the config's optimizer on a batch."""
    return _groups_of_models(setting, _stitched_training, _detectron2_training)


def _detectron2_training(setting, anchor):
    model = setting.build(detectron2_vitdet(setting.config.model, anchor))
    step = TrainingStep(model, optimizer_of(setting.config, model, anchor), setting)
    return [step.case(f"detectron2 ViTDet {anchor}", setting.image_size)]


def _stitched_training(setting):
    model = setting.build(setting.config.model)
    if isinstance(model, JoinedRCNN):
        for point in setting.points:
            if not point.stitch.cuts:
                raise InputError(
                    f"stitch {point.name} of a joined detector has nothing to learn: measure the "
                    "training of stitches with a cut, such as --stitches FS,SF"
                )
    step = TrainingStep(model, optimizer_of(setting.config, model), setting)
    cases = [
        step.case(f"stitch {point.name}", point.image_size, point.stitch.id)
        for point in setting.points
    ]
    if setting.draws:
        cases.append(step.case_of_draws(typical_draws(setting.config, setting.draws)))
    return cases


def optimizer_of(config, model, anchor=None):
    """The optimizer of a config, with a learning rate of 0: every repetition has the same weights.

    Args:
        config: The whole config; not changed.
        model: The model.
        anchor: If the model has this anchor alone: its name.
    """
    config = copy.deepcopy(config)
    decay = config.optimizer.params.get("lr_factor_func")
    if anchor and decay is not None and anchor in decay.get("rates", ()):
        decay.depths = {"net": decay.depths[anchor]}
        decay.rates = {"net": decay.rates[anchor]}
    optimizer = build_optimizer(config, model)
    for group in optimizer.param_groups:
        group["initial_lr"], group["lr"] = group["lr"], 0.0
    return optimizer


def scaler_of(device, precision):
    """The loss scale of a training in float16, which does nothing in other precisions."""
    # With the usual 2**16, the first iterations would be skipped: their gradients are too large.
    enabled = precision == torch.float16
    return torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=enabled)


def typical_draws(config, count):
    """Stitch ids at evenly spaced quantiles of the sampler's draws, ordered by their cost."""
    costs = stitch_costs(config.model)
    probabilities = np.array(build_sampler(config, costs).probabilities())
    by_cost = np.argsort(costs.gflops)
    quantiles = (np.arange(count) + 0.5) / count
    return by_cost[np.searchsorted(probabilities[by_cost].cumsum(), quantiles)].tolist()


class TrainingStep:
    """One iteration of a model; proposals and dropped paths are drawn the same every time."""

    def __init__(self, model, optimizer, setting):
        self.model, self.optimizer, self.setting = model, optimizer, setting
        self.scaler = scaler_of(setting.device, setting.precision)

    def case(self, network, size, stitch=None):
        """The case of a network in this model, at an image size."""
        batch = self.setting.batch(size)
        run = partial(self.run, batch, size, stitch)
        return Case("training", network, run, size, partial(self.forward, batch, size, stitch))

    def case_of_draws(self, stitches):
        """The case of the mean over some stitches, which are trained in turn."""
        size = self.setting.image_size
        batch = self.setting.batch(size)

        def run():
            for stitch in stitches:
                self.run(batch, size, stitch)

        return Case("training", "mean of the sampler's draws", run, size, times=len(stitches))

    def forward(self, batch, size, stitch):
        """The sum of the losses of a stitch; None for a model without stitches."""
        if stitch is not None:
            find_stitched_vit(self.model).set_stitch(stitch)
        torch.manual_seed(0)
        other = None if size == self.setting.image_size else size
        with operating_at(self.model, other, None), EventStorage(), self.setting.autocast():
            return sum(self.model.train()(list(batch)).values())

    def run(self, batch, size, stitch):
        """Forward and backward pass, and a step."""
        self.optimizer.zero_grad()
        self.scaler.scale(self.forward(batch, size, stitch)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def inference_groups(setting: Setting) -> Groups:
    """Detections in the images of a batch, with masks in the images."""
    return _groups_of_models(setting, _stitched_inference, _detectron2_inference)


def _detectron2_inference(setting, anchor):
    model = setting.build(detectron2_vitdet(setting.config.model, anchor)).eval()
    images = setting.images(setting.image_size)
    run = partial(infer, model, images, setting, nullcontext)
    return [_inference_case(model, run, f"detectron2 ViTDet {anchor}", setting.image_size)]


def _stitched_inference(setting):
    model = setting.build(setting.config.model).eval()
    cases = []
    for point in setting.points:
        images = setting.images(point.image_size)
        run = partial(infer, model, images, setting, partial(using_point, model, point))
        cases.append(_inference_case(model, run, f"stitch {point.name}", point.image_size))
    return cases


def using_point(model, point):
    """The context in which a model runs at an operating point."""
    find_stitched_vit(model).set_stitch(point.stitch.id)
    return operating_at(model, point.image_size, point.num_proposals)


@torch.no_grad()
def infer(model, images, setting, context):
    """The instances that a model detects in each image."""
    with context(), running_in(model, setting.precision):
        return [output["instances"] for output in model(images)]


def _inference_case(model, run, network, size):
    threshold = score_threshold(model, run)

    def count():
        set_score_threshold(model, threshold)
        return statistics.fmean(map(len, run()))

    return Case("inference", network, count, size)


def score_threshold(model, run) -> float:
    """The score that as many detections exceed as the model returns at most, 100 in COCO.

    An untrained model has no score above the threshold of the config, so that neither masks nor
    their pasting would be measured.

    Args:
        model: The detector; its threshold is 0 afterwards.
        run: Returns the instances that it detects in each image.
    """
    set_score_threshold(model, 0.0)
    lowest = [found.scores.min().item() for found in run() if len(found)]
    # A detection has to exceed the threshold.
    return 0.999999 * statistics.median(lowest) if lowest else 0.0


def set_score_threshold(model, threshold):
    """Sets the score that detections have to exceed."""
    for module in model.modules():
        if isinstance(module, FastRCNNOutputLayers):
            module.test_score_thresh = threshold


def sweep_groups(setting: Setting) -> Groups:
    """Many points on the images of a batch, masks encoded: in one pass, and one by one."""
    for size, points in by_size(setting.swept).items():
        yield partial(_sweep_cases, setting, size, points)


def by_size(points):
    """Operating points by their image size."""
    groups = defaultdict(list)
    for point in points:
        groups[point.image_size].append(point)
    return groups


class OnePass:
    """All points of an image size in one pass, as a sweep runs them (there, LoRA is merged)."""

    def __init__(self, model, points, precision, padding="square"):
        """
        Args:
            model: The detector; set to evaluation mode.
            points: The points.
            precision: Type of autocast; float32 for none.
            padding: ``square`` or ``tight``.
        """
        self.model, self.precision = model.eval(), precision
        self.of_stitch = defaultdict(list)
        for point in points:
            self.of_stitch[point.stitch.id].append(point)
        most = max(point.num_proposals for point in points)
        self.operation = points[0].image_size, most, padding

    def __call__(self, images, stitches=None):
        """Yields a stitch and the instances that it detects in each image."""
        stitches = list(self.of_stitch) if stitches is None else stitches
        space = find_stitched_vit(self.model).space
        tree = PrefixTree(space[stitch] for stitch in stitches)
        counts = {i: [p.num_proposals for p in self.of_stitch[i]] for i in stitches}
        at_point = operating_at(self.model, *self.operation)
        with running_in(self.model, self.precision), at_point:
            yield from detect(self.model, images, tree, counts)

    def names_of(self, stitch):
        """The names of a stitch's points, in the order of their numbers of proposals."""
        return [point.name for point in self.of_stitch[stitch.id]]

    def choose_threshold(self, images):
        """Sets one threshold for all stitches: the median over some of them."""
        every = list(self.of_stitch)
        some = every[:: -(-len(every) // _STITCHES_FOR_THRESHOLD)]

        def run():
            return [each for _, found in self(images, some) for each in found]

        set_score_threshold(self.model, score_threshold(self.model, run))


def _sweep_cases(setting, size, points):
    model = setting.build(setting.config.model)
    images = setting.images(size)
    one_pass = OnePass(model, points, setting.precision, setting.config.sweep.padding)
    one_pass.choose_threshold(images)

    folder = temporary_folder("benchmark_")
    store = DetectionStore(folder.name, images_per_file=_BATCHES_IN_ONE_PASS * setting.num_images)
    writer = DetectionWriter(store)

    def in_one_pass(_folder=folder):  # which is removed with this function
        with merged(model):
            for number in range(_BATCHES_IN_ONE_PASS):
                found = [
                    as_detections(
                        each, number * setting.num_images + index, one_pass.names_of(stitch)
                    )
                    for stitch, results in one_pass(images)
                    for index, each in enumerate(results)
                ]
                # Encoded and written in another process, while the next images are detected in.
                writer.add(found)
            writer.flush()
        return statistics.fmean(len(each.scores) for each in found)

    def separately():
        counts = []
        with merged(model):
            for point in points:
                for found in infer(model, images, setting, partial(using_point, model, point)):
                    # As detectron2's evaluator: masks are encoded by pycocotools.
                    instances_to_coco_json(found.to("cpu"), 0)
                    counts.append(len(found))
        return statistics.fmean(counts)

    one, many = "stitch", "stitches"
    if not all(point.is_trained for point in points):
        one, many = f"point at {size}", f"points at {size}"
    kind = one if len(points) == 1 else many
    names = [f"{len(points)} {kind} {how}" for how in ("in one pass", "separately")]
    return [
        Case("sweep", names[0], in_one_pass, size, None, names[1], _BATCHES_IN_ONE_PASS),
        Case("sweep", names[1], separately, size, None, names[1]),
    ]

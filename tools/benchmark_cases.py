"""The cases of tools/benchmark.py: what is measured, and detectron2's counterparts."""

import copy
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import ViT
from detectron2.modeling.backbone.vit import Block as Detectron2Block
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from torch import nn

from snnet_vitdet.deploy.latency import measure
from snnet_vitdet.engine import build_sampler, synthetic_batch
from snnet_vitdet.engine.precision import autocast
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.one_pass import detect
from snnet_vitdet.memory import bytes_kept_for_backward
from snnet_vitdet.modeling import (
    JoinedRCNN,
    anchor_alone,
    find_stitched_vit,
    operating_at,
    running_in,
    stitch_costs,
)
from snnet_vitdet.modeling.anchor import Block
from snnet_vitdet.stitching import OperatingPoint, PrefixTree, merged

ANCHORS = ("large", "small")  # the large one first: its rows are the baseline of the others
# As many threshold-free runs as are made to choose the threshold of a sweep.
_POINTS_FOR_THRESHOLD = 8


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        what: ``block``, ``training``, ``inference`` or ``sweep``.
        network: The network, e.g. ``stitch FS-3`` or ``detectron2 ViTDet large``.
        run: Does it once; may return how many objects it found in an image.
        image_size: Side of the images in pixels.
        forward: Its forward pass alone, to measure what is kept for the backward pass.
        baseline: The network of the case that this one is compared with.
        times: How many times ``run`` does it.
        vit: The ViT that has this block, if it is a block.
        weight: Number of such blocks in the ViT.
    """

    what: str
    network: str
    run: Callable[[], float | None]
    image_size: int
    forward: Callable[[], torch.Tensor] | None = None
    baseline: str = "detectron2 ViTDet large"
    times: int = 1
    vit: str = ""
    weight: int = 1


@dataclass(frozen=True)
class Setting:
    """What all cases share.

    Attributes:
        config: The whole config.
        device: The device.
        precision: Type of autocast; float32 for none.
        num_images: Number of images at once.
        points: Operating points of the training and inference cases.
        swept: Operating points of the sweep.
        draws: Number of stitches that stand for the sampler's draws; 0 for no such case.
        repeats: Number of rounds that count.
        warmup: Number of rounds before these.
    """

    config: object
    device: torch.device
    precision: torch.dtype
    num_images: int
    points: list[OperatingPoint]
    swept: list[OperatingPoint]
    draws: int
    repeats: int
    warmup: int

    @property
    def image_size(self) -> int:
        """Side of the training images in pixels."""
        return self.config.data.image_size

    def autocast(self):
        """The context of a forward pass in training."""
        return autocast(self.device, self.precision)

    def batch(self, size: int) -> list[dict]:
        """Training images of a size."""
        num_classes = self.config.model.roi_heads.num_classes
        return synthetic_batch(self.num_images, size, num_classes)

    def images(self, size: int) -> list[dict]:
        """The same images without annotations."""
        return [{"image": sample["image"]} for sample in self.batch(size)]

    def build(self, model_config: object) -> nn.Module:
        """Builds a model on the device: the memory of the host need not hold it."""
        with self.device:
            return instantiate(model_config)


# A part is measured in groups. A function makes the cases of a group, so that only one model is
# alive at a time.
Groups = Iterator[Callable[[], list[Case]]]


def block_groups(setting: Setting) -> Groups:
    """Forward and backward of each anchor's window and global blocks, ours and detectron2's.

    Ours are measured with relative positions and without.
    """
    for name in ANCHORS:
        anchor = setting.config.model.backbone.net[name]
        with torch.device("meta"):
            windows = [block.window_size for block in instantiate(anchor).blocks]
        for window in sorted(set(windows), reverse=True):
            yield partial(_block_cases, setting, name, anchor, window, windows.count(window))


def _block_cases(setting, name, anchor, window, count):
    grid = anchor.img_size // anchor.patch_size
    side = window or grid
    sizes = dict(dim=anchor.embed_dim, num_heads=anchor.num_heads, window_size=window)
    kind = f"{name} {'window' if window else 'global'}"
    without = " without relative positions"
    detectron2s = partial(Detectron2Block, use_rel_pos=True, input_size=(side, side))
    cases = []
    for maker, suffix, make in (
        ("detectron2", "", detectron2s),
        ("stitched", "", partial(Block, rel_pos_size=(side, side))),
        ("stitched", without, Block),
    ):
        with setting.device:
            block = make(**sizes).train()
            x = torch.randn(setting.num_images, grid, grid, anchor.embed_dim, requires_grad=True)
        forward = partial(block_forward, block, x, setting)
        case = Case(
            "block",
            f"{maker} {kind}{suffix}",
            partial(forward_and_backward, forward),
            anchor.img_size,
            forward,
            f"detectron2 {kind}",
            vit=f"{maker} {name}{suffix}",
            weight=count,
        )
        cases.append(case)
    return cases


def block_forward(block, x, setting):
    """One block on one batch of tokens."""
    with setting.autocast():
        return block(x)


def forward_and_backward(forward):
    """Runs a forward pass, and the backward pass of the sum of its output."""
    forward().sum().backward()


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
    config.optimizer.params.model = model
    decay = config.optimizer.params.get("lr_factor_func")
    if anchor and decay is not None and anchor in decay.get("rates", ()):
        decay.depths = {"net": decay.depths[anchor]}
        decay.rates = {"net": decay.rates[anchor]}
    optimizer = instantiate(config.optimizer)
    for group in optimizer.param_groups:
        group["initial_lr"], group["lr"] = group["lr"], 0.0
    return optimizer


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
        self.forward(batch, size, stitch).backward()
        self.optimizer.step()


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

    def __init__(self, model, points, setting):
        self.model, self.setting = model.eval(), setting
        self.size = points[0].image_size
        self.of_stitch = defaultdict(list)
        for point in points:
            self.of_stitch[point.stitch.id].append(point)
        self.most = max(point.num_proposals for point in points)

    def __call__(self, images, stitches=None):
        """Yields a stitch and the instances that it detects in each image."""
        stitches = list(self.of_stitch) if stitches is None else stitches
        space = find_stitched_vit(self.model).space
        tree = PrefixTree(space[stitch] for stitch in stitches)
        counts = {i: [p.num_proposals for p in self.of_stitch[i]] for i in stitches}
        at_point = operating_at(self.model, self.size, self.most)
        with running_in(self.model, self.setting.precision), at_point:
            yield from detect(self.model, images, tree, counts)

    def choose_threshold(self, images):
        """Sets one threshold for all stitches: the median over some of them."""
        every = list(self.of_stitch)
        some = every[:: -(-len(every) // _POINTS_FOR_THRESHOLD)]

        def run():
            return [each for _, found in self(images, some) for each in found]

        set_score_threshold(self.model, score_threshold(self.model, run))


def _sweep_cases(setting, size, points):
    model = setting.build(setting.config.model)
    images = setting.images(size)
    one_pass = OnePass(model, points, setting)
    one_pass.choose_threshold(images)

    def in_one_pass():
        with merged(model):
            return statistics.fmean(len(each) for _, found in one_pass(images) for each in found)

    def separately():
        with merged(model):
            found = [
                each
                for point in points
                for each in infer(model, images, setting, partial(using_point, model, point))
            ]
            # As detectron2's evaluator: masks are encoded by pycocotools.
            for each in found:
                instances_to_coco_json(each.to("cpu"), 0)
        return statistics.fmean(map(len, found))

    kind = "stitches" if all(point.is_trained for point in points) else f"points at {size}"
    names = [f"{len(points)} {kind} {how}" for how in ("in one pass", "separately")]
    runs = (in_one_pass, separately)
    return [
        Case("sweep", name, run, size, baseline=names[1])
        for name, run in zip(names, runs, strict=True)
    ]


GROUPS = {
    "blocks": block_groups,
    "training": training_groups,
    "inference": inference_groups,
    "sweep": sweep_groups,
}


# ------------------------------------------------------------------------------------------- rows


def rows_of_groups(groups: Groups, setting: Setting) -> Iterator[dict]:
    """Measures groups of cases, one after the other; yields a row for each case."""
    medians: dict[str, float] = {}
    of_vit = defaultdict(list)
    for make in groups:
        cases = make()
        found: dict[str, float | None] = {}

        def run(case, found=found):
            found[case.network] = case.run()

        functions = {case.network: partial(run, case) for case in cases}
        results = measure(functions, setting.device, setting.repeats, setting.warmup)
        medians |= {case.network: results[case.network].median / case.times for case in cases}
        for case in cases:
            result = results[case.network]
            kept = None if case.forward is None else bytes_kept_for_backward(case.forward)
            row = row_of(
                setting,
                case.what,
                case.network,
                case.image_size,
                [each / case.times for each in result.seconds],
                weight=case.weight,
                kept_mib=None if kept is None else kept / 2**20,
                peak_mib=None if result.peak_bytes is None else result.peak_bytes / 2**20,
                over_detectron2=medians[case.network] / medians[case.baseline],
                detections=found[case.network],
            )
            if case.vit:
                of_vit[case.vit].append(row)
            yield row
        del cases, case, functions, run
    yield from _rows_of_vits(of_vit, setting)


def _rows_of_vits(of_vit, setting):
    """All blocks of a ViT: the sum of its kinds of blocks."""
    totals = {
        vit: {
            key: sum(row["weight"] * row[key] for row in rows)
            for key in ("median_s", "min_s", "max_s", "kept_mib")
        }
        for vit, rows in of_vit.items()
    }
    for vit, rows in of_vit.items():
        baseline = totals[f"detectron2 {vit.split()[1]}"]
        yield {
            **rows[0],
            "what": "ViT",
            "network": f"all {sum(row['weight'] for row in rows)} blocks, {vit}",
            **totals[vit],
            "weight": 1,
            "peak_mib": None,
            "over_detectron2": totals[vit]["median_s"] / baseline["median_s"],
            "kept_over_detectron2": totals[vit]["kept_mib"] / baseline["kept_mib"],
        }


def row_of(setting, what, network, size, seconds, **values):
    """A row of benchmark.csv.

    Args:
        setting: The setting.
        what: The kind of measurement.
        network: What was measured.
        size: Side of the images in pixels.
        seconds: Duration of each repetition.
        **values: Other columns.
    """
    row = {
        "what": what,
        "network": network,
        "precision": str(setting.precision).removeprefix("torch."),
        "batch": setting.num_images,
        "image_size": size,
        "gflops": None,
        "weight": 1,
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "kept_mib": None,
        "peak_mib": None,
        "over_detectron2": None,
        "kept_over_detectron2": None,
        "detections": None,
        "share": None,
    }
    assert values.keys() <= row.keys()
    return row | values

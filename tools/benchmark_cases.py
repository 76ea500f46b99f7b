"""What tools/benchmark.py measures and how: cases and their rows, and the blocks of the ViTs."""

import platform
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from detectron2.config import instantiate
from detectron2.modeling.backbone.vit import Block as Detectron2Block
from torch import nn

from snnet_vitdet.deploy.latency import measure
from snnet_vitdet.engine import synthetic_batch
from snnet_vitdet.engine.precision import autocast
from snnet_vitdet.memory import bytes_kept_for_backward
from snnet_vitdet.modeling import compile_blocks
from snnet_vitdet.modeling.block import Block
from snnet_vitdet.stitching import OperatingPoint

ANCHORS = ("large", "small")  # the large one first: its rows are the baseline of the others


PHOTOGRAPH = (480, 640)  # height and width of most images of COCO


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
        compile: Whether the blocks of our ViTs are compiled.
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
    compile: bool = False

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
        """Photographs as large as COCO's, resized to a size, without annotations."""
        height = size * PHOTOGRAPH[0] // PHOTOGRAPH[1]
        own = dict(zip(("height", "width"), PHOTOGRAPH, strict=True))
        return [{"image": sample["image"][:, :height], **own} for sample in self.batch(size)]

    def build(self, model_config: object) -> nn.Module:
        """Builds a model on the device: the memory of the host need not hold it."""
        with self.device:
            return self.compiled(instantiate(model_config))

    def compiled(self, model: nn.Module) -> nn.Module:
        """The model, its blocks compiled if they are to be."""
        if self.compile:
            compile_blocks(model)
        return model


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
            block = setting.compiled(make(**sizes).train())
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
    on_gpu = setting.device.type == "cuda"
    row = {
        "device": torch.cuda.get_device_name(setting.device) if on_gpu else platform.machine(),
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

#!/usr/bin/env python
"""Measures speed and memory of the stitches of a config beside detectron2's own ViTDet.

    python tools/benchmark.py                                      # a config for this machine
    python tools/benchmark.py --config-file F --what blocks training --precision bfloat16

Times are medians over rounds in which everything is measured in turn. Writes benchmark.csv,
benchmark.json and benchmark.png. Weights are random; needs neither data nor network.
"""

import argparse
import copy
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import numpy as np
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import ViT
from detectron2.modeling.backbone.vit import Block as Detectron2Block
from detectron2.utils.events import EventStorage
from matplotlib.figure import Figure
from torch import nn

from snnet_vitdet.deploy.latency import measure
from snnet_vitdet.engine import load_config, synthetic_batch
from snnet_vitdet.engine.precision import autocast
from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.evaluation.one_pass import detect
from snnet_vitdet.files import write_csv
from snnet_vitdet.memory import bytes_kept_for_backward
from snnet_vitdet.modeling import JoinedRCNN, anchor_alone, find_stitched_vit, stitch_costs
from snnet_vitdet.modeling.anchor import Block
from snnet_vitdet.report import drawing
from snnet_vitdet.stitching import PrefixTree, merged, select_stitches

WHAT = ("blocks", "training", "inference", "sweep")
ANCHORS = ("small", "large")
COCO_CLASSES = 80
# Without a GPU, the embedded default; its images are 256 pixels.
DEFAULT_CONFIG = {
    "cpu": "configs/shapes/mask_rcnn_snnet_nano.py",
    "cuda": "configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py",
}
PANELS = {
    "block": "a block forward and backward (over detectron2's)",
    "training": "a training step (over that of detectron2's ViTDet of the large anchor)",
    "inference": "inference (over that of detectron2's ViTDet of the large anchor)",
    "sweep": "all stitches, without scoring (over one by one)",
}
OURS, OTHERS = "#0072B2", "#E69F00"  # Okabe and Ito's palette


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        what: ``block``, ``training``, ``inference`` or ``sweep``.
        network: The network, e.g. ``stitch FS-3`` or ``detectron2 ViTDet large``.
        run: Does it once.
        forward: Its forward pass alone, to measure what is kept for the backward pass.
        baseline: The network of the case that this one is compared with.
        weight: Number of such blocks in a ViT.
    """

    what: str
    network: str
    run: Callable[[], object]
    forward: Callable[[], torch.Tensor] | None = None
    baseline: str = "detectron2 ViTDet large"
    weight: int = 1


@dataclass(frozen=True)
class Setting:
    """What all cases share: the config of the model, device, precision and a training batch."""

    model_config: object
    device: torch.device
    precision: torch.dtype
    batch: list

    def autocast(self):
        """The context of a forward pass."""
        return autocast(self.device, self.precision)

    @property
    def images(self):
        """The batch without annotations."""
        return [{"image": sample["image"]} for sample in self.batch]


# ------------------------------------------------------------------------------------------ cases


def block_cases(setting):
    """Forward and backward of each anchor's window and global blocks, ours and detectron2's.

    Ours are measured with relative positions and without.
    """
    for name in ANCHORS:
        anchor = setting.model_config.backbone.net[name]
        with torch.device("meta"):
            windows = [block.window_size for block in instantiate(anchor).blocks]
        grid = anchor.img_size // anchor.patch_size
        for window in sorted(set(windows), reverse=True):
            side = window or grid
            sizes = dict(dim=anchor.embed_dim, num_heads=anchor.num_heads, window_size=window)
            kind = f"{name} {'window' if window else 'global'}"
            blocks = {
                f"stitched {kind}": Block(**sizes, rel_pos_size=(side, side)),
                f"stitched {kind} without relative positions": Block(**sizes),
                f"detectron2 {kind}": Detectron2Block(
                    **sizes, use_rel_pos=True, input_size=(side, side)
                ),
            }
            for network, block in blocks.items():
                block = block.to(setting.device).train()
                shape = (len(setting.batch), grid, grid, anchor.embed_dim)
                x = torch.randn(shape, device=setting.device, requires_grad=True)
                forward = partial(block_forward, block, x, setting)
                run = partial(forward_and_backward, forward)
                count = windows.count(window)
                yield Case("block", network, run, forward, f"detectron2 {kind}", count)


def block_forward(block, x, setting):
    """One block on one batch of tokens."""
    with setting.autocast():
        return block(x)


def forward_and_backward(forward):
    """Runs a forward pass, and the backward pass of the sum of its output."""
    forward().sum().backward()


def detectron2_vitdet(model_config, anchor):
    """The config of detectron2's own ViTDet with the sizes of one anchor."""
    config = anchor_alone(model_config, anchor)
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


def detectors(setting, stitches):
    """Name, model and a function that selects: each stitch, then detectron2's own detectors."""
    model = instantiate(setting.model_config).to(setting.device)
    backbone = find_stitched_vit(model)
    for stitch in stitches:
        name = f"stitch {backbone.space[stitch].name}"
        yield name, model, partial(backbone.set_stitch, stitch)
    for anchor in ANCHORS:
        config = detectron2_vitdet(copy.deepcopy(setting.model_config), anchor)
        yield f"detectron2 ViTDet {anchor}", instantiate(config).to(setting.device), lambda: None


def training_cases(setting, stitches):
    """Forward, backward and a step of AdamW on the batch.

    Raises:
        InputError: If a stitch has nothing to learn.
    """
    for network, model, select in detectors(setting, stitches):
        select()
        if isinstance(model, JoinedRCNN) and not model.backbone.net.stitch.cuts:
            raise InputError(
                f"{network} of a joined detector has nothing to learn: measure the training of "
                "stitches with a cut, such as --stitches FS,SF"
            )
        # With a learning rate of 0, every repetition has the same weights.
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
        forward = partial(total_loss, model, select, setting)
        yield Case("training", network, partial(training_step, forward, optimizer), forward)


def total_loss(model, select, setting):
    """Sum of the losses; proposals and dropped paths are drawn the same every time."""
    select()
    torch.manual_seed(0)
    with EventStorage(), setting.autocast():
        return sum(model.train()(list(setting.batch)).values())


def training_step(forward, optimizer):
    """One iteration."""
    optimizer.zero_grad()
    forward().backward()
    optimizer.step()


def inference_cases(setting, stitches):
    """Detections in the images of the batch."""
    for network, model, select in detectors(setting, stitches):
        yield Case("inference", network, partial(infer, model, select, setting))


@torch.no_grad()
def infer(model, select, setting):
    """Detects with one stitch."""
    select()
    with setting.autocast():
        model.eval()(setting.images)


def sweep_cases(setting, stitches):
    """Many stitches on the images of the batch: in one pass, and one by one. Without scoring."""
    model = instantiate(setting.model_config).to(setting.device)
    backbone = find_stitched_vit(model)
    tree = PrefixTree(backbone.space[stitch] for stitch in stitches)

    def one_pass():
        with merged(model.eval()), setting.autocast():
            for _ in detect(model, setting.images, tree):
                pass

    @torch.no_grad()
    def separately():
        with merged(model.eval()), setting.autocast():
            for stitch in stitches:
                with backbone.using_stitch(stitch):
                    model(setting.images)

    names = [f"{len(stitches)} stitches {how}" for how in ("in one pass", "separately")]
    for name, run in zip(names, (one_pass, separately), strict=True):
        yield Case("sweep", name, run, baseline=names[1])


# ---------------------------------------------------------------------------------------- program


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--stitches", help="as sweep.stitch_ids; the anchors, in a sweep all, if not given"
    )
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile the anchors' blocks")
    parser.add_argument("--output", default="output/benchmark", metavar="FOLDER")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parser.parse_args()


def compile_blocks():
    """Lets torch compile every block of an anchor that is built from now on."""
    own = Block.__init__

    def compiled(block, *args, **kwargs):
        own(block, *args, **kwargs)
        block.compile()

    Block.__init__ = compiled


def rows_of(cases, setting, args, gflops):
    """Measures some cases together; yields a row for each."""
    functions = {case.network: case.run for case in cases}
    results = measure(functions, setting.device, args.repeats, args.warmup)
    for case in cases:
        found, baseline = results[case.network], results[case.baseline]
        kept = None if case.forward is None else bytes_kept_for_backward(case.forward) / 2**20
        yield {
            "what": case.what,
            "network": case.network,
            "precision": str(setting.precision).removeprefix("torch."),
            "batch": len(setting.batch),
            "image_size": setting.batch[0]["height"],
            "gflops": gflops.get(case.network),
            "weight": case.weight,
            "median_s": found.median,
            "min_s": min(found.seconds),
            "max_s": max(found.seconds),
            "kept_mib": kept,
            "peak_mib": None if found.peak_bytes is None else found.peak_bytes / 2**20,
            "over_detectron2": found.median / baseline.median,
        }


def plot(rows, path):
    """Writes a PNG with a panel for each kind of measurement and a bar for each network."""
    groups = {what: [row for row in rows if row["what"] == what] for what in PANELS}
    groups = {what: group for what, group in groups.items() if group}
    heights = [0.75 + 0.24 * len(group) for group in groups.values()]  # inches
    figure = Figure((8, sum(heights) + 0.4), dpi=160, layout="constrained")
    panels = figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (what, group) in zip(panels, groups.items(), strict=True):
        times, fastest, slowest = (
            np.array([1000 * row[key] for row in group]) for key in ("median_s", "min_s", "max_s")
        )
        errors = [times - fastest, slowest - times]
        others = ("detectron2" in row["network"] or "separately" in row["network"] for row in group)
        colours = [OTHERS if other else OURS for other in others]
        labels = [f"{row['network']}   ({row['over_detectron2']:.2f})" for row in group]
        axes.barh(labels, times, xerr=errors, color=colours, ecolor="#333333", height=0.7)
        axes.set_title(PANELS[what], fontsize=9, fontweight="bold", loc="right")
        axes.tick_params(labelsize=8)
        axes.invert_yaxis()
        # Without this, one stall of the machine would squeeze all bars.
        axes.set_xlim(0, 1.25 * max(times))
        axes.spines[["top", "right"]].set_visible(False)
    first = rows[0]
    figure.suptitle(
        f"milliseconds for {first['batch']} x {first['image_size']}² pixels in "
        f"{first['precision']}: median, and from the fastest to the slowest round",
        fontsize=9,
    )
    figure.savefig(path)


def run(args):
    """Measures, prints and writes everything."""
    device = torch.device(args.device)
    config = load_config(args.config_file or DEFAULT_CONFIG[device.type], args.opts)
    if not isinstance(config.model.roi_heads.num_classes, int):
        config.model.roi_heads.num_classes = COCO_CLASSES  # it would be read from the data
    precision = args.precision or ("bfloat16" if device.type == "cuda" else "float32")
    if args.compile:
        compile_blocks()
    costs = stitch_costs(config.model)
    stitches = select_stitches(args.stitches or "anchors", costs.space)
    swept = select_stitches(args.stitches or "all", costs.space)
    gflops = {f"stitch {costs.space[i].name}": costs[i].gflops for i in stitches}
    num_classes = config.model.roi_heads.num_classes
    batch = synthetic_batch(args.batch, config.data.image_size, num_classes)
    setting = Setting(config.model, device, getattr(torch, precision), batch)
    makers = {
        "blocks": lambda: block_cases(setting),
        "training": lambda: training_cases(setting, stitches),
        "inference": lambda: inference_cases(setting, stitches),
        "sweep": lambda: sweep_cases(setting, swept),
    }
    rows = []
    for what in args.what:
        for row in rows_of(list(makers[what]()), setting, args, gflops):
            rows.append(row)
            kept = "" if row["kept_mib"] is None else f", keeps {row['kept_mib']:.0f} MiB"
            print(
                f"{row['what']:9}  {row['network']}: {row['median_s']:.4f} s{kept}, "
                f"{row['over_detectron2']:.2f} of its counterpart"
            )
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    facts = {
        "device": machine,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compile": args.compile,
        "rows": rows,
    }
    folder = Path(args.output)
    write_csv(folder / "benchmark.csv", list(rows[0]), (list(row.values()) for row in rows))
    (folder / "benchmark.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    print(f"Results in {folder}")
    with drawing(str(folder / "benchmark.png")):
        plot(rows, folder / "benchmark.png")


def main():
    """Runs the program."""
    with exit_on_input_error():
        run(arguments())


if __name__ == "__main__":
    main()

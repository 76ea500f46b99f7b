#!/usr/bin/env python
"""Writes one stitch of a trained model as a file of its own, with only the weights it needs.

    python tools/export_stitch.py --config-file output/my/config.yaml --stitch FS-3
    python tools/export_stitch.py --config-file output/my/config.yaml --max-gflops 800 --onnx
    python tools/export_stitch.py --info output/my/export/FS-3.safetensors

tools/predict.py --exported and snnet_vitdet.Predictor.from_file take the file. Beside it come, if
asked for, backbone and feature pyramid as ONNX (.onnx) and as torch.export program (.pt2), and the
whole detector as traced TorchScript (.ts); each is compared with the model before it is kept.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import numpy as np

from snnet_vitdet.data import coco_dicts
from snnet_vitdet.deploy import (
    Predictor,
    export_onnx,
    export_program,
    export_stitch,
    export_torchscript,
    image_files,
    load_exported,
    read_export,
)
from snnet_vitdet.engine import load_config
from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.modeling import operating_at
from snnet_vitdet.modeling.cost import tokens_of_image
from snnet_vitdet.modeling.operating import patch_size_of
from snnet_vitdet.stitching import split_point_name
from snnet_vitdet.text import neutral

BUDGETS = ("max_gflops", "max_latency_ms", "max_memory_mb")
# TorchScript is compared on this number of images.
NUM_IMAGES = 4


def batch_size(text):
    """A number of images, or None for any number."""
    if text == "dynamic":
        return None
    if text.isascii() and text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number of images nor 'dynamic'")


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE")
    parser.add_argument("--weights", metavar="FILE", help="default: the training's last checkpoint")
    parser.add_argument(
        "--stitch",
        metavar="ID|NAME",
        help="a stitch, or an operating point such as FS-3@640/300; default: the large ViT alone",
    )
    for budget in BUDGETS:
        parser.add_argument(f"--{budget.replace('_', '-')}", type=float, metavar="LIMIT")
    parser.add_argument("--by", default="box", help="what decides within budgets: box or mask AP")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="default: export/ in the training's folder, with the stitch's name and .safetensors",
    )
    parser.add_argument("--onnx", action="store_true", help="backbone and pyramid, too")
    parser.add_argument("--torch-export", action="store_true", help="backbone and pyramid, too")
    parser.add_argument("--torchscript", action="store_true", help="the whole detector, too")
    parser.add_argument(
        "--size", type=int, help="longer side in pixels of the images of --onnx and --torch-export"
    )
    parser.add_argument(
        "--batch-size",
        type=batch_size,
        default="1",
        metavar="N|dynamic",
        help="images that the files of --onnx, --torch-export and --torchscript take at once; "
        "dynamic: any number; default: 1",
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="images to trace and compare --torchscript on; default: the config's test images",
    )
    parser.add_argument("--info", metavar="FILE", help="print the description of an exported file")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parser.parse_args()


def images_for(args, config):
    """Images that TorchScript is traced and compared on."""
    if args.images:
        files = image_files(args.images)
    elif os.path.isfile(config.data.test_json):
        data = coco_dicts(config.data.test_json, config.data.test_images, filter_empty=False)
        files = [record["file_name"] for record in data]
    else:
        raise InputError(
            "--torchscript needs images, and those of the config are not there: give --images"
        )
    # An image without objects takes another path through the detector.
    return [*files[:NUM_IMAGES], np.zeros((64, 64, 3), np.uint8)]


def megabytes(size):
    """The size of a file, or a number of bytes, as text."""
    return f"{(os.path.getsize(size) if isinstance(size, str | Path) else size) / 1e6:.1f} MB"


def print_sizes(predictor, info, output):
    """Prints the size of the model before and after the export."""
    state = predictor.model.state_dict().values()
    weights = sum(tensor.numel() * tensor.element_size() for tensor in state)
    whose = f"all {len(predictor.stitches)} stitches" if info.stitch else "the model"
    print(f"{info.name}: {info.gflops:.4g} GFLOPs, {info.params_m:.4g} M parameters")
    source = predictor.source
    print(
        f"before: {megabytes(weights)}, the weights of {whose}, of {megabytes(source)} in {source}"
    )
    # Headers take some kilobytes.
    if os.path.getsize(source) > 1.1 * weights:
        print("        (the rest is the state of the optimizer)")
    print(f"after:  {megabytes(output)} in {output}")
    if info.result is None:
        print("        (without scores: the training has no sweep of this point with this padding)")


def _described(info):
    """What a file says, without the hundreds of numbers of its score curve."""
    content = json.loads(replace(info, curve=None).to_json())
    del content["curve"]
    return json.dumps(content, indent=1, ensure_ascii=False)


def run(args):
    """Writes, compares and prints."""
    if args.info:
        print(neutral(_described(read_export(args.info)), keep="\n"))
        return
    if args.batch_size != 1 and not (args.onnx or args.torch_export or args.torchscript):
        raise InputError(
            "--batch-size is for --onnx, --torch-export and --torchscript; a .safetensors file "
            "runs with any number of images"
        )
    config = load_config(args.config_file, args.opts)
    padding = config.sweep.padding
    if padding == "tight" and args.torchscript:
        raise InputError(
            "--torchscript takes images of any shape and pads them to a square, because tracing "
            "makes the padded shape a constant: leave out sweep.padding=tight"
        )
    if args.batch_size is None and args.torchscript:
        raise InputError(
            "--torchscript takes a fixed number of images, because tracing makes it a constant: "
            "give --batch-size N"
        )
    choices = {name: getattr(args, name) for name in ("stitch", *BUDGETS, "by")}
    predictor = Predictor(config, args.weights, device="cpu", **choices)
    patch_size = patch_size_of(predictor.model)
    if args.size is not None and (args.size < patch_size or args.size % patch_size):
        raise InputError(f"--size must be a multiple of {patch_size} pixels, got {args.size}")
    # FS-3@640/300 is not the name of a file.
    name = predictor.name.replace("/", "-") + ("-tight" if padding == "tight" else "")
    output = Path(args.output or Path(config.train.output_dir, "export", f"{name}.safetensors"))
    if output.suffix != ".safetensors":
        raise InputError(f"--output {output} must end in .safetensors")
    _, operation = split_point_name(predictor.name)
    info = export_stitch(
        *(output, predictor.model, config, predictor.stitch, predictor.class_names, operation)
    )
    print_sizes(predictor, info, output)
    if not (args.onnx or args.torch_export or args.torchscript):
        return
    # The graphs are made from the exported file.
    prepare, model = predictor.prepare, load_exported(output)
    side = args.size or info.image_size
    tokens = tokens_of_image(model, side, info.aspect_ratio)
    shape = tuple(patch_size * length for length in tokens)
    metadata = {
        "point": info.name,
        "image_format": info.image_format,
        "batch_size": str(args.batch_size or "dynamic"),
    }
    for wanted, export, suffix in (
        (args.onnx, export_onnx, ".onnx"),
        (args.torch_export, export_program, ".pt2"),
    ):
        if wanted:
            path = output.with_suffix(suffix)
            of_graph = {**metadata, "image_size": str(side), "padding": padding}
            with operating_at(model, side, None, padding):
                difference = export(model, path, shape, args.batch_size, of_graph)
            batch = args.batch_size or "N"
            print(
                f"{path}: {megabytes(path)}, {batch} x 3 x {shape[0]} x {shape[1]}; largest "
                f"difference {difference:.1e} of the largest feature"
            )
    if args.torchscript:
        path = output.with_suffix(".ts")
        images = [prepare(image)["image"] for image in images_for(args, config)]
        metadata |= {"image_size": str(info.image_size), "padding": padding}
        compared = export_torchscript(model, path, images, args.batch_size, metadata)
        print(f"{path}: {megabytes(path)}; {compared} detections are the same")


def main():
    """Runs the program."""
    with exit_on_input_error():
        run(arguments())


if __name__ == "__main__":
    main()

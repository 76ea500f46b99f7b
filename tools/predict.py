#!/usr/bin/env python
"""Detects objects in images, a folder of images or a video, with a stitch or within a budget.

    python tools/predict.py photo.jpg --config-file output/my/config.yaml --stitch FS-3
    python tools/predict.py a.jpg b.jpg --config-file output/my/config.yaml [key=value ...]
    python tools/predict.py photos/ --config-file output/my/config.yaml --max-gflops 800
    python tools/predict.py film.mp4 --config-file output/my/config.yaml --max-latency-ms 40
    python tools/predict.py photos/ --exported output/my/export/FS-3.safetensors

Writes drawn pictures (for a video, a film of the same name as .mp4) and predictions.json in COCO
format, masks as RLE, to the folder --output; by default to output/predictions, or predictions_2,
_3 … if there are earlier results.
"""

import argparse
import os
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import cv2
import numpy as np
from tqdm import tqdm

from snnet_vitdet.deploy import (
    IMAGE_SUFFIXES,
    CocoPredictions,
    Predictor,
    draw_detections,
    image_files,
    to_rgb,
)
from snnet_vitdet.engine import load_config, set_float32_arithmetic
from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.text import counted

BUDGETS = ("max_gflops", "max_latency_ms", "max_memory_mb")
# Others are written as JPEG, which every program opens.
WRITTEN_AS_THEY_ARE = (".jpg", ".jpeg", ".png")


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="IMAGE …|FOLDER|VIDEO")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="FILE")
    source.add_argument("--exported", metavar="FILE", help="a file of tools/export_stitch.py")
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
        "--threshold",
        default="0.5",
        help="lowest score that is shown (default 0.5); f1 or precision=0.9 for the score that "
        "gives this in the sweep",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--precision", default="float32", choices=("float32", "float16", "bfloat16")
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="default: output/predictions, or the next free _2, _3 …"
    )
    parser.add_argument("--no-pictures", action="store_true", help="predictions.json alone")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    # Overrides come last, as in train_net.py, so options stand between the two positionals.
    args = parser.parse_intermixed_args()
    positionals = [*args.inputs, *args.opts]
    args.opts = [each for each in positionals if "=" in each and not os.path.exists(each)]
    args.inputs = [each for each in positionals if each not in args.opts]
    return args


def files_of(inputs):
    """The images of the command line; None for a video."""
    for path in inputs:
        if not os.path.exists(path):
            raise InputError(f"{path} does not exist")
    if not inputs:
        raise InputError("no image is given: name images, a folder or a video first")
    if len(inputs) == 1 and os.path.isdir(inputs[0]):
        return image_files(inputs[0])
    images = [path for path in inputs if path.lower().endswith(IMAGE_SUFFIXES)]
    if len(inputs) == 1:
        return images or None
    if others := [path for path in inputs if path not in images]:
        raise InputError(f"{others[0]} is no image: give several images, or one folder or video")
    names = [os.path.basename(path) for path in images]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two images are named {twice[0]}, as their pictures would be: rename one")
    return images


def predictor_for(args):
    """The predictor of the command line."""
    try:
        threshold = float(args.threshold)
    except ValueError:
        threshold = args.threshold
    options = dict(score_threshold=threshold, device=args.device, precision=args.precision)
    names = ("stitch", *BUDGETS)
    if not args.exported:
        config = load_config(args.config_file, args.opts)
        set_float32_arithmetic(config.train.tf32)
        options |= {name: getattr(args, name) for name in names}
        return Predictor(config, args.weights, by=args.by, **options)
    given = [name for name in (*names, "weights") if getattr(args, name) is not None]
    given = [f"--{name.replace('_', '-')}" for name in given] + args.opts
    if given:
        raise InputError(
            f"{', '.join(given)} cannot be given with --exported: the file has one stitch, its "
            "weights and its config; give --config-file instead, or export another stitch"
        )
    return Predictor.from_file(args.exported, **options)


def predict_images(predictor, files, output, pictures):
    """Detects in images one by one; unreadable ones are reported and skipped."""
    predictions, skipped = CocoPredictions(predictor.class_names), []
    for file in tqdm(files, unit="image", disable=None):
        name = os.path.basename(file)
        try:
            image = to_rgb(file)
            found = predictor(image)
        except InputError as error:
            line = str(error) if file in str(error) else f"{file}: {error}"
            if len(files) == 1:
                raise InputError(line) from error
            skipped.append(line)
            continue
        predictions.add(name, found)
        if pictures:
            if not name.lower().endswith(WRITTEN_AS_THEY_ARE):
                name += ".jpg"
            # OpenCV returns False and gives no reason.
            if not cv2.imwrite(str(output / name), draw_detections(image, found)[:, :, ::-1]):
                raise InputError(
                    f"cannot write {output / name}: check the folder's permissions and free space"
                )
    for line in skipped:
        print(f"Left out: {line}")
    return predictions


def predict_video(predictor, file, output, pictures):
    """Detects in every frame of a video."""
    video = cv2.VideoCapture(file)
    if not video.isOpened():
        raise InputError(
            f"{file} is neither an image ({', '.join(IMAGE_SUFFIXES)}) nor a video that OpenCV "
            "can open"
        )
    predictions, writer = CocoPredictions(predictor.class_names), None
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    rate = video.get(cv2.CAP_PROP_FPS) or 25.0
    path = output / f"{Path(file).stem}.mp4"
    if pictures and path.exists() and path.samefile(file):
        raise InputError(f"{path} would be overwritten with the result: give another --output")
    frames = tqdm(frames_of(video), total=total if total > 0 else None, unit="frame", disable=None)
    for number, image in enumerate(frames):
        found = predictor(image)
        predictions.add(f"{Path(file).name}#{number}", found)
        if pictures:
            drawn = draw_detections(image, found)
            if writer is None:
                size = (drawn.shape[1], drawn.shape[0])
                writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
                if not writer.isOpened():
                    raise InputError(f"OpenCV cannot write {path}: give --no-pictures")
            writer.write(np.ascontiguousarray(drawn[:, :, ::-1]))
    if not predictions.num_images:
        raise InputError(f"{file} has no frame that OpenCV can read")
    if writer is not None:
        writer.release()
    return predictions


def frames_of(video):
    """The frames of an open video, RGB."""
    while True:
        there, frame = video.read()
        if not there:
            return
        yield np.ascontiguousarray(frame[:, :, ::-1])


def free_folder(folder):
    """The folder, with a number behind its name if there are earlier results."""
    free, number = folder, 1
    while free.is_dir() and any(free.iterdir()):
        number += 1
        free = folder.with_name(f"{folder.name}_{number}")
    return free


def run(args):
    """Detects, draws and writes."""
    files = files_of(args.inputs)
    output = Path(args.output) if args.output else free_folder(Path("output/predictions"))
    if output.exists() and any(output.samefile(Path(file).parent) for file in files or ()):
        raise InputError(f"{output} has the images, which would be overwritten: give --output")
    predictor = predictor_for(args)
    name = predictor.name if predictor.stitch else "a baseline"
    score = f"scores from {predictor.score_threshold:g}"
    print(f"Stitch {name} of {predictor.source}, {score}, on {predictor.device}", flush=True)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {output}: {error.strerror}") from error
    if files is None:
        predictions = predict_video(predictor, args.inputs[0], output, not args.no_pictures)
    else:
        predictions = predict_images(predictor, files, output, not args.no_pictures)
    predictions.write(output / "predictions.json")
    print(
        f"{counted(len(predictions), 'detection', 'detections')} in {output / 'predictions.json'}"
    )


def main():
    """Runs the program."""
    with exit_on_input_error():
        run(arguments())


if __name__ == "__main__":
    main()

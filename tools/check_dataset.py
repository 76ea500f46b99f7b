#!/usr/bin/env python
"""Says everything that is wrong with the data of a config, before a training finds it.

    python tools/check_dataset.py --config-file configs/shapes/mask_rcnn_snnet_nano.py
    python tools/check_dataset.py --config-file F --headers-only [key=value ...]

Reads both annotation files, decodes every image, and checks config, weights and checkpoint as the
start of a training does. Prints all faults, what is handled and worth knowing, and a summary.
Exit status 0: nothing is wrong; 2: something is.
"""

import argparse
import os
import sys
import warnings
from dataclasses import dataclass

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from omegaconf import OmegaConf
from tabulate import tabulate
from tqdm import tqdm

from snnet_vitdet.data import (
    Inspection,
    category_names,
    check_same_categories,
    inspect_coco_json,
)
from snnet_vitdet.data.image_folder import ImageFolder
from snnet_vitdet.data.image_survey import ImageSurvey, inspect_images
from snnet_vitdet.data.notes import annotation_notes, most_objects, shared_images
from snnet_vitdet.data.numbering import id_order
from snnet_vitdet.engine import (
    ClassNames,
    StrictCheckpointer,
    load_config,
    preflight,
    prepare_run,
)
from snnet_vitdet.engine.checkpoint import last_checkpoint
from snnet_vitdet.engine.run_data import BOXES_ALONE
from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.modeling.timm_weights import names_file
from snnet_vitdet.text import neutral

PURPOSES = ("train", "test")
PATHS = ("train_json", "train_images", "test_json", "test_images")


@dataclass
class Part:
    """The data of training or of test."""

    purpose: str
    json_file: str
    image_root: str
    found: Inspection
    survey: ImageSurvey

    def images(self):
        """Path and size of every image that is there."""
        entries = self.found.data["images"] if self.found.data else []
        folder = ImageFolder(self.image_root)
        for image in entries:
            name = image.get("file_name")
            if isinstance(name, str) and name not in self.found.missing:
                size = image.get("width"), image.get("height")
                whole = all(type(side) is int and side > 0 for side in size)
                yield folder.path(name), size if whole else None


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--headers-only",
        action="store_true",
        help="do not decode the images: much faster, and does not find truncated ones",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(os.cpu_count() or 1, 8),
        metavar="N",
        help="processes that read images; 0 for none beside this one",
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parser.parse_args()


def lowest_scale(mapper):
    """The smallest size that a mapper resizes an image to, as a part of data.image_size."""
    # A mapper of one's own may have none, and others.
    nodes = [node for node in mapper.get("augmentations") or [] if OmegaConf.is_dict(node)]
    return min([1.0, *(node.min_scale for node in nodes if node.get("min_scale"))])


def max_aspect(config, purpose):
    """From how long and thin an image on its shorter side is rounded to no pixel."""
    scale = lowest_scale(config.dataloader[purpose].mapper)
    return 2 * config.data.image_size * scale


def read_part(config, purpose, args):
    """Reads annotations and images of training or of test."""
    json_file, image_root = (config.data[f"{purpose}_{key}"] for key in ("json", "images"))
    found = inspect_coco_json(
        json_file, image_root, for_evaluation=purpose == "test", masks=config.data.masks
    )
    part = Part(purpose, json_file, image_root, found, ImageSurvey(max_aspect(config, purpose)))
    images = list(part.images())
    results = inspect_images(images, decode=not args.headers_only, workers=args.workers)
    progress = tqdm(
        results, f"{purpose} images", total=len(images), unit="image", disable=None, file=sys.stderr
    )
    for (path, _), result in zip(images, progress, strict=True):
        part.survey.add(path, result)
    return part


def data_faults(config, parts):
    """All that is wrong with the data, a sentence each."""
    for part in parts:
        yield from part.found.faults
        yield from part.survey.faults(part.json_file)
    if all(part.found.data for part in parts):
        try:
            check_same_categories(*(part.json_file for part in parts))
        except InputError as error:
            yield str(error)
    mapper = config.dataloader.train.mapper
    train = parts[0].found.summary
    masks = mapper.get("use_instance_mask"), mapper.get("instance_mask_format", "polygon")
    if train is not None and train.rle_masks and masks == (True, "polygon"):
        yield (
            f"{train.rle_masks} objects in {train.json_file} have RLE masks, but the mapper takes "
            "polygons: add dataloader.train.mapper.instance_mask_format=bitmask."
        )


def start_fault(config):
    """What the start of a training would refuse besides, if anything."""
    config = config.copy()
    config.data.check = False  # done, and more of it
    resume = bool(last_checkpoint(config.train.output_dir))
    try:
        preflight(config, evaluation=False, resume=resume, num_processes=1)
        prepare_run(config, evaluation=False, resume=resume)
    except InputError as error:
        return str(error)
    return None


def checkpoint_fault(config):
    """Why a training cannot start from its checkpoint, if it cannot.

    This is the last one of the output folder, from which it is resumed, or train.init_checkpoint.
    """
    name, path = "train.init_checkpoint", config.train.init_checkpoint
    last = last_checkpoint(config.train.output_dir)
    if last:
        name, path = "the last checkpoint", os.path.join(config.train.output_dir, last)
    elif not path or not os.path.isfile(path):  # which the start has refused
        return None
    try:
        classes = ClassNames(category_names(config.data.train_json))
        with warnings.catch_warnings():
            # Nothing is loaded: the model has no memory.
            warnings.simplefilter("ignore")
            model = build_on_meta(config.model)
            checkpointer = StrictCheckpointer(model, new_classes=not last, classes=classes)
            if last:
                checkpointer.load(path)
            else:
                checkpointer.load(path, checkpointables=[], averaged=True)
    except InputError as error:
        return f"{name}={path} cannot be used: {error}"
    return None


def untried_weights(config):
    """Says of weights by name that only a training will find out whether it can have them."""
    if config.train.init_checkpoint or last_checkpoint(config.train.output_dir):
        return
    for name, source in config.init.weights.items():
        if source and not names_file(source):
            yield (
                f"init.weights.{name}={source} names weights of timm, which a training downloads; "
                "nothing is downloaded here, so this is not tried"
            )


def notes_of(config, parts):
    """What is handled and worth knowing, a sentence each."""
    for part in parts:
        if part.found.summary is not None:
            yield from annotation_notes(
                part.found, config.data.image_size, for_evaluation=part.purpose == "test"
            )
        yield from part.survey.notes(part.json_file)
    if not config.data.masks:
        yield BOXES_ALONE
    yield from untried_weights(config)
    paths = [{os.path.realpath(path) for path, _ in part.images()} for part in parts]
    yield from shared_images(*paths, *(part.survey.digests for part in parts))


def facts_of(part):
    """Name and value of what is counted, a row each."""
    summary = part.found.summary
    name, most = most_objects(part.found.data)
    yield "annotation file", part.json_file
    yield "images", summary.images
    yield "images without an object", summary.empty_images
    yield "objects", sum(summary.instances.values())
    yield from ((f"  {size} by COCO", count) for size, count in summary.sizes.items())
    yield "most objects on an image", f"{most} ({name})" if most else 0
    yield "crowds", summary.crowds
    need = " (need the mask format bitmask)" if summary.rle_masks else ""
    yield "objects with a mask", summary.masks
    yield "objects with RLE masks", f"{summary.rle_masks}{need}"
    yield "boxes without area", summary.flat_boxes
    by_area = sorted(part.survey.sizes, key=lambda size: size[0] * size[1])
    if by_area:
        for label, place in (("smallest", 0), ("median", (len(by_area) - 1) // 2), ("largest", -1)):
            yield f"{label} image", " x ".join(map(str, by_area[place]))
    modes = ", ".join(f"{count} {mode}" for mode, count in part.survey.modes.most_common())
    yield "modes of images", modes or "none read"


def classes_of(parts):
    """Header and rows: how many objects each class has in each part."""
    summaries = [part.found.summary for part in parts]
    names = {key: name for s in reversed(summaries) for key, name in s.categories.items()}
    rows = [
        (neutral(key), neutral(names[key]), *(s.instances.get(key, "absent") for s in summaries))
        for key in sorted(names, key=id_order)
    ]
    return ["id", "class", *(part.purpose for part in parts)], rows


def print_summary(parts):
    """Prints what the data are; objects with faults are not counted."""
    readable = [part for part in parts if part.found.summary is not None]
    for part in readable:
        print(f"\n{part.purpose.capitalize()} data (what is in order)")
        facts = [(label, neutral(value)) for label, value in facts_of(part)]
        print(tabulate(facts, tablefmt="plain", disable_numparse=True))
    if readable:
        header, rows = classes_of(readable)
        print("\nObjects by class")
        print(tabulate(rows, header))


def print_list(title, sentences):
    """Prints sentences below a title, each once."""
    sentences = list(dict.fromkeys(sentences))
    if sentences:
        print(f"\n{title}")
    for sentence in sentences:
        print(f"- {neutral(sentence)}")


def run(args):
    """Checks and prints; returns the exit status."""
    if args.workers < 0:
        raise InputError(f"--workers {args.workers} must be 0 or more")
    config = load_config(args.config_file, args.opts)
    start = start_fault(config)
    of_start = [start] if start else [checkpoint_fault(config)]
    if missing := [key for key in PATHS if OmegaConf.is_missing(config.data, key)]:
        raise InputError(start or f"the config leaves {missing} to you")
    parts = [read_part(config, purpose, args) for purpose in PURPOSES]
    faults = [fault for fault in (*data_faults(config, parts), *of_start) if fault]
    faults = list(dict.fromkeys(faults))
    print_summary(parts)
    print_list("Notes: handled, and worth knowing", notes_of(config, parts))
    print_list("Faults: to be corrected before a training", faults)
    looked = "looked at by their headers" if args.headers_only else "decoded"
    count = sum(len(list(part.images())) for part in parts)
    verdict = f"kinds of faults: {len(faults)}" if faults else "nothing is wrong"
    print(f"\nImages {looked}: {count}; {verdict}.")
    return 2 if faults else 0


def main():
    """Runs the program."""
    with exit_on_input_error():
        status = run(arguments())
    sys.exit(status)


if __name__ == "__main__":
    main()

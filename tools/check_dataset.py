#!/usr/bin/env python
"""Says everything that is wrong with the data of a config before a training starts.

    python tools/check_dataset.py --config-file configs/shapes/mask_rcnn_snnet_nano.py
    python tools/check_dataset.py --config-file F --headers-only [key=value ...]

Reads both annotation files, decodes every image, and checks config, weights and checkpoint as a
training does at its start. Prints a summary, notes and all faults.
Exit status 0: nothing is wrong; 2: something is.
"""

import argparse
import os
import sys
import warnings

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from omegaconf import OmegaConf
from tabulate import tabulate

from snnet_vitdet.data import category_names, check_same_categories
from snnet_vitdet.data.coco_json import id_order
from snnet_vitdet.data.survey import DatasetSurvey, shared_images
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
from snnet_vitdet.modeling.weights import are_local
from snnet_vitdet.text import neutral

PATHS = ("train_json", "train_images", "test_json", "test_images")


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


def survey(config, purpose, args):
    """Reads annotations and images of training or of test."""
    # A custom mapper may have other augmentations, or none.
    nodes = config.dataloader[purpose].mapper.get("augmentations") or []
    scales = [node.min_scale for node in nodes if OmegaConf.is_dict(node) and node.get("min_scale")]
    found = DatasetSurvey(
        *(config.data[f"{purpose}_{key}"] for key in ("json", "images")),
        for_evaluation=purpose == "test",
        masks=config.data.masks,
        # At this ratio, the shorter side of a resized image is rounded to zero pixels.
        max_aspect=2 * config.data.image_size * min([1.0, *scales]),
    )
    found.read_images(decode=not args.headers_only, workers=args.workers)
    return found


def data_faults(config, train, test):
    """A sentence per kind of fault of the data."""
    yield from train.faults()
    yield from test.faults()
    if train.found.data and test.found.data:
        try:
            check_same_categories(train.json_file, test.json_file)
        except InputError as error:
            yield str(error)
    mapper, summary = config.dataloader.train.mapper, train.found.summary
    masks = mapper.get("use_instance_mask"), mapper.get("instance_mask_format", "polygon")
    if summary is not None and summary.rle_masks and masks == (True, "polygon"):
        yield (
            f"{summary.rle_masks} objects in {train.json_file} have RLE masks, but the mapper "
            "takes polygons: add dataloader.train.mapper.instance_mask_format=bitmask."
        )


def start_fault(config):
    """What else a training would refuse at its start, if anything."""
    config = config.copy()
    config.data.check = False  # done here, and more thoroughly
    resume = bool(last_checkpoint(config.train.output_dir))
    try:
        preflight(config, evaluation=False, resume=resume, num_processes=1)
        prepare_run(config, evaluation=False, resume=resume)
    except InputError as error:
        return str(error)
    return None


def checkpoint_fault(config):
    """Why the last checkpoint of the output folder or train.init_checkpoint cannot be used."""
    name, path = "train.init_checkpoint", config.train.init_checkpoint
    last = last_checkpoint(config.train.output_dir)
    if last:
        name, path = "the last checkpoint", os.path.join(config.train.output_dir, last)
    elif not path or not os.path.isfile(path):  # the start has refused it
        return None
    try:
        classes = ClassNames(category_names(config.data.train_json))
        with warnings.catch_warnings():
            # The model has no memory to load into.
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


def notes_of(config, train, test):
    """A sentence for each oddity that is handled and worth knowing."""
    for part in (train, test):
        yield from part.notes(config.data.image_size)
    if not config.data.masks:
        yield BOXES_ALONE
    if not config.train.init_checkpoint and not last_checkpoint(config.train.output_dir):
        for name, source in config.init.weights.items():
            if source and not are_local(source):
                yield (
                    f"init.weights.{name}={source} names weights of timm, which a training "
                    "downloads; nothing is downloaded here, so this is not tried"
                )
    yield from shared_images(train, test)


def print_summary(parts):
    """Prints what is in order in each part of the data whose annotations can be read."""
    for purpose, part in parts.items():
        print(f"\n{purpose.capitalize()} data (what is in order)")
        facts = [(label, neutral(value)) for label, value in part.facts().items()]
        print(tabulate(facts, tablefmt="plain", disable_numparse=True))
    if parts:
        summaries = [part.found.summary for part in parts.values()]
        names = {key: name for s in reversed(summaries) for key, name in s.categories.items()}
        rows = [
            (
                neutral(key),
                neutral(names[key]),
                *(s.instances.get(key, "absent") for s in summaries),
            )
            for key in sorted(names, key=id_order)
        ]
        print("\nObjects by class")
        print(tabulate(rows, ["id", "class", *parts]))


def print_list(title, sentences):
    """Prints sentences below a title."""
    if sentences:
        print(f"\n{title}", *(f"- {neutral(sentence)}" for sentence in sentences), sep="\n")


def run(args):
    """Checks and prints; returns the exit status."""
    if args.workers < 0:
        raise InputError(f"--workers {args.workers} must be 0 or more")
    config = load_config(args.config_file, args.opts)
    fault = start_fault(config)
    if missing := [key for key in PATHS if OmegaConf.is_missing(config.data, key)]:
        raise InputError(fault or f"the config leaves {missing} to you")
    fault = fault or checkpoint_fault(config)
    parts = train, test = [survey(config, purpose, args) for purpose in ("train", "test")]
    # What is wrong with both is said once.
    faults = list(dict.fromkeys([*data_faults(config, train, test), *filter(None, [fault])]))
    notes = list(dict.fromkeys(notes_of(config, train, test)))
    readable = zip(("train", "test"), parts, strict=True)
    print_summary({purpose: part for purpose, part in readable if part.found.summary})
    print_list("Notes: handled, and worth knowing", notes)
    print_list("Faults: to be corrected before a training", faults)
    looked = "looked at by their headers" if args.headers_only else "decoded"
    count = len(train.images) + len(test.images)
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

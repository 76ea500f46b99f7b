"""The embedded data: generated scenes in COCO format, made once and checked when reused."""

import contextlib
import fcntl
import glob
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import trange

from snnet_vitdet.errors import InputError
from snnet_vitdet.files import read_json

from .scenes import CATEGORIES, available_buckets, draw_scene

__all__ = ["ShapesPaths", "generate_shapes"]

logger = logging.getLogger(__name__)

# Part of the marker: raise it whenever the same seed gives other pictures or annotations.
GENERATOR_VERSION = 3

_MARKER = "generated.json"
_SPLITS = ("train", "test")
_CONTENTS = {_MARKER, *_SPLITS, *(f"{split}.json" for split in _SPLITS)}
_LOWEST = {"num_train": 1, "num_test": 1, "image_size": 64, "seed": 0}
_EMPTY_EVERY = 50  # one image in 50 has no object


@dataclass(frozen=True)
class ShapesPaths:
    """Where the annotation files and image folders of a generated set are."""

    train_json: str
    train_images: str
    test_json: str
    test_images: str


def generate_shapes(
    root: str, num_train: int, num_test: int, image_size: int = 256, seed: int = 0
) -> ShapesPaths:
    """Makes sure that ``root`` holds the generated set with these parameters.

    A whole set of the same parameters is left alone; a damaged or different one is replaced. It
    appears under its name in one step, when it is complete, so several programs may ask for it at
    once.

    Args:
        root: Folder for ``train/``, ``test/``, ``train.json`` and ``test.json``.
        num_train: Number of training images, at least 1.
        num_test: Number of test images, at least 1.
        image_size: Height and width in pixels, at least 64. From 216 on, objects of all of COCO's
            size ranges are drawn, below that only those which fit.
        seed: Not negative. Image i of a split depends on the seed, the split and i alone.

    Raises:
        InputError: A parameter is out of range, or ``root`` holds something else.
    """
    parameters = {
        "version": GENERATOR_VERSION,
        "num_train": num_train,
        "num_test": num_test,
        "image_size": image_size,
        "seed": seed,
    }
    for name, lowest in _LOWEST.items():
        if parameters[name] < lowest:
            raise InputError(
                f"Generated scenes need {name} of at least {lowest}, not {parameters[name]}."
            )
    target = Path(os.path.abspath(root))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent) as locked:
            if locked:
                _remove_leftovers(target)
            problem = _problem(target, parameters)
            if problem is None:
                logger.info("Reusing the generated scenes in %s.", target)
            else:
                logger.info(
                    "Generating %d scenes in %s (%s).", num_train + num_test, target, problem
                )
                _replace_set(target, parameters)
    except OSError as error:
        raise InputError(
            f"Cannot create {target} for the generated scenes ({error.strerror}): choose a folder "
            "that can be written."
        ) from error
    train, test = (str(target / split) for split in _SPLITS)
    return ShapesPaths(f"{train}.json", train, f"{test}.json", test)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Holds a lock that other programs and threads wait for; False where there are no locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Leaves no file behind, and is released when the program is killed. Not every network file
        # system can lock.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Removes what killed programs have left of this set."""
    for what in ("partial", "outdated"):
        for path in target.parent.glob(f"{glob.escape(target.name)}.{what}-*"):
            shutil.rmtree(path, ignore_errors=True)


def _problem(root: Path, parameters: dict) -> str | None:
    """Why the set at ``root`` cannot be used as it is; None if it can."""
    try:
        names = set(os.listdir(root))
    except FileNotFoundError:
        return "not there yet"
    except NotADirectoryError as error:
        raise InputError(
            f"{root} is a file or lies in one, but generated scenes need a folder: choose another."
        ) from error
    if not names:
        return "empty folder"
    # Files of others must never be deleted to make room.
    if _MARKER not in names or names - _CONTENTS:
        foreign = sorted(names - _CONTENTS) or sorted(names)
        raise InputError(
            f"{root} is not a folder of generated scenes alone (it has {', '.join(foreign[:3])}): "
            "choose another folder for them, or move its contents away."
        )
    try:
        marker = read_json(root / _MARKER)
    except (OSError, ValueError):
        marker = None
    if not isinstance(marker, dict):
        return "damaged marker"
    if marker.get("parameters") != parameters:
        return "made with other parameters"
    return None if marker.get("digests") == _digests(root) else "files missing or damaged"


def _digests(root: Path) -> dict[str, str]:
    """One sha256 for each annotation file and each image folder (names and contents)."""
    digests = {}
    for split in _SPLITS:
        annotations, folder = root / f"{split}.json", root / split
        if not annotations.is_file() or not folder.is_dir():
            return {}
        digests[annotations.name] = hashlib.sha256(annotations.read_bytes()).hexdigest()
        images = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            images.update(path.name.encode())
            images.update(hashlib.sha256(path.read_bytes()).digest())
        digests[split] = images.hexdigest()
    return digests


def _replace_set(target: Path, parameters: dict) -> None:
    """Makes the set beside ``target``, then renames it: nobody reads a mixture of two sets."""
    suffix = uuid.uuid4().hex[:8]
    partial, outdated = (
        target.with_name(f"{target.name}.{what}-{suffix}") for what in ("partial", "outdated")
    )
    try:
        for split in _SPLITS:
            (partial / split).mkdir(parents=True)
            coco = _draw_split(partial / split, split, parameters)
            (partial / f"{split}.json").write_text(json.dumps(coco))
        marker = {"parameters": parameters, "digests": _digests(partial)}
        (partial / _MARKER).write_text(json.dumps(marker, indent=2))
        if target.exists():
            target.rename(outdated)
        partial.rename(target)
    finally:
        for folder in (partial, outdated):
            shutil.rmtree(folder, ignore_errors=True)


def _draw_split(folder: Path, split: str, parameters: dict) -> dict:
    """Draws the images of a split, and returns their annotations."""
    coco = {
        "info": {"description": "Generated scenes of shapes", "version": str(GENERATOR_VERSION)},
        "licenses": [],
        "images": [],
        "annotations": [],
        "categories": [
            {"id": number, "name": name, "supercategory": "shape"}
            for number, name in enumerate(CATEGORIES, start=1)
        ],
    }
    size = parameters["image_size"]
    buckets = available_buckets(size)
    for index in trange(parameters[f"num_{split}"], desc=f"{split} scenes", disable=None):
        # The first object walks through all categories and size ranges, so that even a short split
        # has each of them.
        image, objects = draw_scene(
            np.random.default_rng([parameters["seed"], _SPLITS.index(split), index]),
            size,
            category=index % len(CATEGORIES),
            bucket=buckets[(index + index // len(CATEGORIES)) % len(buckets)],
            empty=index % _EMPTY_EVERY == _EMPTY_EVERY // 2,
        )
        entry = {"id": index + 1, "file_name": f"{index + 1:06d}.jpg"}
        Image.fromarray(image).save(folder / entry["file_name"], quality=92)
        coco["images"].append(entry | {"height": size, "width": size})
        for each in objects:
            number = len(coco["annotations"]) + 1
            coco["annotations"].append({"id": number, "image_id": index + 1, **each})
    return coco

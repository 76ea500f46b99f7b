"""The embedded data: generated scenes in COCO format, made once and checked when reused."""

import contextlib
import fcntl
import glob
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

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
_MIN_IMAGE_SIZE = 64
_EMPTY_EVERY = 50  # one image in so many has no object


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

    A set that is there, whole and of the same parameters is left alone; a damaged or different one
    is made anew. It appears under its name in one step, when it is complete, so several programs
    may ask for it at once.

    Args:
        root: folder for ``train/``, ``test/``, ``train.json`` and ``test.json``.
        num_train: number of training images, at least 1.
        num_test: number of test images, at least 1.
        image_size: height and width in pixels; from 216 on, objects of all of COCO's size ranges
            are drawn, below that only those which fit.
        seed: non-negative. Image i of a split depends on the seed, the split and i alone.

    Raises:
        InputError: a parameter is out of range, or ``root`` holds something else.
    """
    parameters = {
        "version": GENERATOR_VERSION,
        "num_train": num_train,
        "num_test": num_test,
        "image_size": image_size,
        "seed": seed,
    }
    for name, lowest in (("num_train", 1), ("num_test", 1), ("image_size", _MIN_IMAGE_SIZE)):
        if parameters[name] < lowest:
            raise InputError(
                f"Generated scenes need {name} of at least {lowest}, not {parameters[name]}."
            )
    if seed < 0:
        raise InputError(f"The seed of the generated scenes must not be negative, but is {seed}.")

    target = Path(os.path.abspath(root))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(target.parent) as alone:
            if alone:
                _remove_leftovers(target)
            _ensure_set(target, parameters)
    except OSError as error:
        raise InputError(
            f"Cannot create {target} for the generated scenes ({error.strerror}): choose a folder "
            "that can be written."
        ) from error
    return _paths(target)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Lets other programs and threads that generate scenes below a folder wait, if it can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Released with the descriptor, also when the program is killed; leaves no file behind. Not
        # every network filesystem can lock.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Of programs that were killed while they made this set."""
    for what in ("partial", "outdated"):
        for path in target.parent.glob(f"{glob.escape(target.name)}.{what}-*"):
            shutil.rmtree(path, ignore_errors=True)


def _ensure_set(target: Path, parameters: dict) -> None:
    problem = _problem(target, parameters)
    if problem is None:
        logger.info("Reusing the generated scenes in %s.", target)
        return
    total = parameters["num_train"] + parameters["num_test"]
    logger.info("Generating %d scenes in %s (%s).", total, target, problem)
    partial, outdated = (
        target.with_name(f"{target.name}.{what}-{uuid.uuid4().hex[:8]}")
        for what in ("partial", "outdated")
    )
    try:
        partial.mkdir()
        _write_set(partial, parameters)
        # A folder is replaced as a whole: nobody reads a mixture of two sets.
        if target.exists():
            target.rename(outdated)
        partial.rename(target)
    finally:
        for folder in (partial, outdated):
            shutil.rmtree(folder, ignore_errors=True)


def _paths(root: Path) -> ShapesPaths:
    train, test = (str(root / split) for split in _SPLITS)
    return ShapesPaths(f"{train}.json", train, f"{test}.json", test)


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
    # What we did not write must never be deleted to make room.
    if _MARKER not in names or names - _CONTENTS:
        foreign = sorted(names - _CONTENTS) or sorted(names)
        raise InputError(
            f"{root} is not a folder of generated scenes alone (it has {', '.join(foreign[:3])}): "
            "choose another folder for them, or move its contents away."
        )
    try:
        marker = read_json(root / _MARKER)
    except (OSError, ValueError):
        return "damaged marker"
    if not isinstance(marker, dict):
        return "damaged marker"
    if marker.get("parameters") != parameters:
        return "made with other parameters"
    if marker.get("digests") != _digests(root):
        return "files missing or damaged"
    return None


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


def _write_set(root: Path, parameters: dict) -> None:
    total = parameters["num_train"] + parameters["num_test"]
    done, start = 0, time.monotonic()
    last_report = start
    for split in _SPLITS:
        (root / split).mkdir()
        coco = _empty_coco()
        for index in range(parameters[f"num_{split}"]):
            _add_image(coco, root / split, split, index, parameters)
            done += 1
            if time.monotonic() - last_report > 2:
                last_report = time.monotonic()
                seconds_left = (last_report - start) / done * (total - done)
                logger.info("Generated %d of %d scenes, %.0f s left.", done, total, seconds_left)
        (root / f"{split}.json").write_text(json.dumps(coco))
    marker = {"parameters": parameters, "digests": _digests(root)}
    (root / _MARKER).write_text(json.dumps(marker, indent=2))
    logger.info("Generated %d scenes in %.1f s.", total, time.monotonic() - start)


def _empty_coco() -> dict:
    return {
        "info": {"description": "Generated scenes of shapes", "version": str(GENERATOR_VERSION)},
        "licenses": [],
        "images": [],
        "annotations": [],
        "categories": [
            {"id": number, "name": name, "supercategory": "shape"}
            for number, name in enumerate(CATEGORIES, start=1)
        ],
    }


def _add_image(coco: dict, folder: Path, split: str, index: int, parameters: dict) -> None:
    size = parameters["image_size"]
    rng = np.random.default_rng([parameters["seed"], _SPLITS.index(split), index])
    buckets = available_buckets(size)
    # The first object walks through all categories and size ranges, so that even a short split has
    # each of them.
    image, objects = draw_scene(
        rng,
        size,
        category=index % len(CATEGORIES),
        bucket=buckets[(index + index // len(CATEGORIES)) % len(buckets)],
        empty=index % _EMPTY_EVERY == _EMPTY_EVERY // 2,
    )
    image_id = index + 1
    file_name = f"{image_id:06d}.jpg"
    Image.fromarray(image).save(folder / file_name, quality=92)
    coco["images"].append({"id": image_id, "file_name": file_name, "height": size, "width": size})
    for item in objects:
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": item.category + 1,
                "segmentation": item.segmentation,
                "area": item.area,
                "bbox": item.bbox,
                "iscrowd": 0,
            }
        )

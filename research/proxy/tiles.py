"""Cuts tiles of 256 pixels out of photographs: ``python -m research.proxy.tiles SOURCE TARGET``.

SOURCE has ``train.json``, ``test.json`` (COCO format, masks as RLE) and ``images/``; so has TARGET.
A tile shows 128 pixels of an image enlarged to 256, as the proxy's ViTs are too coarse for objects
of 17 pixels; an image above 320 pixels is first seen as if it had 256. Each training image gives
two tiles at random places, each test image the one in its middle. An object is left out if less
than 0.3 of it is in the tile.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import cv2
import numpy as np
import pycocotools.mask as mask_util

SIZE = 256
SHOWN = 128
LARGEST = 320
TILES = {"train": 2, "test": 1}
MIN_SHARE, MIN_AREA, MIN_SIDE = 0.3, 12, 4


def cut(source: Path, target: Path) -> None:
    """Writes the tiles of both splits.

    Args:
        source: Folder of the photographs.
        target: Folder of the tiles.
    """
    (target / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split in TILES:
        coco = json.loads((source / f"{split}.json").read_text())
        objects = defaultdict(list)
        for each in coco["annotations"]:
            objects[each["image_id"]].append(each)
        images: list[dict] = []
        annotations: list[dict] = []
        for entry in coco["images"]:
            picture = cv2.imread(str(source / "images" / entry["file_name"]))
            masks = [
                (each["category_id"], mask_util.decode(_rle(each, *picture.shape[:2])))
                for each in objects[entry["id"]]
            ]
            for window in _windows(rng, split, *picture.shape[:2]):
                found = [
                    {"category_id": category, **shape}
                    for category, mask in masks
                    if (shape := _shape(mask, mask[window]))
                ]
                if not found:
                    continue
                name, number = f"{split}{len(images) + 1:05d}.png", len(images) + 1
                tile = cv2.resize(picture[window], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
                cv2.imwrite(str(target / "images" / name), tile)
                images.append({"id": number, "file_name": name, "height": SIZE, "width": SIZE})
                for each in found:
                    annotations.append({"id": len(annotations) + 1, "image_id": number, **each})
        tiles = {
            "images": images,
            "annotations": annotations,
            "categories": coco["categories"],
        }
        (target / f"{split}.json").write_text(json.dumps(tiles))
        print(f"{split}: {len(images)} tiles with {len(annotations)} objects")


def _windows(
    rng: np.random.Generator, split: str, height: int, width: int
) -> list[tuple[slice, slice]]:
    """Rows and columns of the tiles of an image."""
    longest = max(height, width)
    scale = SIZE / longest if longest > LARGEST else 1.0
    side = min(round(SHOWN / scale), height, width)
    windows = []
    for _ in range(TILES[split]):
        if split == "train":
            top, left = (int(rng.integers(0, length - side + 1)) for length in (height, width))
        else:
            top, left = (height - side) // 2, (width - side) // 2
        windows.append((slice(top, top + side), slice(left, left + side)))
    return windows


def _rle(annotation: dict, height: int, width: int) -> dict:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


def _shape(whole: np.ndarray, part: np.ndarray) -> dict | None:
    """Annotation of the part of an object in a tile, enlarged; None if too little is there."""
    if part.sum() < max(MIN_AREA, MIN_SHARE * whole.sum()):
        return None
    mask = cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
    rows, columns = np.nonzero(mask)
    box = [
        *(int(columns.min()), int(rows.min())),
        *(int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1),
    ]
    if min(box[2:]) < MIN_SIDE:
        return None
    rle = mask_util.encode(np.asfortranarray(mask))
    rle["counts"] = rle["counts"].decode()
    return {"bbox": box, "area": int(mask.sum()), "iscrowd": 0, "segmentation": rle}


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(prog="python -m research.proxy.tiles", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    cut(args.source, args.target)


if __name__ == "__main__":
    main()

"""What a sweep on COCO does after its network, with drawn detections: a program for tests.

    python simulated_sweep.py FOLDER draw IMAGES
    python simulated_sweep.py FOLDER sweep STITCHES DETECTIONS SCORED

The first writes annotations of so many images, 7 objects of 80 categories in each as in COCO's
val2017. The second packs and keeps so many detections of so many stitches in every image, then
scores some of the stitches, and prints its memory in bytes: before, and the peaks after packing and
after each score. Masks are some of 600 with rough outlines on 640 x 480, so that their codes are at
least as long as those of photographs' objects.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog

from snnet_vitdet.evaluation import CocoScorer
from snnet_vitdet.evaluation.detections import DetectionStore

HEIGHT, WIDTH = 480, 640
NUM_CATEGORIES, NUM_OBJECTS, NUM_SHAPES = 80, 7, 600


def draw_shapes(rng):
    """Pairs of a box (x, y, width, height) and its mask as RLE; a third each of COCO's sizes."""
    shapes = []
    for _ in range(NUM_SHAPES):
        side = rng.choice([rng.uniform(8, 32), rng.uniform(32, 96), rng.uniform(96, 400)])
        width, height = side * rng.uniform(0.7, 1.4), side * rng.uniform(0.7, 1.1)
        x, y = rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height)
        angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        radii = rng.uniform(0.75, 1, 60)
        xs = x + width / 2 * (1 + radii * np.cos(angles))
        ys = y + height / 2 * (1 + radii * np.sin(angles))
        outline = np.stack([xs, ys], 1).ravel().tolist()
        (rle,) = mask_util.frPyObjects([outline], HEIGHT, WIDTH)
        rle["counts"] = rle["counts"].decode("ascii")
        box = [float(value) for value in np.float32([x, y, width, height])]
        # Annotators click fewer points than a mask has corners.
        clicked = np.stack([xs, ys], 1)[::3].ravel().tolist()
        shapes.append((box, rle, clicked))
    return shapes


def draw_truth(rng, shapes, num_images):
    annotations = []
    for image_id in range(1, num_images + 1):
        for shape in rng.integers(NUM_SHAPES, size=NUM_OBJECTS):
            box, rle, outline = shapes[shape]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(shape) % NUM_CATEGORIES + 1,
                    "bbox": box,
                    "area": float(mask_util.area(rle)),
                    "iscrowd": 0,
                    "segmentation": [outline],
                }
            )
    images = [
        {"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH}
        for i in range(1, num_images + 1)
    ]
    categories = [{"id": i + 1, "name": str(i)} for i in range(NUM_CATEGORIES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def draw_detections(rng, shapes, objects, image_id, count):
    """Half of them objects of the image, as often as it happens."""
    detections = []
    for index in range(count):
        of_the_image = index % 2
        shape = int(rng.choice(objects) if of_the_image else rng.integers(NUM_SHAPES))
        box, rle, _ = shapes[shape]
        detections.append(
            {
                "image_id": image_id,
                "category_id": shape % NUM_CATEGORIES,
                "bbox": box,
                "score": float(rng.random(dtype=np.float32)),
                "segmentation": rle,
            }
        )
    return detections


def prepare(folder, num_images):
    """Draws annotations into a file."""
    rng = np.random.default_rng(0)
    shapes = draw_shapes(rng)
    truth = draw_truth(rng, shapes, num_images)
    (Path(folder) / "truth.json").write_text(json.dumps(truth))
    objects = {}
    indexes = {tuple(box): index for index, (box, *_) in enumerate(shapes)}
    for annotation in truth["annotations"]:
        shape = indexes[tuple(annotation["bbox"])]
        objects.setdefault(annotation["image_id"], []).append(shape)
    (Path(folder) / "drawn.json").write_text(json.dumps([shapes, list(objects.items())]))


def load(folder):
    """The masks, those in every image, and the annotations' name in detectron2's catalogue."""
    MetadataCatalog.get("simulated").set(
        json_file=str(Path(folder) / "truth.json"),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(NUM_CATEGORIES)},
    )
    shapes, objects = json.loads((Path(folder) / "drawn.json").read_text())
    return shapes, dict(objects), "simulated"


def memory(field):
    """Memory of this process in bytes: VmRSS now, VmHWM at its peak.

    getrusage's peak would not do: a process inherits that of the one that has started it.
    """
    (line,) = re.findall(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    return int(line) * 1024


def sweep(folder, num_stitches, num_detections, num_scored):
    rng = np.random.default_rng(1)
    shapes, objects, name = load(folder)
    scorer = CocoScorer(name)
    store = DetectionStore(Path(folder) / "detections")
    store.open({}, range(num_stitches))
    # What it is now: the peak, while annotations were read, could hide what is kept later.
    before = memory("VmRSS")
    for image_id, shapes_here in objects.items():
        for stitch_id in range(num_stitches):
            detections = draw_detections(rng, shapes, shapes_here, image_id, num_detections)
            store.add(stitch_id, detections)
        store.end_batch([image_id])
    store.flush()
    packed = memory("VmHWM")
    on_disk = sum(path.stat().st_size for path in store.folder.iterdir())
    scored = []
    for stitch_id in range(num_scored):
        metrics = scorer.score(store.detections_of(stitch_id))
        assert 1 < metrics["segm_AP"] < 99, metrics
        scored.append(memory("VmHWM"))
    print(json.dumps(dict(before=before, packed=packed, scored=scored, on_disk=on_disk)))


if __name__ == "__main__":
    {"draw": prepare, "sweep": sweep}[sys.argv[2]](sys.argv[1], *map(int, sys.argv[3:]))

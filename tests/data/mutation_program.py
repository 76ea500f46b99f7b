"""Replaces values of a sound COCO file one by one, and uses what the checks let through.

    python tests/data/mutation_program.py FOLDER FIRST_SEED NUM_SEEDS

A program, as what is looked for may end the process. It says which seed it is at, and ends with
status 1 at the first one that ends in anything but a sentence or an ordinary use.
"""

import contextlib
import copy
import io
import json
import logging
import random
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as mask_util

import torch  # isort: skip

from snnet_vitdet.data import (
    CheckedMapper,
    check_coco_json,
    coco_dicts,
    dataset_name,
)
from snnet_vitdet.data.survey import DatasetSurvey
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import CocoScorer, evaluators_of

sys.path.insert(0, str(Path(__file__).parents[1]))
from detection_arrays import as_arrays

WIDTH, HEIGHT = 40, 30
SECONDS = 20  # of one seed, a hundred times what it takes
VALUES = [
    *(None, True, False, "", "5", "\0", "\ud800", "b'", "http://[", -1, 0, 1, 2, 0.5, 7.0),
    *(1e10, -1e10, 1e300, 1e308, -1e308, 10**30, -(10**30), 10**400, 2**31, 2**32, 2**63, 2**64),
    *(float("nan"), float("inf"), float("-inf"), [], {}, [[]], [{}], {"a": []}, [None], [True]),
    *([["5"]], [[1, 2], [3, 4]], [0] * 100_000, ["x"] * 1000, [[1e300] * 6], [[10**400] * 6]),
    *({"size": [HEIGHT, WIDTH], "counts": [10**30]}, {"size": [10**30, 1], "counts": "a"}),
    *({"size": [HEIGHT, WIDTH], "counts": "PPPPPPPPPP0"}, {"counts": None}, "x" * 100_000),
]
# All five deeper levels: JSON that is nested further is not read at all.
VALUES.append([[[[[[1.0]]]]]])


def sound():
    """Content with a polygon, both forms of RLE, and a crowd."""
    square = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    square[5:15, 5:15] = 1
    text = mask_util.encode(square)["counts"].decode()
    runs = [len(run) for run in _runs(square.flatten(order="F"))]
    masks = [
        [[5, 5, 15.0, 5, 15, 15, 5, 15]],
        {"size": [HEIGHT, WIDTH], "counts": text},
        {"size": [HEIGHT, WIDTH], "counts": runs},
        [[5.5, 5, 15.0, 5, 15, 15], [5, 5, 5, 15, 15, 15]],
    ]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)
        ],
        "annotations": [
            {
                "id": k,
                "image_id": 1 + k % 2,
                "category_id": 1 + k % 3 // 2,
                "bbox": [5, 5.0, 10, 10],
                "area": 100.0,
                "iscrowd": int(k == 4),
                "segmentation": masks[k % 4],
            }
            for k in range(6)
        ],
        "categories": [{"id": 1, "name": "nut"}, {"id": 2, "name": "fig"}],
    }


def _runs(values):
    return np.split(values, np.flatnonzero(np.diff(values)) + 1)


def places(node, path=()):
    """Paths of all values of some content."""
    if path:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node)
    if isinstance(node, (dict, list)):
        for key, child in children:
            yield from (
                places(child, (*path, key)) if isinstance(child, (dict, list)) else [(*path, key)]
            )


def mutated(seed):
    """Content with one or two values replaced, and what was done."""
    chosen, content, done = random.Random(seed), sound(), []
    for _ in range(chosen.choice([1, 1, 1, 2])):
        path = chosen.choice(list(places(content)))
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value = copy.deepcopy(chosen.choice(VALUES))
        done.append(f"{'.'.join(map(str, path))} = {repr(value)[:60]}")
    return content, "; ".join(done)


def use(path, folder):
    """All that training and evaluation do with a file; how far it came."""
    survey = DatasetSurvey(path, folder, for_evaluation=True)
    list(survey.notes(64))
    reached = "refused"
    with contextlib.suppress(InputError):
        check_coco_json(path, folder, for_evaluation=False)
        reached = "trained"
        train(path, folder)
    if survey.found.faults:
        for fault in survey.found.faults:
            assert len(fault) < 3000 and "\n" not in fault, fault[:999]
        return reached
    score(path, folder)
    return "scored"


def train(path, folder):
    mapper = CheckedMapper(
        is_train=True,
        augmentations=[
            T.ResizeScale(min_scale=2.0, max_scale=2.0, target_height=64, target_width=64),
            T.FixedSizeCrop(crop_size=[64, 64], pad=False),
        ],
        image_format="RGB",
        use_instance_mask=True,
        recompute_boxes=True,
        instance_mask_format="bitmask",
    )
    for record in coco_dicts(path, folder, filter_empty=True):
        boxes = mapper(record)["instances"].gt_boxes.tensor
        assert torch.isfinite(boxes).all() and len(boxes) <= 6


def score(path, folder):
    """In both ways, of detections that are right where the file was not touched."""
    name = dataset_name(path, folder)
    dicts = coco_dicts(path, folder, filter_empty=False)
    evaluator = evaluators_of(L(COCOEvaluator)(dataset_name=name, use_fast_impl=False))()
    evaluator.reset()
    masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    masks[:, 5:15, 5:15] = True
    for record in dicts:
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_boxes = Boxes(torch.tensor([[5.0, 5, 15, 15]]))
        instances.scores, instances.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
        instances.pred_masks = masks
        evaluator.process([record], [{"instances": instances}])
    # Masks have an evaluator of their own where some objects have none.
    first = getattr(evaluator, "_evaluators", [evaluator])[0]
    found = as_arrays([d for p in first._predictions for d in p["instances"]])
    theirs = evaluator.evaluate()
    ours = CocoScorer(name).score(found)
    for task in ("bbox", "segm"):
        np.testing.assert_allclose(ours[f"{task}_AP"], theirs[task]["AP"], atol=1e-9)


def main(folder, first, number):
    logging.disable(logging.CRITICAL)
    for image in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT)).save(Path(folder, f"{image}.png"))
    counts = dict.fromkeys(("refused", "trained", "scored"), 0)
    for seed in range(first, first + number):
        content, done = mutated(seed)
        path = Path(folder, f"{seed}.json")
        path.write_text(json.dumps(content))
        sys.stderr.write(f"\n{seed}: {done}")
        sys.stderr.flush()
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                counts[use(str(path), folder)] += 1
        except Exception:
            sys.stderr.write(f"\n{traceback.format_exc()}")
            sys.exit(1)
        finally:
            signal.alarm(0)
            path.unlink()
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

"""Scores four operating points in several processes, and prints what it is given.

    python tests/evaluation/scoring_program.py FOLDER CASE NUM_PROCESSES

A program, as other tests have loaded hotcoco: :func:`.score_points` then stays in one process.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import CocoScorer
from snnet_vitdet.evaluation.scoring_pool import score_points

IMAGES = (1, 2, 3)
BOX = {"bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0, "category_id": 1}


class Store:
    """Finds the objects of the first image in point 1, of the first two in point 2, and so on."""

    def __init__(self, folder, case):
        self.folder, self.case = folder, case

    def arrays_of(self, point):
        Path(self.folder, f"{os.getpid()}.pid").touch()
        if self.case == "error" and point == "2":
            raise InputError("the disk is full")
        if self.case == "killed" and point == "2":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.case == "waiting":
            time.sleep(600)
        x = np.where(np.array(IMAGES) <= int(point), 10, 60)
        return {
            "image_ids": np.array(IMAGES),
            "classes": np.zeros(3, dtype=np.int32),
            "boxes": np.stack([x, x, *np.full((2, 3), 20)], axis=1).astype(np.float32),
            "scores": np.array([0.9, 0.8, 0.7], dtype=np.float32),
            "sizes": np.zeros((0, 2), dtype=np.int32),
            "lengths": np.zeros(0, dtype=np.int64),
            "rles": np.zeros(0, dtype=np.uint8),
        }


def main(folder, case, workers):
    path = Path(folder, "truth.json")
    images = [{"id": n, "file_name": f"{n}.png", "height": 90, "width": 90} for n in IMAGES]
    truth = {
        "images": images,
        "annotations": [{**BOX, "id": n, "image_id": n} for n in IMAGES],
        "categories": [{"id": 1, "name": "box"}],
    }
    path.write_text(json.dumps(truth))
    MetadataCatalog.get("boxes").set(json_file=str(path), thing_dataset_id_to_contiguous_id={1: 0})
    store = Store(folder, case)
    try:
        for metrics, curve in score_points(CocoScorer("boxes"), store, "0123", None, workers):
            print(curve.name, round(metrics["bbox_AP50"]), curve.matched[0], flush=True)
    except InputError as error:
        print(error)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

"""Predicts in a large image and prints what it took over the loaded model, in bytes.

    python predict_program.py IMAGE THRESHOLD MAP

The images of samples have one annotation. For Linux.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.structures import BoxMode

from snnet_vitdet import Predictor
from snnet_vitdet.deploy import CocoPredictions, draw_detections, sample_detections, to_rgb
from snnet_vitdet.engine import load_config

CONFIG = Path(__file__).parents[2] / "configs/custom/mask_rcnn_snnet_coco_json.py"
OVERRIDES = [
    "data.train_json=none",
    "data.test_json=none",
    "data.image_size=128",
    "model.roi_heads.num_classes=3",
    "model.roi_heads.box_predictor.test_score_thresh=0.0",
    "model.roi_heads.box_predictor.test_topk_per_image=20",
]


def memory(key):
    """A row of the process's own status, in bytes."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(row.split()[1]) for row in rows if row.startswith(key))


def detect(predictor, path):
    """A prediction alone."""
    return len(predictor(path))


def write(predictor, path):
    """What tools/predict.py does with an image."""
    image = to_rgb(path)
    found = predictor(image)
    predictions = CocoPredictions(predictor.class_names)
    predictions.add(os.path.basename(path), found)
    draw_detections(image, found)
    return len(predictions)


def show(predictor, path):
    """What a report does with an image."""
    height, width = to_rgb(path).shape[:2]
    annotation = {
        "bbox": [0, 0, width / 2, height / 2],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": [[0, 0, width / 2, 0, width / 2, height / 2]],
    }
    record = {"file_name": path, "annotations": [annotation] * 20}
    rows = [
        {"stitch_id": i, "name": str(i), "kind": "FS", "gflops": 1.0, "bbox_AP": 1.0}
        for i in range(3)
    ]
    samples = sample_detections(predictor, rows, [record], predictor.class_names)
    return len(samples.rows[0].pictures)


def main(path, threshold, what):
    """Predicts in a small image first: what a process loads once does not count."""
    torch.manual_seed(0)
    config = load_config(str(CONFIG), OVERRIDES)
    predictor = Predictor.from_model(
        instantiate(config.model),
        ["a", "b", "c"],
        config.dataloader.test.mapper,
        score_threshold=float(threshold),
        device="cpu",
    )
    small = np.zeros((300, 400, 3), np.uint8)
    draw_detections(small, predictor(small))
    Path("/proc/self/clear_refs").write_text("5")  # from now on, a new peak
    before = memory("VmRSS")
    count = {"detect": detect, "write": write, "show": show}[what](predictor, path)
    print(count, memory("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])

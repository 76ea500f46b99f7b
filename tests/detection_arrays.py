"""Detections as the scorer takes them and as COCO's programs take them."""

import numpy as np

from snnet_vitdet.evaluation.detections import unpacked
from snnet_vitdet.evaluation.one_pass import as_detections


def as_arrays(detections):
    """The arrays of DetectionStore.arrays_of, with ids of any kind."""
    rles = [d["segmentation"] for d in detections if "segmentation" in d]
    counts = [rle["counts"].encode() for rle in rles]
    return {
        "image_ids": np.array([d["image_id"] for d in detections], dtype=object),
        "classes": np.array([d["category_id"] for d in detections], dtype=np.int64),
        "boxes": np.array([d["bbox"] for d in detections]).reshape(-1, 4),
        "scores": np.array([d["score"] for d in detections]),
        "sizes": np.array([rle["size"] for rle in rles]).reshape(-1, 2),
        "lengths": np.array([len(each) for each in counts], dtype=np.int64),
        "rles": np.frombuffer(b"".join(counts), dtype=np.uint8),
    }


def records_of(found, image_id):
    """What ``detect`` yields of an image, as instances_to_coco_json makes it."""
    ((_, arrays),) = as_detections(found, image_id, ["a point"]).packed()
    return list(unpacked(arrays))

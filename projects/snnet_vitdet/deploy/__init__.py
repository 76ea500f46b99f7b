"""From a swept model to a detector in use: choose, predict, export."""

from .coco_output import CocoPredictions
from .drawing import draw_detections
from .images import IMAGE_SUFFIXES, ImageLike, image_files, to_rgb
from .latency import measure_stitches
from .predictor import Predictor
from .table import LATENCY_FILE, StitchEntry, StitchTable

__all__ = [
    "IMAGE_SUFFIXES",
    "LATENCY_FILE",
    "CocoPredictions",
    "ImageLike",
    "Predictor",
    "StitchEntry",
    "StitchTable",
    "draw_detections",
    "image_files",
    "measure_stitches",
    "to_rgb",
]

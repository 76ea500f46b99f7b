"""From a swept model to a detector in use: choose, predict, export."""

from .drawing import draw_detections
from .images import ImageLike, image_files, to_rgb
from .latency import measure_stitches
from .predictor import Predictor
from .table import LATENCY_FILE, StitchEntry, StitchTable

__all__ = [
    "LATENCY_FILE",
    "ImageLike",
    "Predictor",
    "StitchEntry",
    "StitchTable",
    "draw_detections",
    "image_files",
    "measure_stitches",
    "to_rgb",
]

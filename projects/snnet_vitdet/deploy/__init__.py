"""From a swept model to a detector in use: choose, predict, export."""

from .coco_output import CocoPredictions
from .drawing import draw_detections
from .export_checks import PixelsToPyramid
from .export_file import export_stitch, load_exported, read_export
from .export_graphs import export_onnx, export_program, export_torchscript
from .export_info import ExportInfo
from .images import IMAGE_SUFFIXES, ImageLike, image_files, to_rgb
from .instances import ClassNames, Detections
from .latency import measure_stitches
from .masks import PastedMasks
from .predictor import Predictor
from .samples import sample_detections, stitches_to_show
from .sweep_report import REPORT_FILE, write_sweep_report

__all__ = [
    "IMAGE_SUFFIXES",
    "REPORT_FILE",
    "ClassNames",
    "CocoPredictions",
    "Detections",
    "ExportInfo",
    "ImageLike",
    "PastedMasks",
    "PixelsToPyramid",
    "Predictor",
    "draw_detections",
    "export_onnx",
    "export_program",
    "export_stitch",
    "export_torchscript",
    "image_files",
    "load_exported",
    "measure_stitches",
    "sample_detections",
    "stitches_to_show",
    "read_export",
    "to_rgb",
    "write_sweep_report",
]

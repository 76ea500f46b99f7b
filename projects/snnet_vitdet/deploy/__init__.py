"""From a swept model to a detector in use: choose, predict, export."""

from .export_file import ExportInfo, export_stitch, exported_table, load_exported, read_export
from .export_graphs import PixelsToPyramid, export_onnx, export_program, export_torchscript
from .instances import ClassNames, CocoPredictions, Detections, PastedMasks
from .latency import measure_points
from .loading import LoadedDetector, resizing
from .pictures import IMAGE_SUFFIXES, ImageLike, draw_detections, image_files, to_rgb
from .predictor import Predictor
from .sweep_report import (
    REPORT_FILE,
    sample_detections,
    stitches_to_show,
    write_sweep_report,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "REPORT_FILE",
    "ClassNames",
    "CocoPredictions",
    "Detections",
    "ExportInfo",
    "ImageLike",
    "LoadedDetector",
    "PastedMasks",
    "PixelsToPyramid",
    "Predictor",
    "draw_detections",
    "export_onnx",
    "export_program",
    "export_stitch",
    "export_torchscript",
    "exported_table",
    "image_files",
    "load_exported",
    "measure_points",
    "sample_detections",
    "stitches_to_show",
    "read_export",
    "resizing",
    "to_rgb",
    "write_sweep_report",
]

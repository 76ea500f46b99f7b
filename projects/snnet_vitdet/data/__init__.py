"""COCO-format data by path, the generated scenes, checks and the training loader."""

from .checks import DatasetSummary, check_coco_json, check_same_categories
from .coco_json import category_names, coco_dicts, dataset_name, num_categories
from .loader import TrainLoader, build_train_loader
from .shapes import ShapesPaths, generate_shapes

__all__ = [
    "DatasetSummary",
    "ShapesPaths",
    "TrainLoader",
    "build_train_loader",
    "category_names",
    "check_coco_json",
    "check_same_categories",
    "coco_dicts",
    "dataset_name",
    "generate_shapes",
    "num_categories",
]

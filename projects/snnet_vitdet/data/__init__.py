"""COCO-format data by path: checks, loaders and the generated scenes."""

from .checks import DatasetSummary, Inspection, check_coco_json, check_same_categories
from .coco_json import category_names, has_masks, num_categories
from .datasets import coco_dicts, dataset_name
from .loader import EvaluationLoader, TrainLoader, build_evaluation_loader, build_train_loader
from .mapper import CheckedMapper
from .shapes import ShapesPaths, generate_shapes

__all__ = [
    "CheckedMapper",
    "DatasetSummary",
    "EvaluationLoader",
    "Inspection",
    "ShapesPaths",
    "TrainLoader",
    "build_evaluation_loader",
    "build_train_loader",
    "category_names",
    "check_coco_json",
    "check_same_categories",
    "coco_dicts",
    "dataset_name",
    "generate_shapes",
    "has_masks",
    "num_categories",
]

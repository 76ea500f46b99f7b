"""COCO-format data by path, the generated scenes, checks and the loaders."""

from .checks import Inspection, check_coco_json, check_same_categories, inspect_coco_json
from .coco_json import category_names, coco_dicts, dataset_name, has_masks, num_categories
from .evaluation_loader import EvaluationLoader, build_evaluation_loader
from .loader import TrainLoader, build_train_loader
from .mapper import CheckedMapper
from .shapes import ShapesPaths, generate_shapes
from .summary import DatasetSummary

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
    "inspect_coco_json",
    "num_categories",
]

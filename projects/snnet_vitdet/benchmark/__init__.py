"""How fast the detectors are and how much memory they take, side by side with detectron2's own."""

from .cases import Case, block_cases, inference_cases, sweep_cases, training_cases
from .config import load_without_data
from .measuring import Measurement, measure
from .processes import ProcessesMeasurement, measure_processes

__all__ = [
    "Case",
    "Measurement",
    "ProcessesMeasurement",
    "block_cases",
    "inference_cases",
    "load_without_data",
    "measure",
    "measure_processes",
    "sweep_cases",
    "training_cases",
]

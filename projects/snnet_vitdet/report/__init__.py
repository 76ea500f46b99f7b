"""Pictures and pages made from the results of sweeps."""

from .page import SampleColumn, SamplePicture, SampleRow, Samples, report_html, write_report
from .plots import drawing, plot_comparison, plot_pareto
from .training_curve import TrainingCurve, read_training

__all__ = [
    "SampleColumn",
    "SamplePicture",
    "SampleRow",
    "Samples",
    "TrainingCurve",
    "drawing",
    "plot_comparison",
    "plot_pareto",
    "read_training",
    "report_html",
    "write_report",
]

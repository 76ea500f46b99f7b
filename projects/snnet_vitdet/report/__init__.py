"""Pictures and pages made from the results of sweeps."""

from .comparison_plot import plot_comparison
from .drawing import drawing
from .page import SampleColumn, SamplePicture, SampleRow, Samples, report_html, write_report
from .pareto_plot import plot_pareto
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

"""Pictures made from results."""

from .benchmark_plot import plot_benchmark
from .comparison_plot import plot_comparison
from .pareto_plot import plot_pareto

__all__ = ["plot_benchmark", "plot_comparison", "plot_pareto"]

"""Pictures made from results."""

from .benchmark_plot import plot_benchmark
from .pareto_plot import plot_pareto

__all__ = ["plot_benchmark", "plot_pareto"]

"""Pictures made from results."""

from .pareto_plot import plot_pareto

__all__ = ["plot_pareto"]

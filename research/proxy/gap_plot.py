"""The picture of the study: how far the small end of each variant is from the small ViT alone."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .table import StudyTable

__all__ = ["gap_figure"]

# The highest cost, relative to the paper's recipe, of a variant that may become the default.
_MAX_COST = 1.3
# Okabe and Ito's palette.
_CHEAP, _EXPENSIVE, _INK = "#0072B2", "#D55E00", "#333333"


def gap_figure(table: StudyTable) -> Figure:
    """Draws a row for each variant, the best on top: a dot for each seed, and mean and error."""
    runs = [run for run in table.runs if table.results(run, "small_gap")]
    runs.sort(key=lambda run: table.mean(run, "small_gap")[0], reverse=True)
    figure = Figure((8, 1.3 + 0.3 * len(runs)), dpi=160, layout="constrained")
    axes = figure.subplots()
    for row, run in enumerate(runs):
        colour = _EXPENSIVE if table.times(run) > _MAX_COST else _CHEAP
        gaps = list(table.results(run, "small_gap").values())
        mean, error = table.mean(run, "small_gap")
        axes.scatter(gaps, [row] * len(gaps), s=14, color=colour, alpha=0.4, zorder=2)
        axes.errorbar(
            mean, row, xerr=error, fmt="o", markersize=6, color=colour, capsize=3, zorder=3
        )
    axes.axvline(0.0, color=_INK, linewidth=1.2, zorder=1)
    axes.set_yticks(range(len(runs)), [f"{run}  ({table.times(run):.2f}×)" for run in runs])
    axes.invert_yaxis()
    axes.set_xlabel("box AP of the small end less that of the small ViT alone", color=_INK)
    axes.tick_params(labelsize=10, colors=_INK)
    axes.grid(axis="x", color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=_CHEAP, marker="o", label=f"training costs at most {_MAX_COST:g}×"),
        Line2D([], [], color=_EXPENSIVE, marker="o", label="more"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=10, frameon=False)
    return figure

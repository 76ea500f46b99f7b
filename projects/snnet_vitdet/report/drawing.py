"""What all pictures share: their style, their PNG files, and what happens if drawing fails."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import write_atomically

__all__ = ["INK", "drawing", "new_figure", "style_axes", "write_png"]

INK = "#333333"
_DPI = 160


def new_figure(width: float, height: float) -> Figure:
    """An empty figure with an Agg canvas; pyplot and its global state are not used.

    Args:
        width: Width in inches, of 160 pixels each.
        height: Height in inches.
    """
    figure = Figure((width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Gives a plot of scores over costs its labels, ticks and grid."""
    axes.set_xlabel(x_label, fontsize=11, color=INK)
    axes.set_ylabel(y_label, fontsize=11, color=INK)
    axes.tick_params(labelsize=10, colors=INK)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.grid(color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def write_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as a PNG file, which is replaced as a whole or not at all.

    Raises:
        InputError: If the file cannot be written.
    """
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_DPI)
    write_atomically(Path(path), png.getvalue())


@contextmanager
def drawing(what: str) -> Iterator[None]:
    """Turns any failure to make a picture or a page into an InputError.

    Drawing must not end a program whose results are complete.

    Args:
        what: The picture or page, such as the path of its file.

    Raises:
        InputError: If anything fails or calls ``sys.exit``. Ctrl-C still interrupts.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # from any library that draws
        raise InputError(
            f"{what} cannot be made ({type(error).__name__}: {first_line(error)}); the results "
            "are not touched by it"
        ) from error

"""The answers to a visitor's wishes, without the page itself."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from snnet_vitdet.deploy import Detections, draw_detections
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.results import SCORES, has_value
from snnet_vitdet.report.kinds import kind_label
from snnet_vitdet.text import escaped

from .choices import BUDGETS, Choices
from .plot import amount, plot_svg
from .uploads import MAX_SIDE, open_picture

__all__ = ["BY_NAME", "F1", "Answers", "Wish", "message"]

BY_NAME = "name"
"""The value of ``Wish.budget`` for a stitch that is chosen by name."""

F1 = "f1"
"""The value of ``Wish.threshold`` for the score of the stitch's largest F1 in the sweep."""

_MAX_ROWS = 50
# Smaller pictures are enlarged, so that names fit in.
_MIN_SIDE = 448


@dataclass(frozen=True)
class Wish:
    """The state of a visitor's controls.

    Attributes:
        budget: One of ``BUDGETS``, or ``BY_NAME``.
        limit: Limit of the budget.
        name: Name of the stitch for ``BY_NAME``.
        by: One of ``SCORES``.
        threshold: ``F1``, or anything else for ``min_score``.
        min_score: Objects of lower scores are not shown.
    """

    budget: str
    limit: float
    name: str
    by: str
    threshold: str
    min_score: float


class Answers:
    """Turns wishes into choices, plots and detections."""

    def __init__(
        self, predict: Callable[[np.ndarray, str], Detections], choices: Choices, max_pixels: int
    ) -> None:
        """
        Args:
            predict: Takes an image, (H, W, 3), RGB, uint8, and the name of a point; returns all
                detections.
            choices: The points to choose from.
            max_pixels: Largest number of pixels of an uploaded picture.
        """
        self.choices = choices
        self._predict, self._max_pixels = predict, max_pixels
        self._one_picture = threading.Lock()

    def warm_up(self) -> None:
        """Runs a stitch once: the first run of a process is slower than all others."""
        self._predict(np.full((64, 64, 3), 128, dtype=np.uint8), next(iter(self.choices.rows)))

    def chosen(self, wish: Wish) -> str:
        """Name of the point that a visitor wants.

        Raises:
            InputError: If there is none within the budget, or none of this name.
        """
        if wish.budget != BY_NAME:
            return self.choices.within(wish.budget, wish.limit, wish.by)
        if wish.name not in self.choices.rows:
            raise InputError(f"The model has no stitch {wish.name!r}.")
        return wish.name

    def preview(self, wish: Wish) -> str:
        """The chosen stitch and, if there are several, the plot, as HTML; runs no model."""
        budget = "gflops" if wish.budget == BY_NAME else wish.budget
        scored = bool(self.choices.scores)
        try:
            chosen = self.chosen(wish)
            head = self._facts(chosen)
        except InputError as error:
            chosen, head = None, message(str(error))
        if not self.choices.is_choice:
            return head
        return head + plot_svg(
            self.choices.points(budget, wish.by),
            self.axis(budget),
            f"{wish.by} AP" if scored else "parameters (M)",
            chosen,
            None if wish.budget == BY_NAME else wish.limit,
            frontier=scored,
        )

    def axis(self, budget: str) -> str:
        """Name of a budget, with the device it was measured on."""
        name, unit = BUDGETS[budget]
        if not unit:
            return name
        device = self.choices.table.device
        return f"{name} ({unit}{f', {device}' if device else ''})"

    def detect(self, path: str, wish: Wish) -> tuple[np.ndarray, str]:
        """Detects objects in a file with the stitch that a visitor wants.

        Returns:
            The picture with boxes, masks, names and scores drawn in, (H, W, 3), RGB, uint8; and
            what was found as HTML.

        Raises:
            InputError: If the file is no image, or there is no such stitch or score.
        """
        name = self.chosen(wish)
        by_f1 = wish.threshold == F1
        min_score = self.choices.best_f1(name) if by_f1 else wish.min_score
        # One at a time: a decoded picture takes many times its file's size, and matplotlib, which
        # draws, is not made for several threads.
        with self._one_picture:
            image = open_picture(path, self._max_pixels)
            start = time.perf_counter()
            found = self._predict(image, name)
            milliseconds = 1e3 * (time.perf_counter() - start)
            found = found[found.scores >= min_score]
            short, long = sorted(image.shape[:2])
            min_side = min(_MIN_SIDE, MAX_SIDE * short // long)
            picture = draw_detections(image, found, min_side=min_side)
        count = f"{len(found)} object{'' if len(found) == 1 else 's'}"
        because = ", this stitch's best F1" if by_f1 else ""
        line = (
            f"<p><strong>{escaped(name)}</strong> found <strong>{count}</strong> with a score of "
            f"at least {min_score:.2f}{because}, in <strong>{milliseconds:.0f} ms</strong>.</p>"
        )
        pairs = zip(found.class_names.tolist(), found.scores.tolist(), strict=True)
        objects = sorted(pairs, key=lambda pair: -pair[1])
        return picture, f'<div role="status">{line}{_table(objects)}</div>'

    def _facts(self, name: str) -> str:
        row = self.choices.rows[name]
        facts = [
            ("GFLOPs", amount(row["gflops"])),
            ("parameters", f"{amount(row['params_m'])} M"),
        ]
        for score in self.choices.scores:
            ap = f"{row[SCORES[score]]:.1f}" if has_value(row, SCORES[score]) else "not scored"
            facts.append((f"{score} AP", ap))
        for budget, (word, unit) in BUDGETS.items():
            if unit and has_value(row, budget):
                facts.append((f"{word}, measured", f"{amount(row[budget])} {unit}"))
        cells = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts)
        return (
            f'<div class="snnet-facts"><p><strong>{escaped(row["name"])}</strong> '
            f"{escaped(kind_label(row['kind']))}</p><dl>{cells}</dl></div>"
        )


def message(text: str, error: bool = True) -> str:
    """A sentence for a visitor, as HTML."""
    kind, role = ("error", "alert") if error else ("hint", "status")
    return f'<p class="snnet-{kind}" role="{role}">{escaped(text)}</p>'


def _table(objects: Sequence[tuple[str, float]]) -> str:
    if not objects:
        return ""
    rows = "".join(
        f"<tr><td>{escaped(name)}</td><td>{score:.2f}</td></tr>"
        for name, score in objects[:_MAX_ROWS]
    )
    more = len(objects) - _MAX_ROWS
    return (
        '<div class="snnet-objects" tabindex="0"><table>'
        "<thead><tr><th>class</th><th>score</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{f'<p>and {more} more</p>' if more > 0 else ''}</div>"
    )

"""What the page answers to its visitors, without the page itself."""

import threading
from dataclasses import dataclass

import numpy as np

from snnet_vitdet.errors import InputError
from snnet_vitdet.report.kinds import kind_label
from snnet_vitdet.text import escaped

from .choices import BUDGETS, Choices
from .detector import SharedDetector
from .pictures import open_picture
from .plot import amount, plot_svg

__all__ = ["BY_NAME", "F1", "Answers", "Wish", "message"]

BY_NAME = "name"
"""Instead of a budget: the stitch itself."""

F1 = "f1"
"""Instead of a score: that of the stitch's largest F1 in the sweep."""

_MAX_ROWS = 50


@dataclass(frozen=True)
class Wish:
    """The state of a visitor's controls.

    Attributes:
        budget: One of ``BUDGETS``, or ``BY_NAME``.
        limit: Of the budget.
        name: The stitch for ``BY_NAME``.
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

    def __init__(self, detector: SharedDetector, choices: Choices, max_pixels: int) -> None:
        """
        Args:
            detector: The model.
            choices: What it offers.
            max_pixels: Of an uploaded picture.
        """
        self._detector, self.choices, self._max_pixels = detector, choices, max_pixels
        self._one_picture = threading.Lock()

    def stitch_id(self, wish: Wish) -> int:
        """The stitch a visitor wants.

        Raises:
            InputError: If there is none within the budget, or of this name.
        """
        if wish.budget != BY_NAME:
            return self.choices.within(wish.budget, wish.limit, wish.by)
        ids = [i for i, stitch in self.choices.stitches.items() if stitch.name == wish.name]
        if not ids:
            raise InputError(f"The model has no stitch {wish.name!r}.")
        return ids[0]

    def preview(self, wish: Wish) -> str:
        """The chosen stitch and the plot, where there is a choice, as HTML; runs no model."""
        budget = "gflops" if wish.budget == BY_NAME else wish.budget
        scored = bool(self.choices.scores)
        try:
            chosen = self.stitch_id(wish)
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
        """A budget in words, with the device it was measured on."""
        name, unit = BUDGETS[budget]
        if not unit:
            return name
        device = self.choices.table.device
        return f"{name} ({unit}{f', {device}' if device else ''})"

    def detect(self, path: str, wish: Wish) -> tuple[np.ndarray, str]:
        """Detects in a file at the stitch that is wanted.

        Returns:
            The drawn picture, and what there is to say about it as HTML.

        Raises:
            InputError: If the file is no image, or there is no stitch or score as is wanted.
        """
        stitch_id = self.stitch_id(wish)
        min_score = self._min_score(stitch_id, wish)
        # A picture takes many times its file's size: one at a time, however many are asked about.
        with self._one_picture:
            image = open_picture(path, self._max_pixels)
            found = self._detector.detect(image, stitch_id, min_score)
        count = len(found.objects)
        what = f"{count} object{'' if count == 1 else 's'}"
        because = ", this stitch's best F1" if wish.threshold == F1 else ""
        line = (
            f"<p><strong>{escaped(self.choices.stitches[stitch_id].name)}</strong> found "
            f"<strong>{what}</strong> with a score of at least {min_score:.2f}{because}, in "
            f"<strong>{found.milliseconds:.0f} ms</strong>.</p>"
        )
        return found.picture, f'<div role="status">{line}{_table(found.objects)}</div>'

    def _min_score(self, stitch_id: int, wish: Wish) -> float:
        if wish.threshold != F1:
            return wish.min_score
        return self.choices.best_f1(stitch_id)

    def _facts(self, stitch_id: int) -> str:
        stitch = self.choices.stitches[stitch_id]
        facts = [
            ("GFLOPs", amount(self.choices.cost(stitch_id, "gflops"))),
            ("parameters", f"{amount(self.choices.params_m(stitch_id))} M"),
        ]
        for score in self.choices.scores:
            ap = self.choices.score(stitch_id, score)
            facts.append((f"{score} AP", "not scored" if ap is None else f"{ap:.1f}"))
        for budget, (name, unit) in BUDGETS.items():
            value = self.choices.cost(stitch_id, budget)
            if unit and value is not None:
                facts.append((f"{name}, measured", f"{amount(value)} {unit}"))
        cells = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts)
        return (
            f'<div class="snnet-facts"><p><strong>{escaped(stitch.name)}</strong> '
            f"{escaped(kind_label(stitch.kind))}</p><dl>{cells}</dl></div>"
        )


def message(text: str, error: bool = True) -> str:
    """A sentence for a visitor, as HTML."""
    kind = "error" if error else "hint"
    role = "alert" if error else "status"
    return f'<p class="snnet-{kind}" role="{role}">{escaped(text)}</p>'


def _table(objects) -> str:
    if not objects:
        return ""
    rows = "".join(
        f"<tr><td>{escaped(name)}</td><td>{score:.2f}</td></tr>"
        for name, score in objects[:_MAX_ROWS]
    )
    more = len(objects) - _MAX_ROWS
    note = f"<p>and {more} more</p>" if more > 0 else ""
    return (
        '<div class="snnet-objects" tabindex="0"><table>'
        "<thead><tr><th>class</th><th>score</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{note}</div>"
    )

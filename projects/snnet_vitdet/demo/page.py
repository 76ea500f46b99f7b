"""The page: controls on one side, what was found on the other, below each other on a phone."""

from abc import ABCMeta
from collections.abc import Sequence

import gradio as gr

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.results import SCORES
from snnet_vitdet.text import escaped, neutral

from .answers import BY_NAME, F1, Answers, Wish, message
from .choices import BUDGETS
from .style import CSS, RELEASE_BY_KEYBOARD, THEME
from .uploads import take_uploads_alone

__all__ = ["LOOK", "build_page"]

LOOK = {"theme": THEME, "css": CSS, "js": RELEASE_BY_KEYBOARD}
"""Arguments of gradio's ``launch``."""

_FIXED = "fixed"
_UNSCORED = (
    "There is **no sweep**: nothing says which stitch detects better. Within a budget, the stitch "
    "that computes the most is taken. `train_net.py --eval-only` scores them."
)
_HINT = message("Drop an image.", error=False)
# Visitors' pictures are deleted after an hour, looked for every ten minutes.
_DELETE_CACHE = (600, 3600)


def _path_of_upload(self, payload):
    """The path of what a visitor uploaded.

    gradio itself would open whatever Pillow opens, however large, and answer with an exception.
    """
    return None if payload is None else payload.path


# gradio's own metaclass writes a stub file beside the source of every new class.
_UploadedImage = ABCMeta.__new__(
    type(gr.Image),
    "_UploadedImage",
    (gr.Image,),
    {"is_template": True, "preprocess": _path_of_upload},
)


def build_page(answers: Answers, heading: str, examples: Sequence[str] = ()) -> gr.Blocks:
    """Builds the page.

    Args:
        answers: What it asks.
        heading: What it is of.
        examples: Paths of images to start with.

    Returns:
        A page, to be launched with ``LOOK``.
    """
    with gr.Blocks(
        title=neutral(heading), analytics_enabled=False, delete_cache=_DELETE_CACHE
    ) as page:
        gr.HTML(f"<h2>{escaped(heading)}</h2>", elem_id="heading")
        if answers.choices.is_choice and not answers.choices.scores:
            gr.Markdown(_UNSCORED, elem_id="unscored")
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                image = _UploadedImage(label="Image", height=160, elem_id="image", buttons=[])
                if examples:
                    _examples(examples, image)
                wish = _budget_controls(answers)
                plot = gr.HTML(elem_id="plot")
            with gr.Column(scale=6, min_width=320):
                picture = gr.Image(
                    label="Found",
                    format="png",
                    interactive=False,
                    elem_id="found",
                    buttons=["download", "fullscreen"],
                )
                said = gr.HTML(_HINT, elem_id="said")
                wish |= _settings(answers)
        plot.value = answers.preview(Wish(**{key: each.value for key, each in wish.items()}))
        _connect(answers, wish, image, plot, picture, said)
    take_uploads_alone(page)
    # Who floods the page is turned away before the memory is full of pictures.
    return page.queue(max_size=32)


def _examples(paths: Sequence[str], image: gr.Image) -> None:
    """Pictures to click on. A visitor asks for one by its index."""
    samples = [[path] for path in paths]
    options = dict(label="Examples", elem_id="examples")
    examples = gr.Dataset(components=[image], samples=samples, type="index", **options)
    # gradio has copied them to where it serves files from.
    copies = [sample["path"] for (sample,) in examples.samples]

    def copy_of(index):
        if index not in range(len(copies)):
            raise gr.Error("There is no such example.", print_exception=False)
        return copies[int(index)]

    examples.click(copy_of, examples, image, show_progress="hidden", api_visibility="private")


def _budget_controls(answers: Answers) -> dict[str, gr.components.Component]:
    """What the stitch is chosen with, by the names of ``Wish``'s attributes."""
    budgets = answers.choices.budgets
    names = [stitch.name for stitch in answers.choices.stitches.values()]
    kinds = [(BUDGETS[budget][0], budget) for budget in budgets] + [("name", BY_NAME)]
    with gr.Group(visible=answers.choices.is_choice):
        budget = gr.Radio(kinds, value=budgets[0], label="Choose by", elem_id="budget")
        limit = gr.Slider(**_slider(answers, budgets[0]), elem_id="limit", buttons=[])
        name = gr.Dropdown(names, value=names[0], label="Stitch", visible=False, elem_id="name")
    return dict(budget=budget, limit=limit, name=name)


def _slider(answers: Answers, budget: str) -> dict[str, object]:
    low, high, step = answers.choices.limits(budget)
    middle = low + step * round((high - low) / 2 / step)
    label = f"At most: {answers.axis(budget)}"
    return dict(minimum=low, maximum=high, step=step, value=float(f"{middle:.9g}"), label=label)


def _settings(answers: Answers) -> dict[str, gr.components.Component]:
    """What is rarely changed, by the names of ``Wish``'s attributes."""
    scores, with_f1 = answers.choices.scores, answers.choices.has_best_f1
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        by = gr.Radio(
            [(f"{score} AP", score) for score in scores or SCORES],
            value=scores[0] if scores else next(iter(SCORES)),
            label="Best within a budget by",
            visible=len(scores) > 1 and answers.choices.is_choice,
            elem_id="by",
        )
        threshold = gr.Radio(
            [("the stitch's best F1", F1)] * with_f1 + [("a score of my own", _FIXED)],
            value=F1 if with_f1 else _FIXED,
            label="Show objects from",
            visible=with_f1,
            elem_id="threshold",
        )
        min_score = gr.Slider(
            *(0.05, 0.95, 0.5),
            step=0.05,
            label="Lowest score shown",
            visible=not with_f1,
            elem_id="min_score",
            buttons=[],
        )
    return dict(by=by, threshold=threshold, min_score=min_score)


def _connect(answers, controls, image, plot, picture, said) -> None:
    """What happens when: the plot follows the slider, the model runs when it is let go of."""
    values = [controls[key] for key in Wish.__dataclass_fields__]

    def change_budget(budget):
        if budget == BY_NAME:
            return gr.update(visible=False), gr.update(visible=True)
        slider = gr.update(**_slider(answers, budget), visible=True)
        return slider, gr.update(visible=False)

    def change_threshold(threshold):
        return gr.update(visible=threshold != F1)

    def preview(*state):
        return answers.preview(Wish(*state))

    def detect(path, *state):
        if path is None:
            return None, _HINT
        try:
            return answers.detect(path, Wish(*state))
        except InputError as error:
            # Beside the message, which stays: on a phone, it is far below where the file went in.
            gr.Warning(escaped(error), title="Nothing detected")
            return None, message(str(error))

    # Of many changes while an answer is on its way, only the last one is asked for.
    asked = dict(trigger_mode="always_last", api_visibility="private")
    previewed = dict(fn=preview, inputs=values, outputs=plot, show_progress="hidden", **asked)
    detected = dict(
        fn=detect,
        inputs=[image, *values],
        outputs=[picture, said],
        show_progress_on=picture,
        concurrency_id="model",
        concurrency_limit=1,
        **asked,
    )
    gr.on(
        [controls[key].input for key in ("limit", "name", "by")],
        **previewed,
    )
    gr.on(
        [
            image.change,
            controls["limit"].release,
            controls["min_score"].release,
            controls["name"].input,
            controls["by"].input,
        ],
        **detected,
    )
    changed = controls["budget"].input(
        change_budget,
        controls["budget"],
        [controls["limit"], controls["name"]],
        show_progress="hidden",
        **asked,
    )
    changed.then(**previewed).then(**detected)
    controls["threshold"].input(
        change_threshold,
        controls["threshold"],
        controls["min_score"],
        show_progress="hidden",
        **asked,
    ).then(**detected)

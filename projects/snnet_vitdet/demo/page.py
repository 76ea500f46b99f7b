"""The page: controls on one side, what was found on the other, below each other on a phone."""

from collections.abc import Sequence

import gradio as gr

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.results import SCORES
from snnet_vitdet.text import escaped, neutral

from .answers import BY_NAME, F1, Answers, Wish, message
from .choices import BUDGETS

__all__ = ["LOOK", "build_page"]

_FIXED = "fixed"
_UNSCORED = (
    "There is **no sweep**: nothing says which stitch detects better. Within a budget, the stitch "
    "that computes the most is taken. `train_net.py --eval-only` scores them."
)
_HINT = message("Drop an image.", error=False)
# Seconds: every ten minutes, pictures older than an hour are deleted.
_DELETE_CACHE = (600, 3600)


def build_page(answers: Answers, heading: str, examples: Sequence[str] = ()) -> gr.Blocks:
    """Builds the page.

    Args:
        answers: Answers what visitors ask.
        heading: Heading of the page.
        examples: Paths of images to start with.

    Returns:
        The page, to be launched with ``LOOK``.
    """
    with gr.Blocks(
        title=neutral(heading), analytics_enabled=False, delete_cache=_DELETE_CACHE
    ) as page:
        gr.HTML(f"<h2>{escaped(heading)}</h2>", elem_id="heading")
        if answers.choices.is_choice and not answers.choices.scores:
            gr.Markdown(_UNSCORED, elem_id="unscored")
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                image = gr.Image(label="Image", height=160, elem_id="image", buttons=[])
                # gradio itself would open whatever Pillow opens, however large.
                image.preprocess = lambda payload: None if payload is None else payload.path
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
    # More visitors are turned away, before the memory is full of pictures.
    return page.queue(max_size=32)


def _examples(paths: Sequence[str], image: gr.Image) -> None:
    """Pictures to click on; a browser asks for one by its index."""
    examples = gr.Dataset(
        components=[image],
        samples=[[path] for path in paths],
        type="index",
        label="Examples",
        elem_id="examples",
    )
    # gradio has copied them to the folder that it serves files from.
    copies = [sample["path"] for (sample,) in examples.samples]

    def copy_of(index):
        if index not in range(len(copies)):
            raise gr.Error("There is no such example.", print_exception=False)
        return copies[int(index)]

    examples.click(copy_of, examples, image, show_progress="hidden", api_visibility="private")


def _budget_controls(answers: Answers) -> dict[str, gr.components.Component]:
    """The controls that choose the stitch, by the attributes of ``Wish``."""
    budgets = answers.choices.budgets
    names = [row["name"] for row in answers.choices.rows.values()]
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
    """The controls that are rarely used, by the attributes of ``Wish``."""
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
    """Connects the events: the plot follows the slider, the model runs when it is released."""
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
            # In addition to the message, which on a phone is far below the upload.
            gr.Warning(escaped(error), title="Nothing detected")
            return None, message(str(error))

    # While an answer is on its way, only the last of several changes is kept.
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
    budget, limit, name, by, threshold, min_score = values
    gr.on([limit.input, name.input, by.input], **previewed)
    gr.on([image.change, limit.release, min_score.release, name.input, by.input], **detected)
    hidden = dict(show_progress="hidden", **asked)
    changed = budget.input(change_budget, budget, [limit, name], **hidden)
    changed.then(**previewed).then(**detected)
    threshold.input(change_threshold, threshold, min_score, **hidden).then(**detected)


# Fonts of the visitor's own system: nothing is fetched.
_THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)

# Releases a slider when an arrow key is released: gradio does so for pointers alone.
_RELEASE_BY_KEYBOARD = """() => {
    document.addEventListener("keyup", (event) => {
        if (event.target.type === "range" && /^(Arrow|Page|Home|End)/.test(event.key)) {
            event.target.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}));
        }
    });
}"""

_CSS = """
.gradio-container { --snnet-subdued: color-mix(in srgb, var(--body-text-color) 72%, transparent); }
#found img { max-height: min(64vh, 600px); }
#heading .html-container, #plot .html-container, #said .html-container { padding: 0; }
#examples .gallery-item .container { width: 64px; height: 64px; }

.snnet-facts p { margin: 0 0 4px; }
.snnet-facts p strong { font-size: 1.35em; margin-right: .4em; }
.snnet-facts dl { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 6px; }
.snnet-facts dt { font-size: .8em; color: var(--snnet-subdued); }
.snnet-facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }

.snnet-plot { width: 100%; max-width: 480px; height: auto; color: var(--body-text-color); }
.snnet-plot text { font-size: 12px; fill: var(--snnet-subdued); }
.snnet-plot .grid { stroke: currentColor; stroke-opacity: .12; fill: none; }
.snnet-plot .axis { stroke: currentColor; stroke-opacity: .5; fill: none; }
.snnet-plot .frontier { stroke: currentColor; stroke-width: 1.4; stroke-opacity: .75; fill: none; }
.snnet-plot .beyond { fill: currentColor; fill-opacity: .07; }
.snnet-plot .limit { stroke: currentColor; stroke-width: 1.4; stroke-dasharray: 4 3; fill: none; }
.snnet-plot .dots { stroke-width: 3; stroke-linecap: round; stroke-opacity: .4; fill: none; }
.snnet-plot use { stroke: var(--background-fill-primary); stroke-width: .7; }
.snnet-plot .ring { fill: none; stroke: currentColor; stroke-width: 2.5; }
.snnet-plot .halo { stroke: var(--background-fill-primary); stroke-width: 5.5; }
.snnet-plot .chosen {
    font-size: 14px; font-weight: 700; fill: currentColor;
    paint-order: stroke; stroke: var(--background-fill-primary); stroke-width: 4px;
}
.snnet-legend {
    list-style: none; margin: 4px 0 0; padding: 0;
    display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: .85em;
}
@media (max-width: 640px) {
    .snnet-plot text { font-size: 15px; }
    .snnet-legend { column-gap: 12px; font-size: .75em; }
}
.snnet-legend li { display: flex; align-items: center; gap: .35em; margin: 0; }
.snnet-legend svg { width: 16px; height: 16px; }

.snnet-error, .snnet-hint { margin: 0; padding: 8px 12px; border-left: 4px solid; }
.snnet-error { border-color: #d55e00; background: rgba(213, 94, 0, .12); }
.snnet-hint { border-color: var(--border-color-primary); color: var(--snnet-subdued); }

.snnet-objects { max-height: 260px; overflow: auto; margin-top: 8px; }
.snnet-objects table { width: 100%; max-width: 24em; border-collapse: collapse; }
.snnet-objects table, .snnet-objects tr { border: none; }
.snnet-objects th, .snnet-objects td {
    padding: 3px 8px; text-align: left;
    border: none; border-bottom: 1px solid var(--border-color-primary);
}
.snnet-objects th { position: sticky; top: 0; background: var(--background-fill-primary); }
.snnet-objects td + td, .snnet-objects th + th {
    text-align: right; font-variant-numeric: tabular-nums;
}
"""

LOOK = {"theme": _THEME, "css": _CSS, "js": _RELEASE_BY_KEYBOARD}
"""Arguments of gradio's ``launch``: the look in light and dark, without anything from elsewhere."""

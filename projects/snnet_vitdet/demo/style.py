"""How the page looks, in light and dark, without anything from elsewhere."""

import gradio as gr

__all__ = ["CSS", "RELEASE_BY_KEYBOARD", "THEME"]

# Fonts of the visitor's own system: nothing is fetched.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

# A slider moved by keys is let go of when the key is; gradio knows of pointers alone.
RELEASE_BY_KEYBOARD = """() => {
    document.addEventListener("keyup", (event) => {
        if (event.target.type === "range" && /^(Arrow|Page|Home|End)/.test(event.key)) {
            event.target.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}));
        }
    });
}"""

CSS = """
.gradio-container { --snnet-subdued: color-mix(in srgb, var(--body-text-color) 72%, transparent); }
#found img { max-height: min(64vh, 600px); }
#plot .html-container, #said .html-container { padding: 0; }
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
.snnet-legend svg { width: 14px; height: 14px; }

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

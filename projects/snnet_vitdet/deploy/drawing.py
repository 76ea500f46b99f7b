"""Detections drawn into their image."""

import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

from snnet_vitdet.text import plot_text

__all__ = ["draw_detections"]

# Okabe and Ito's palette, which readers with any colour vision tell apart; classes take turns.
_COLOURS = tuple(
    tuple(int(text[i : i + 2], 16) / 255 for i in (0, 2, 4))
    for text in ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
)


def draw_detections(image: np.ndarray, instances: Instances, min_side: int = 0) -> np.ndarray:
    """Draws boxes, masks, class names and scores, by detectron2's Visualizer.

    Args:
        image: (H, W, 3), RGB, uint8.
        instances: Of this image, as a Predictor returns them; annotations have no ``scores``.
        min_side: Images whose shorter side has fewer pixels are enlarged to it, so that the text
            can be read.

    Returns:
        (H', W', 3), RGB, uint8; of the image's size unless it was enlarged.
    """
    scale = max(1.0, min_side / min(image.shape[:2]))
    visualizer = Visualizer(image, scale=scale)
    labels = list(instances.class_names)
    if instances.has("scores"):
        # A large detection over a small one would hide its text.
        order = np.argsort(instances.scores.numpy(), kind="stable")
        instances = instances[order.tolist()]
        labels = [
            f"{name} {score:.0%}"
            for name, score in zip(instances.class_names, instances.scores.tolist(), strict=True)
        ]
    classes = instances.pred_classes.tolist()
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    drawn = visualizer.overlay_instances(
        boxes=instances.pred_boxes.tensor.numpy(),
        masks=masks,
        labels=[plot_text(label) for label in labels],
        assigned_colors=[_COLOURS[i % len(_COLOURS)] for i in classes],
        alpha=0.4,
    )
    return drawn.get_image()

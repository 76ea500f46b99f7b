"""What masks are scored against, where some objects have a box alone."""

__all__ = ["mask_truth"]


def mask_truth(content: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """The annotations that mask AP counts.

    An object without a mask is a crowd there that fills its box: a mask found in it counts neither
    for nor against a detector, as nobody knows whether it is right.

    Args:
        content: ``images``, ``annotations`` and ``categories``, as ``numbered`` gives them; not
            changed.

    Returns:
        The same object if every annotation has a mask.
    """
    if all("segmentation" in annotation for annotation in content["annotations"]):
        return content
    return {**content, "annotations": [*map(_with_mask, content["annotations"])]}


def _with_mask(annotation: dict) -> dict:
    if "segmentation" in annotation:
        return annotation
    x, y, width, height = annotation["bbox"]
    right, bottom = x + width, y + height
    polygon = [x, y, right, y, right, bottom, x, bottom]
    return {**annotation, "segmentation": [polygon], "iscrowd": 1}

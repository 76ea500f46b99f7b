"""The results file of detectron2's COCOEvaluator with the ids of the annotation file."""

import json
from pathlib import Path

from detectron2.evaluation import DatasetEvaluator

from snnet_vitdet.files import write_atomically

__all__ = ["give_back_ids"]

_RESULTS = "coco_instances_results.json"


def give_back_ids(evaluator: DatasetEvaluator) -> None:
    """Writes a results file anew, for other programs: detectors and scorers have our numbers.

    Does nothing if the evaluator has no folder to write to, or its data other ids than ours.

    Args:
        evaluator: One that has just evaluated.
    """
    # Of several, the first one writes what all have been given.
    evaluator = getattr(evaluator, "_evaluators", [evaluator])[0]
    folder, metadata = (getattr(evaluator, name, None) for name in ("_output_dir", "_metadata"))
    image_ids = getattr(metadata, "image_ids", None)
    if not folder or image_ids is None:
        return
    path = Path(folder, _RESULTS)
    if not path.is_file():
        return
    results = json.loads(path.read_bytes())
    for result in results:
        result["image_id"] = image_ids[result["image_id"] - 1]
        result["category_id"] = metadata.category_ids[result["category_id"] - 1]
    write_atomically(path, json.dumps(results).encode())

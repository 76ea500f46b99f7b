"""What the data of a training are, kept in its folder: others of the same path are noticed."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from snnet_vitdet.data.fingerprint import difference, image_facts, sha256_of
from snnet_vitdet.errors import first_line
from snnet_vitdet.files import read_json, write_atomically

__all__ = ["note_training_data"]

logger = logging.getLogger(__name__)

_FILE = "training_data.json"
# Of the images, evenly spread: a look at each of a large data set takes minutes on network file
# systems, and who replaces images rarely replaces one.
_MOST_IMAGES = 5000


def note_training_data(config: DictConfig, iteration: int, *, resume: bool) -> None:
    """Writes ``training_data.json``, and says what of it has changed where a training goes on.

    Annotations count by their content, images by their sizes and times, 5,000 of them at most. If
    anything has changed, the file of before stays as ``training_data_until_….json``.

    Args:
        config: The whole config.
        iteration: The first one that is trained with these data.
        resume: Whether a training goes on; one of an earlier version has no such file.

    Raises:
        InputError: If the annotations cannot be read, or the file cannot be written.
    """
    path = os.path.join(config.train.output_dir, _FILE)
    annotations, images = config.data.train_json, config.data.train_images
    facts = {
        "train_json": os.path.abspath(annotations),
        "train_json_sha256": sha256_of(annotations),
        "train_image": image_facts(annotations, images, _MOST_IMAGES),
    }
    if resume and os.path.lexists(path):
        _compare(path, facts, iteration)
    write_atomically(path, json.dumps(facts, indent=1).encode())


def _compare(path: str, facts: Mapping[str, object], iteration: int) -> None:
    try:
        before = read_json(path)
        if not isinstance(before, Mapping):
            raise ValueError("it holds no facts")
        changed = difference(before, facts)
    except (OSError, RecursionError, ValueError) as error:
        logger.warning(
            "%s cannot be read (%s): whether the training data are those of before is not known.",
            path,
            first_line(error),
        )
        return
    if changed:
        earlier = f"{path.removesuffix('.json')}_until_{iteration:07d}.json"
        # One that is there has had iterations, and that of now has not had any.
        if not os.path.exists(earlier):
            write_atomically(earlier, Path(path).read_bytes())
        logger.warning(
            "From iteration %d on, other training data than before (%s). What those of before were "
            "is in %s.",
            iteration,
            changed,
            earlier,
        )

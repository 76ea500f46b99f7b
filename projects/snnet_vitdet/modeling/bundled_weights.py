"""The two small pretrained ViTs that come with the package, for the demo and for trials.

``python -m research.nano_vits`` has made them, from generated scenes alone. They are stored in half
precision, with timm's names.
"""

import hashlib
import json
from pathlib import Path

from safetensors import safe_open

from snnet_vitdet.errors import InputError

from .anchor import AnchorViT

__all__ = ["BUNDLED", "PRETRAINING_KEY", "bundled_file", "check_bundled"]

BUNDLED = {
    "vit_nano_s": "a8c150072eb6266087cddba6b948be25241eb76198c80cc6633e16b1aa72ce41",
    "vit_nano_l": "542949afb811f10e02afa97c03a1b9669e9388a06ef70afd2df3fde5b8eb6234",
}
"""The sha256 of each file by the name of its weights."""

PRETRAINING_KEY = "pretraining"
"""The key, in a file's header, of the arguments of :class:`AnchorViT` that its weights need."""

_FOLDER = Path(__file__).with_name("bundled")


def bundled_file(name: str) -> str:
    """Path of bundled weights, whose bytes are checked.

    Args:
        name: A key of ``BUNDLED``.

    Raises:
        InputError: If the file is missing or damaged.
    """
    path = _FOLDER / f"{name}.safetensors"
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(
            f"the bundled weights {path} cannot be read ({error.strerror}): install again"
        ) from error
    if digest != BUNDLED[name]:
        raise InputError(f"the bundled weights {path} are damaged: install again")
    return str(path)


def check_bundled(anchor: AnchorViT, name: str) -> None:
    """Checks that an anchor fits bundled weights.

    Args:
        anchor: The anchor, which may be on the meta device.
        name: A key of ``BUNDLED``.

    Raises:
        InputError: If the file is damaged, or needs other arguments, which are listed.
    """
    with safe_open(bundled_file(name), framework="pt") as file:
        wanted = json.loads(file.metadata()[PRETRAINING_KEY])
    wanted = {key: tuple(v) if isinstance(v, list) else v for key, v in wanted.items()}
    if differing := anchor.pretraining.differences(wanted):
        raise InputError(
            f"the bundled weights {name} need an anchor with {', '.join(differing)}: take that of "
            "configs/shapes/mask_rcnn_snnet_nano.py, or other weights (null for random ones)"
        )

"""SN-Netv2 for detection: stitched plain ViTs as backbones of detectron2 detectors."""

import logging
import warnings

from snnet_vitdet.errors import InputError
from snnet_vitdet.text import log_neutrally

# detectron2.evaluation logs scores by class name. Other records of detectron2 contain colours.
log_neutrally(__name__, "detectron2.evaluation")

# The libraries raise these at every start, and a user can do nothing about them.
for _message in (
    "`torch.jit.script` is deprecated",
    "torch.meshgrid",
    "pkg_resources is deprecated",
    # detectron2 resizes masks with Pillow and copies them at once.
    "The given NumPy array is not writable",
):
    warnings.filterwarnings("ignore", _message)
for _logger, _message in (
    # detectron2's poolers call it.
    ("torch.fx._symbolic_trace", "is_fx_tracing will return true for both"),
    # detectron2 lists the environment, also on a machine without a GPU.
    ("torch.utils.cpp_extension", "No CUDA runtime is found"),
):
    logging.getLogger(_logger).addFilter(
        lambda record, message=_message: not str(record.msg).startswith(message)
    )

__all__ = ["InputError", "Predictor", "StitchTable"]


def __getattr__(name: str) -> object:
    # Imported on demand: `snnet_vitdet.stitching` needs no detectron2.
    if name in __all__:
        from snnet_vitdet import deploy, evaluation

        return getattr(evaluation if name == "StitchTable" else deploy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

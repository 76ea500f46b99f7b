"""SN-Netv2 for detection: stitched plain ViTs as backbones of detectron2 detectors."""

import logging
import warnings

from snnet_vitdet.errors import InputError
from snnet_vitdet.text import log_neutrally

# Scores are logged by class there. The rest of detectron2's records are partly in colours.
log_neutrally(__name__, "detectron2.evaluation")

# Of the libraries below, at every start; nothing that whoever reads them could change.
for _message in (
    "`torch.jit.script` is deprecated",
    "torch.meshgrid",
    "pkg_resources is deprecated",
    # Of masks that detectron2 has resized with Pillow, and copies at once.
    "The given NumPy array is not writable",
):
    warnings.filterwarnings("ignore", _message)
for _logger, _message in (
    # Of a call in detectron2's poolers.
    ("torch.fx._symbolic_trace", "is_fx_tracing will return true for both"),
    # Where detectron2 lists the environment, on a machine without a GPU.
    ("torch.utils.cpp_extension", "No CUDA runtime is found"),
):
    logging.getLogger(_logger).addFilter(
        lambda record, message=_message: not str(record.msg).startswith(message)
    )

__all__ = ["InputError", "Predictor", "StitchTable"]


def __getattr__(name: str) -> object:
    # Not imported before it is asked for: `snnet_vitdet.stitching` needs no detectron2.
    if name in __all__:
        from snnet_vitdet import deploy, evaluation

        return getattr(evaluation if name == "StitchTable" else deploy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

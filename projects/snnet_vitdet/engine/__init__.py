"""Training: what is checked before it, how it starts, one stitch an iteration, its checkpoints."""

from .checkpoint import (
    ClassNames,
    StrictCheckpointer,
    checkpoint_to_evaluate,
    saved_class_names,
)
from .config import load_config
from .freezing import FreezeAnchors
from .initialise import fit_stitching_layers, load_anchors
from .lr_decay import LayerwiseDecay
from .preflight import preflight
from .rehearsal import rehearse, synthetic_batch
from .schedule import apply_linear_scaling, training_plan
from .trainer import StitchedAMPTrainer, StitchedTrainer

__all__ = [
    "ClassNames",
    "FreezeAnchors",
    "LayerwiseDecay",
    "StitchedAMPTrainer",
    "StitchedTrainer",
    "StrictCheckpointer",
    "apply_linear_scaling",
    "checkpoint_to_evaluate",
    "fit_stitching_layers",
    "load_anchors",
    "load_config",
    "preflight",
    "rehearse",
    "saved_class_names",
    "synthetic_batch",
    "training_plan",
]

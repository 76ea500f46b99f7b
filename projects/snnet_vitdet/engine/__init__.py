"""Training: what is checked before it, how it starts, one stitch an iteration, its checkpoints."""

from .checkpoint import (
    ClassNames,
    StrictCheckpointer,
    checkpoint_to_evaluate,
    checkpoint_to_resume,
    saved_facts,
)
from .config import load_config
from .freezing import FreezeAnchors
from .initialise import fit_stitching_layers, load_anchors
from .lr_decay import LayerwiseDecay
from .preemption import STOPPED, StopOnSignal, passing_on_to_children
from .preflight import preflight
from .rehearsal import rehearse, synthetic_batch
from .schedule import apply_linear_scaling, training_plan
from .trainer import StitchedAMPTrainer, StitchedTrainer

__all__ = [
    "STOPPED",
    "ClassNames",
    "FreezeAnchors",
    "LayerwiseDecay",
    "StopOnSignal",
    "StitchedAMPTrainer",
    "StitchedTrainer",
    "StrictCheckpointer",
    "apply_linear_scaling",
    "checkpoint_to_evaluate",
    "checkpoint_to_resume",
    "fit_stitching_layers",
    "load_anchors",
    "load_config",
    "passing_on_to_children",
    "preflight",
    "rehearse",
    "saved_facts",
    "synthetic_batch",
    "training_plan",
]

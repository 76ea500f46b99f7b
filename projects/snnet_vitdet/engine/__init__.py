"""Training: what is checked before it, how it starts, one stitch an iteration, its checkpoints."""

from .checkpoint import (
    ClassNames,
    StrictCheckpointer,
    checkpoint_to_evaluate,
    checkpoint_to_resume,
    saved_facts,
)
from .config import load_config, save_config
from .folder_lock import alone_in
from .freezing import FreezeAnchors
from .initialise import fit_stitching_layers, load_anchors
from .lr_decay import LayerwiseDecay
from .metrics import MetricsFile, WriteMetrics
from .preemption import STOPPED, StopOnSignal, passing_on_to_children
from .preflight import preflight
from .processes import AUTO, run_in_processes
from .rehearsal import rehearse, synthetic_batch
from .schedule import apply_linear_scaling, training_plan
from .trainer import StitchedAMPTrainer, StitchedTrainer

__all__ = [
    "AUTO",
    "STOPPED",
    "ClassNames",
    "FreezeAnchors",
    "LayerwiseDecay",
    "MetricsFile",
    "StopOnSignal",
    "StitchedAMPTrainer",
    "StitchedTrainer",
    "StrictCheckpointer",
    "WriteMetrics",
    "alone_in",
    "apply_linear_scaling",
    "checkpoint_to_evaluate",
    "checkpoint_to_resume",
    "fit_stitching_layers",
    "load_anchors",
    "load_config",
    "passing_on_to_children",
    "preflight",
    "rehearse",
    "run_in_processes",
    "save_config",
    "saved_facts",
    "synthetic_batch",
    "training_plan",
]

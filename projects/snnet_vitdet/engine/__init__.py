"""Training: what is checked before it, how it starts, one stitch an iteration, its checkpoints."""

from .assembly import build_trainer, distil, rehearse_training
from .averaging import AveragedWeights
from .checkpoint import (
    ClassNames,
    StrictCheckpointer,
    checkpoint_to_evaluate,
    checkpoint_to_resume,
    saved_facts,
)
from .config import load_config, save_config
from .detectors import load_detectors
from .distillation import InPlaceDistillation
from .folder_lock import alone_in
from .freezing import FreezeAnchors
from .initialise import fit_stitching_layers, load_anchors
from .lr_decay import LayerwiseDecay
from .metrics import MetricsFile, TensorBoardFile, WriteMetrics
from .precision import set_float32_arithmetic, training_precision
from .preemption import STOPPED, StopOnSignal, passing_on_to_children
from .preflight import preflight, prepare_run
from .processes import AUTO, launch_here, run_in_processes
from .rehearsal import rehearse, synthetic_batch
from .resuming import save_resumed_config
from .run_data import note_training_data
from .run_folder import run_folder, set_up
from .samplers import build_sampler, crowded_anchors, ends_plan, mean_gflops, training_shares
from .schedule import apply_linear_scaling, build_schedule, training_plan
from .settings import (
    Config,
    DataSettings,
    InitSettings,
    SweepSettings,
    TrainSettings,
    as_config,
)
from .trainer import StitchedAMPTrainer, StitchedTrainer

__all__ = [
    "AUTO",
    "STOPPED",
    "AveragedWeights",
    "ClassNames",
    "Config",
    "DataSettings",
    "FreezeAnchors",
    "InPlaceDistillation",
    "InitSettings",
    "LayerwiseDecay",
    "MetricsFile",
    "StopOnSignal",
    "StitchedAMPTrainer",
    "StitchedTrainer",
    "StrictCheckpointer",
    "SweepSettings",
    "TensorBoardFile",
    "TrainSettings",
    "WriteMetrics",
    "alone_in",
    "apply_linear_scaling",
    "as_config",
    "build_sampler",
    "build_schedule",
    "build_trainer",
    "checkpoint_to_evaluate",
    "checkpoint_to_resume",
    "crowded_anchors",
    "distil",
    "ends_plan",
    "fit_stitching_layers",
    "load_anchors",
    "load_config",
    "note_training_data",
    "load_detectors",
    "mean_gflops",
    "passing_on_to_children",
    "preflight",
    "prepare_run",
    "rehearse",
    "rehearse_training",
    "run_folder",
    "launch_here",
    "run_in_processes",
    "save_config",
    "save_resumed_config",
    "saved_facts",
    "set_float32_arithmetic",
    "set_up",
    "synthetic_batch",
    "training_plan",
    "training_precision",
    "training_shares",
]

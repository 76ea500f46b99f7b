"""Training: settings and checks, launch, initialisation, one stitch an iteration, checkpoints."""

from .checkpoint import checkpoint_to_evaluate, checkpoint_to_resume, saved_facts
from .checkpointer import ClassNames, StrictCheckpointer
from .config import load_config, parse_with_overrides
from .hooks import STOPPED
from .image_size import at_image_size, check_image_size, cost_aspect_ratio
from .initialise import fit_stitching_layers, initialise_weights, load_anchors, load_detectors
from .launch import AUTO, launch_here, run_in_processes
from .learning_rate import LayerwiseDecay, apply_linear_scaling
from .memory_probe import synthetic_batch
from .precision import set_float32_arithmetic
from .preflight import preflight, prepare_run
from .run_folder import alone_in, folder_of_run, set_up
from .samplers import (
    build_sampler,
    costs_by_size,
    crowded_anchors,
    ends_plan,
    mean_gflops,
    training_shares,
)
from .saved_config import save_config
from .settings import (
    Config,
    DataSettings,
    InitSettings,
    SweepSettings,
    TrainSettings,
    as_config,
)
from .trainer import StitchedTrainer
from .training import build_model, train

__all__ = [
    "AUTO",
    "STOPPED",
    "ClassNames",
    "Config",
    "DataSettings",
    "InitSettings",
    "LayerwiseDecay",
    "StitchedTrainer",
    "StrictCheckpointer",
    "SweepSettings",
    "TrainSettings",
    "alone_in",
    "apply_linear_scaling",
    "as_config",
    "at_image_size",
    "build_model",
    "build_sampler",
    "check_image_size",
    "checkpoint_to_evaluate",
    "checkpoint_to_resume",
    "cost_aspect_ratio",
    "costs_by_size",
    "crowded_anchors",
    "ends_plan",
    "fit_stitching_layers",
    "folder_of_run",
    "initialise_weights",
    "launch_here",
    "load_anchors",
    "load_config",
    "load_detectors",
    "mean_gflops",
    "preflight",
    "parse_with_overrides",
    "prepare_run",
    "run_in_processes",
    "save_config",
    "saved_facts",
    "set_float32_arithmetic",
    "set_up",
    "synthetic_batch",
    "train",
    "training_shares",
]

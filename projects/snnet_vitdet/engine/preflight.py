"""What can be known to be wrong before a training or a sweep starts, found in seconds.

Runs once, in the process the user started, before any other process, GPU or data worker: a mistake
ends in one sentence instead of a traceback from the middle of several processes.
"""

import glob
import logging
import os
from collections.abc import Iterator, Mapping

import torch
from detectron2.config import instantiate
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from snnet_vitdet.data import check_coco_json, check_same_categories, num_categories
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.one_pass import supports_one_pass
from snnet_vitdet.files import read_json
from snnet_vitdet.modeling import find_stitched_vit, stitch_costs
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.modeling.timm_weights import check_weights
from snnet_vitdet.stitching import select_stitches

from .checkpoint import checkpoint_to_evaluate, last_checkpoint
from .data_nodes import check_data_nodes
from .distillation import check_distillation
from .initialise import anchors_of
from .resuming import check_resumed_settings
from .samplers import build_sampler, turns_of_ends
from .schedule import check_schedule
from .trainer import ACCUMULATION_STITCHES, SCOPES
from .values import check_whole_number

__all__ = ["preflight"]

logger = logging.getLogger(__name__)

# The lowest value of numbers.
_NUMBERS = {
    "train.seed": 0,
    "train.max_iter": 1,
    "dataloader.test.num_workers": 0,
    "sweep.subset": 0,
}
_TRAINING_NUMBERS = {
    "dataloader.train.total_batch_size": 1,
    "dataloader.train.num_workers": 0,
    "train.accumulation.steps": 1,
    "train.freeze_anchors": 0,
    "train.log_period": 1,
    "train.eval_period": 0,
    "train.checkpointer.period": 1,
}
# numpy takes no higher seed, and each process has its own, higher by its index.
_HIGHEST_SEED = 2**32 - 1
_CHOICES = {
    "train.amp.precision": ("auto", "float16", "bfloat16"),
    "train.stitch_scope": SCOPES,
    "init.stitching_layers": ("least_squares", "random"),
    "sweep.mode": ("one_pass", "separate"),
    "sweep.precision": ("float32", "float16", "bfloat16"),
    "sweep.averaged": (True, False),
}
_TRAINING_CHOICES = {"train.accumulation.stitch": ACCUMULATION_STITCHES}


def preflight(config: DictConfig, *, evaluation: bool, resume: bool, num_processes: int) -> None:
    """Prepares generated data, resolves ``train.device`` and checks everything a run depends on.

    Args:
        config: The whole config, overrides applied; ``train.device=auto`` is replaced.
        evaluation: Whether the run only evaluates.
        resume: Whether the run continues another one.
        num_processes: Number of training processes in all.

    Raises:
        InputError: For the first thing that is wrong.
    """
    _resolve_device(config)
    # A sweep takes what an earlier version saved, which has fewer keys.
    numbers = _NUMBERS if evaluation else _NUMBERS | _TRAINING_NUMBERS
    for key, lowest in numbers.items():
        check_whole_number(key, OmegaConf.select(config, key), lowest)
    check_whole_number("train.seed", config.train.seed, 0, _HIGHEST_SEED - num_processes + 1)
    for key, allowed in (_CHOICES if evaluation else _CHOICES | _TRAINING_CHOICES).items():
        value = OmegaConf.select(config, key)
        if value not in allowed:
            raise InputError(f"{key}={value} must be one of {list(allowed)}")
    if "prepare" in config.data:
        instantiate(config.data.prepare)
    missing = sorted(_missing_keys(OmegaConf.to_container(config, resolve=False)))
    if missing:
        example = " ".join(f"{key}=…" for key in missing)
        raise InputError(f"the config leaves these keys to you: {missing}; add {example}")
    # A sweep at initialisation starts as a training does.
    starts = config.sweep.at_initialisation if evaluation else not resume
    if evaluation and starts and config.train.init_checkpoint:
        raise InputError(
            "sweep.at_initialisation=True sweeps without a checkpoint: leave out "
            "train.init_checkpoint, or at_initialisation"
        )
    check_data_nodes(config, training=starts or not evaluation)
    num_classes = _check_data(config.data, training=starts or not evaluation)
    model = _build(config.model)
    if model.roi_heads.num_classes != num_classes:
        raise InputError(
            f"model.roi_heads.num_classes is {model.roi_heads.num_classes}, but the data has "
            f"{num_classes} categories: set it to that"
        )
    _check_stitches(config, model, training=starts or not evaluation)
    if evaluation:
        _check_sweep(config, model)
    if evaluation and not starts:
        checkpoint_to_evaluate(config.train.init_checkpoint, config.train.output_dir)
    elif config.train.init_checkpoint and not os.path.isfile(config.train.init_checkpoint):
        raise InputError(
            f"train.init_checkpoint={config.train.init_checkpoint} does not exist: check the path"
        )
    _check_writable(config.train.output_dir)
    if not evaluation:
        batch = config.dataloader.train.total_batch_size
        _check_batch(batch, num_processes, config.train.accumulation.steps)
        _check_freezing(config.train, model, num_processes)
        check_distillation(config.train.distillation, model)
        _check_averaging(config.train.ema_decay)
        check_schedule(config, model)
        if (kept := config.train.checkpointer.get("max_to_keep")) is not None:
            check_whole_number("train.checkpointer.max_to_keep", kept, 1)
        _check_output_dir(config.train.output_dir, resume)
        if resume:
            check_resumed_settings(config)
    elif not resume and not config.sweep.overwrite:
        _check_sweep_dir(config.train.output_dir)
    if starts and not config.train.init_checkpoint:
        anchors = anchors_of(model)
        for name, source in config.init.weights.items():
            if source and name in anchors:
                check_weights(anchors[name], source)


def _missing_keys(node: object, path: str = "") -> Iterator[str]:
    """Keys that are still ``???``; OmegaConf's own function fails at interpolations to them."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _missing_keys(value, f"{path}.{key}" if path else str(key))
    elif node == "???":
        yield path


def _resolve_device(config: DictConfig) -> None:
    available = torch.cuda.is_available()
    if config.train.device == "auto":
        config.train.device = "cuda" if available else "cpu"
    try:
        torch.device(config.train.device)
    except RuntimeError as error:
        raise InputError(
            f"train.device={config.train.device} is no device: set auto, cuda or cpu"
        ) from error
    if config.train.device.startswith("cuda") and not available:
        raise InputError(
            f"train.device={config.train.device}, but torch {torch.__version__} sees no GPU: set "
            "train.device=cpu, or install a driver and a torch that fit the GPU"
        )


def _check_data(data: DictConfig, training: bool) -> int:
    """Checks the annotation files; returns the number of categories."""
    if not data.check:
        return num_categories(data.test_json)
    test = check_coco_json(data.test_json, data.test_images, for_evaluation=True)
    logger.info("Test data: %s", test)
    if not training:
        return len(test.categories)
    train = check_coco_json(data.train_json, data.train_images, for_evaluation=False)
    logger.info("Training data: %s", train)
    check_same_categories(train, test)
    return len(train.categories)


def _build(model_config: DictConfig) -> nn.Module:
    try:
        return build_on_meta(model_config)
    except InputError:
        raise
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"the model of this config cannot be built: {error}") from error


def _check_stitches(config: DictConfig, model: nn.Module, training: bool) -> None:
    backbone = find_stitched_vit(model)
    if backbone is None:
        if training and any(turns_of_ends(config)):
            raise InputError(
                f"train.ends is set, but the backbone {type(model.backbone.net).__name__} has no "
                "stitches to take turns: leave it out"
            )
        return
    select_stitches(config.sweep.stitch_ids, backbone.space)
    costs = stitch_costs(config.model)
    if not training:
        return
    select_stitches(config.train.eval_stitches, backbone.space)
    if not isinstance(config.init.num_images, int) or config.init.num_images < 1:
        raise InputError(f"init.num_images={config.init.num_images} must be a whole number above 0")
    build_sampler(config, costs)


def _check_sweep(config: DictConfig, model: nn.Module) -> None:
    if find_stitched_vit(model) is None or config.sweep.mode == "separate":
        if config.sweep.subset:
            raise InputError(
                f"sweep.subset={config.sweep.subset} is for a stitched detector and "
                "sweep.mode=one_pass: leave it out"
            )
        return
    evaluator = config.dataloader.evaluator
    own = {key: evaluator.get(key) for key in ("tasks", "max_dets_per_image") if evaluator.get(key)}
    target = evaluator._target_
    target = locate(target) if isinstance(target, str) else target
    if not supports_one_pass(model) or target is not COCOEvaluator or own:
        raise InputError(
            "sweep.mode=one_pass runs a GeneralizedRCNN or an ExitAwareRCNN and scores as "
            "detectron2's COCOEvaluator does by default, but the model is a "
            f"{type(model).__name__}, and dataloader.evaluator a {target.__name__} with {own}: "
            "set sweep.mode=separate"
        )


def _check_batch(batch: int, num_processes: int, steps: int) -> None:
    if batch % num_processes:
        raise InputError(
            f"dataloader.train.total_batch_size={batch} cannot be shared by {num_processes} "
            "processes: make it a multiple of them"
        )
    if batch % (num_processes * steps):
        raise InputError(
            f"dataloader.train.total_batch_size={batch} cannot be split into "
            f"train.accumulation.steps={steps} micro-batches in each of {num_processes} processes: "
            f"make it a multiple of {num_processes * steps}, or change the steps"
        )


def _check_freezing(train: DictConfig, model: nn.Module, num_processes: int) -> None:
    if not train.freeze_anchors:
        return
    if not anchors_of(model):
        raise InputError(
            f"train.freeze_anchors={train.freeze_anchors}, but the backbone "
            f"{type(model.backbone.net).__name__} has no anchor to freeze: leave the key out"
        )
    if num_processes > 1 and not train.ddp.find_unused_parameters:
        raise InputError(
            f"train.freeze_anchors={train.freeze_anchors} leaves parameters without gradient, for "
            f"which {num_processes} processes would wait: add train.ddp.find_unused_parameters=True"
        )
    if train.freeze_anchors >= train.max_iter:
        raise InputError(
            f"train.freeze_anchors={train.freeze_anchors} of train.max_iter={train.max_iter} "
            "iterations would never train the anchors: freeze them for a part of the training, or "
            "tune them by LoRA (model.backbone.net.small.lora_rank=4, and .large)"
        )


def _check_averaging(decay: object) -> None:
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
        raise InputError(
            f"train.ema_decay={decay} must be a number from 0, for no average, to less than 1, "
            "such as 0.9998"
        )


def _check_writable(output_dir: str) -> None:
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"train.output_dir={output_dir} cannot be created ({error.strerror}): choose another"
        ) from error
    if not os.access(output_dir, os.W_OK):
        raise InputError(f"train.output_dir={output_dir} cannot be written: choose another")


def _check_output_dir(output_dir: str, resume: bool) -> None:
    """Refuses to overwrite a training that has got anywhere."""
    last = last_checkpoint(output_dir)
    if not resume and last not in ("", "model_init.pth"):
        raise InputError(
            f"{output_dir} already holds a training ({last}): add --resume to continue it, or "
            "choose another train.output_dir"
        )


def _check_sweep_dir(output_dir: str) -> None:
    """Refuses to overwrite what may have taken days."""
    folder = os.path.join(output_dir, "sweep")
    remedy = "sweep.overwrite=True to begin anew"
    # The first of two stages has a folder of its own.
    for path in (folder, os.path.join(folder, "subset")):
        if count := _num_rows(os.path.join(path, "stitches.json")):
            raise InputError(
                f"{path} already holds the scores of {count} stitch{'es' if count > 1 else ''}: "
                "add --resume to keep them and go on with others, if the weights and the data are "
                f"still those, or {remedy}"
            )
        if glob.glob(os.path.join(glob.escape(path), "detections", "*.npz")):
            raise InputError(
                f"{path} holds the detections of an interrupted sweep: add --resume to go on from "
                f"there, or {remedy}"
            )


def _num_rows(path: str) -> int:
    """0 also if there is nothing worth keeping."""
    try:
        return len(read_json(path))
    except (OSError, TypeError, ValueError):
        return 0

"""Checks of a run before it starts: a mistake ends in one sentence, in seconds.

They run once, in the process that the user started, before any other process, GPU or data worker.
"""

import copy
import glob
import inspect
import logging
import os

import torch
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.evaluation import COCOEvaluator
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from snnet_vitdet.building import build, check_call, located
from snnet_vitdet.data import build_train_loader
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.one_pass import supports_one_pass
from snnet_vitdet.files import read_json
from snnet_vitdet.modeling import baseline_cost, find_stitched_vit, is_joined, stitch_costs
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.modeling.weights import check_weights
from snnet_vitdet.stitching import select_stitches
from snnet_vitdet.validators import check, whole, written

from .checkpoint import checkpoint_to_evaluate, last_checkpoint
from .distillation import check_distillation
from .dry_run import try_evaluator, try_heads, try_loader
from .image_size import check_image_size
from .initialise import anchors_of, check_detectors
from .learning_rate import check_schedule
from .run_data import check_data, check_data_nodes, settle_masks
from .samplers import build_sampler, costs_by_size
from .saved_config import check_resumed_settings
from .setting_checks import check_present, check_settings, flat
from .settings import HIGHEST_SEED, LEFT_TO_USER, Config, TrainSettings

__all__ = ["preflight", "prepare_run"]

logger = logging.getLogger(__name__)

# Groups of a config that are arguments of detectron2 and torch.
_ARGUMENTS = {
    "train.ddp": {*inspect.signature(DistributedDataParallel).parameters, "fp16_compression"},
    "train.checkpointer": set(inspect.signature(PeriodicCheckpointer).parameters),
}


def preflight(config: Config, *, evaluation: bool, resume: bool, num_processes: int) -> None:
    """Checks everything that a run depends on. All it changes is to make the output folder.

    What needs no data is checked first. Data that ``data.prepare`` is to make are checked by
    :func:`prepare_run`, which comes next.

    Args:
        config: The whole config, overrides applied.
        evaluation: Whether the run only evaluates.
        resume: Whether the run continues another one.
        num_processes: Number of training processes in all.

    Raises:
        InputError: For the first mistake.
    """
    check_settings(config)
    check_present(config, training=not evaluation)
    check("train.seed", config.train.seed, whole(0, HIGHEST_SEED - num_processes + 1))
    _check_device(config.train.device)
    # OmegaConf.missing_keys fails at interpolations to them.
    settings = flat(OmegaConf.to_container(config, resolve=False))
    if missing := sorted(key for key, value in settings if value == LEFT_TO_USER):
        example = " ".join(f"{key}=…" for key in missing)
        raise InputError(f"the config leaves these keys to you: {missing}; add {example}")
    starts, training = _starts(config, evaluation, resume), _trains(config, evaluation)
    if evaluation and starts and config.train.init_checkpoint:
        raise InputError(
            "sweep.at_initialisation=True sweeps without a checkpoint: leave out "
            "train.init_checkpoint, or at_initialisation"
        )
    if training and config.train.max_iter == 0 and not is_joined(config.model):
        raise InputError(
            "train.max_iter=0 must be a whole number of at least 1: only a joined detector "
            "(configs/join) is one without a training"
        )
    check_data_nodes(config, training=training)
    model = _check_parts(config, training, evaluation, num_processes)
    if evaluation and not starts:
        checkpoint_to_evaluate(config.train.init_checkpoint, config.train.output_dir)
    elif config.train.init_checkpoint and not os.path.isfile(config.train.init_checkpoint):
        raise InputError(
            f"train.init_checkpoint={config.train.init_checkpoint} does not exist: check the path"
        )
    _check_writable(config.train.output_dir)
    if not evaluation:
        _check_output_dir(config.train.output_dir, resume)
        if resume:
            check_resumed_settings(config)
    elif not resume and not config.sweep.overwrite:
        _check_sweep_dir(config.train.output_dir)
    if starts and not config.train.init_checkpoint:
        check_detectors(config, data_there=not _are_made_later(config))
        anchors = anchors_of(model)
        for name, source in config.init.weights.items():
            if source and name in anchors:
                check_weights(anchors[name], source)
    if config.data.get("prepare") is None:
        config = copy.deepcopy(config)
        settle_masks(config)
        check_data(config, training=training)


def prepare_run(config: Config, *, evaluation: bool, resume: bool) -> None:
    """Sets what a checked config leaves open: makes generated data, settles device and masks.

    Args:
        config: The whole config after :func:`preflight`, changed in place.
        evaluation: As for :func:`preflight`.
        resume: As for :func:`preflight`.

    Raises:
        InputError: If the data cannot be made, or are not usable.
    """
    if config.train.device == "auto":
        config.train.device = "cuda" if torch.cuda.is_available() else "cpu"
    is_made, were_missing = config.data.get("prepare") is not None, _are_made_later(config)
    if is_made:
        build("data.prepare", config.data.prepare)
    # load_config has done so if the data existed.
    settle_masks(config)
    if is_made:
        check_data(config, training=_trains(config, evaluation))
    initialises = _starts(config, evaluation, resume) and not config.train.init_checkpoint
    if initialises and were_missing:
        check_detectors(config, data_there=True)


def _starts(config: Config, evaluation: bool, resume: bool) -> bool:
    """Whether a run begins with the weights of ``init``; a sweep at initialisation does."""
    return config.sweep.at_initialisation if evaluation else not resume


def _trains(config: Config, evaluation: bool) -> bool:
    """Whether a run needs training data."""
    return not evaluation or config.sweep.at_initialisation


def _are_made_later(config: Config) -> bool:
    return bool(config.data.get("prepare")) and not os.path.isfile(config.data.test_json)


def _check_device(name: str) -> None:
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"train.device={name} is no device to train on: set auto, cuda or cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and not count:
        raise InputError(
            f"train.device={name}, but torch {torch.__version__} sees no GPU: set "
            "train.device=cpu, or install a driver and a torch that fit the GPU"
        )
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(
            f"train.device={name}, but torch {torch.__version__} sees {count} GPU"
            f"{'s' if count > 1 else ''}: set train.device=cuda"
        )


def _check_parts(config: Config, training: bool, evaluation: bool, num_processes: int) -> nn.Module:
    """Checks all that needs no data; returns the model on the meta device."""
    config = copy.deepcopy(config)
    if OmegaConf.is_dict(OmegaConf.select(config, "model.roi_heads.num_classes")):
        config.model.roi_heads.num_classes = 1  # counted in data that may not be there yet
    model = build_on_meta(config.model)
    _warn_of_cut_images(config, model)
    _check_image_sizes(config, training, evaluation)
    try_heads(config, model, training)
    _check_stitches(config, model, training)
    if evaluation:
        _check_sweep(config, model)
    try_loader("dataloader.test", config.dataloader.test)
    try_evaluator(config.dataloader.evaluator)
    if training:
        try_loader("dataloader.train", config.dataloader.train)
    if not evaluation:
        _check_training(config, model, num_processes)
    return model


def _warn_of_cut_images(config: Config, model: nn.Module) -> None:
    side = config.data.image_size
    for patch in {anchor.patch_size for anchor in anchors_of(model).values()}:
        if rest := side % patch:
            logger.warning(
                "data.image_size=%d is no multiple of the ViTs' patches of %d pixels: the last %d "
                "columns and rows are not seen. Set it to %d.",
                *(side, patch, rest, side - rest + patch),
            )


def _check_image_sizes(config: Config, training: bool, evaluation: bool) -> None:
    for key, loader, is_used in (
        ("sweep.image_sizes", "test", evaluation),
        ("train.image_sizes", "train", training),
    ):
        sizes = OmegaConf.select(config, key)
        for size in sizes if is_used and sizes else ():
            try:
                check_image_size(config, size, loader)
            except InputError as error:
                raise InputError(f"{key}={written(sizes)}: {error}") from error
    if training and config.train.image_sizes:
        target = located(config.dataloader.train._target_)
        if target is not build_train_loader:
            raise InputError(
                f"train.image_sizes needs the loader of build_train_loader, not {target}: leave it "
                "out"
            )


def _check_training(config: Config, model: nn.Module, num_processes: int) -> None:
    batch = config.dataloader.train.total_batch_size
    _check_batch(batch, num_processes, config.train.accumulation.steps)
    _check_freezing(config.train, model, num_processes)
    check_distillation(config.train.distillation, model)
    check_schedule(config, model)
    for group, known in _ARGUMENTS.items():
        if unknown := sorted(set(OmegaConf.select(config, group)) - known):
            raise InputError(f"{group} has no setting {unknown[0]}; it has {sorted(known)}")


def _check_stitches(config: Config, model: nn.Module, training: bool) -> None:
    backbone = find_stitched_vit(model)
    if backbone is None:
        if training and (config.train.ends.period or config.train.ends.first):
            raise InputError(
                f"train.ends is set, but the backbone {type(model.backbone.net).__name__} has no "
                "stitches to take turns: leave it out"
            )
        if anchors_of(model):
            baseline_cost(config.model)
        return
    selected = ("sweep.stitch_ids", "train.eval_stitches") if training else ("sweep.stitch_ids",)
    for key in selected:
        selection = OmegaConf.select(config, key)
        try:
            select_stitches(selection, backbone.space)
        except InputError as error:
            raise InputError(f"{key}={written(selection)}: {error}") from error
    costs = stitch_costs(config.model)
    if training:
        if "sampler" not in config:
            raise InputError("the config has no sampler, which chooses the stitch of an iteration")
        build_sampler(config, costs)
        for table in costs_by_size(config).values() if config.train.image_sizes else ():
            build_sampler(config, table)


def _check_sweep(config: Config, model: nn.Module) -> None:
    if (size := config.sweep.batch_size) > 1:
        if config.sweep.padding == "tight":
            raise InputError(
                f"sweep.batch_size={size} is for sweep.padding=square: the images of a batch would "
                "be padded to the largest of them, which changes what is detected; leave it out"
            )
        check_call("dataloader.test", {**config.dataloader.test, "batch_size": size})
    if find_stitched_vit(model) is None or config.sweep.mode == "separate":
        if config.sweep.subset:
            raise InputError(
                f"sweep.subset={config.sweep.subset} is for a stitched detector and "
                "sweep.mode=one_pass: leave it out"
            )
        return
    evaluator = config.dataloader.evaluator
    own = {key: evaluator.get(key) for key in ("tasks", "max_dets_per_image") if evaluator.get(key)}
    target = located(evaluator._target_)
    if not supports_one_pass(model) or target is not COCOEvaluator or own:
        raise InputError(
            "sweep.mode=one_pass runs a GeneralizedRCNN and scores as "
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


def _check_freezing(train: TrainSettings, model: nn.Module, num_processes: int) -> None:
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
    """Refuses to overwrite a training that has trained an iteration."""
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
        if glob.glob(os.path.join(glob.escape(path), "detections*", "*.npz")):
            raise InputError(
                f"{path} holds the detections of an interrupted sweep: add --resume to go on from "
                f"there, or {remedy}"
            )


def _num_rows(path: str) -> int:
    """The number of rows in a file of results; 0 if it has none that can be read."""
    try:
        return len(read_json(path))
    except (OSError, TypeError, ValueError):
        return 0

"""A training from its config to its last checkpoint: build, start or resume, run."""

import copy
import logging
import math
import os
from collections.abc import Callable
from contextlib import nullcontext

import torch
from detectron2.config import instantiate
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter
from torch import nn

from snnet_vitdet.building import parameters_of
from snnet_vitdet.data import category_names
from snnet_vitdet.evaluation import BASELINE, evaluate_stitch, evaluators_of
from snnet_vitdet.modeling import compile_blocks, find_stitched_vit, stitch_costs
from snnet_vitdet.stitching import CostTable, EndsSampler, select_stitches

from .checkpoint import checkpoint_to_resume, periodic_checkpoints
from .checkpointer import ClassNames, StrictCheckpointer
from .distillation import distil
from .ema import AveragedWeights
from .hooks import FreezeAnchors, MetricsFile, StopOnSignal, TensorBoardFile, WriteMetrics
from .image_size import vary_image_size
from .initialise import initialise_weights
from .learning_rate import build_schedule
from .memory_probe import log_step_costs, probe_memory
from .precision import training_precision
from .run_data import note_training_data
from .samplers import costs_by_size, crowded_anchors, ends_plan
from .saved_config import save_resumed_config
from .settings import Config
from .trainer import StitchedTrainer, build_trainer

__all__ = ["build_model", "build_optimizer", "train", "training_plan"]

logger = logging.getLogger(__name__)


def build_model(config: Config) -> nn.Module:
    """Builds the detector on its device, with the same random weights on every process."""
    seed_all_rng(config.train.seed)
    return instantiate(config.model).to(config.train.device)


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Builds the optimizer of a config for a model; the config then holds the model.

    On a GPU it runs torch's fused kernels, unless the config sets ``optimizer.fused`` or
    ``optimizer.foreach``.
    """
    node = config.optimizer
    node.params.model = model
    is_open = node.get("fused") is None and not node.get("foreach")
    if is_open and config.train.device.startswith("cuda") and "fused" in parameters_of(node):
        node.fused = True
    return instantiate(node)


def train(config: Config, resume: bool) -> None:
    """Trains a detector from the start, or from the last checkpoint of the output folder.

    Args:
        config: The whole config, checked; changed in place.
        resume: Whether to go on from the last checkpoint, if there is one.

    Raises:
        InputError: If data, weights or a checkpoint cannot be used, or a file cannot be written.
        FloatingPointError: If a loss or a proposal is not finite.
        SystemExit: If the training was asked to stop, after saving it.
    """
    as_given = copy.deepcopy(config)
    folder = config.train.output_dir
    # All processes go on from the checkpoint that the main one finds.
    found = comm.all_gather(checkpoint_to_resume(folder) if resume else "")[0]
    resume = bool(found)

    model = build_model(config)
    optimizer = build_optimizer(config, model)
    data_loader = instantiate(config.dataloader.train)
    if config.train.image_sizes:
        vary_image_size(as_given, data_loader)
    test_loader = instantiate(config.dataloader.test)
    make_evaluator = evaluators_of(config.dataloader.evaluator)
    classes = ClassNames(category_names(config.data.train_json))
    checkpointer = StrictCheckpointer(model, folder, new_classes=True, classes=classes)
    # Before the model is wrapped for several processes, which copies the first one's.
    if not resume and config.train.init_checkpoint:
        checkpointer.load(config.train.init_checkpoint, checkpointables=[], averaged=True)
    elif not resume:
        initialise_weights(config, model, data_loader, training_precision(config))

    # Before the memory probe, for the memory the average takes; and before distillation adds hooks.
    decay = config.train.ema_decay
    average = AveragedWeights(model, optimizer, decay) if decay else None
    if config.train.compile:
        # After the copy for the average, which is only evaluated.
        compile_blocks(model)
        logger.info("The blocks of the ViTs are compiled: the first iterations take minutes")
    costs = None if find_stitched_vit(model) is None else stitch_costs(config.model)
    distil(config, model, costs)
    if config.train.rehearsal and config.train.device.startswith("cuda"):
        # Also before wrapping: the wrapper keeps track of which parameters have had a gradient.
        probe_memory(config, model, optimizer, costs)
    if config.train.rehearsal and config.train.image_sizes:
        log_step_costs(config, model, costs)
    trainer = build_trainer(config, model, data_loader, optimizer, costs)
    checkpointer.add_checkpointable("trainer", trainer)
    rest = checkpointer.load(found) if resume else {}
    if average is not None:
        if resume:
            average.resume(rest)
        checkpointer.add_checkpointable("ema", average)
    elif "ema" in rest:
        logger.info("train.ema_decay is 0: the checkpoint's moving average is not kept.")
    if not resume:
        # Every later start of this training falls back on this checkpoint; resuming adds 1.
        trainer.iter = -1
        checkpointer.save("model_init")
        found = os.path.join(folder, "model_init.pth")

    start_iter = trainer.iter + 1
    if start_iter >= config.train.max_iter:
        if start_iter:
            logger.info("The training in %s is complete: %d iterations.", folder, start_iter)
        else:
            logger.info("The detectors are joined in %s; train.max_iter=0 trains nothing.", folder)
        # A training killed after its last periodic checkpoint lacks this file alone.
        if not os.path.isfile(os.path.join(folder, "model_final.pth")):
            checkpointer.save_copy(found, "model_final")
        return
    if comm.is_main_process():
        if resume:
            save_resumed_config(as_given, start_iter)
        note_training_data(as_given, start_iter, resume=resume)
    data_loader.start_iteration = start_iter
    _log_plan(config, trainer, costs, start_iter, data_loader.num_images)

    stop = StopOnSignal(checkpointer)
    evaluated = model if average is None else average.model

    def evaluate() -> dict[str, dict[str, float]]:
        # Images of every size come, each of which would be compiled.
        compiled = config.train.compile
        as_written = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        with stop.at_once(), as_written:
            return _evaluate(config, evaluated, test_loader, make_evaluator)

    freeze = FreezeAnchors(model, config.train.freeze_anchors)
    trainer.register_hooks(_hooks(config, checkpointer, freeze, stop, evaluate))
    try:
        with stop.listening():
            trainer.train(start_iter, config.train.max_iter)
    except FloatingPointError:
        # The weights before the iteration: a training started from them repeats it.
        trainer.iter -= 1
        checkpointer.save(f"not_finite_{trainer.iter + 1:07d}", tag=False, iteration=trainer.iter)
        raise
    except Exception:
        _save_after_error(trainer, checkpointer)
        raise


def _hooks(
    config: Config,
    checkpointer: StrictCheckpointer,
    freeze: FreezeAnchors,
    stop: StopOnSignal,
    evaluate: Callable[[], dict],
) -> list[HookBase]:
    """The hooks of a process, in their order; the main process writes files."""
    period = config.train.log_period
    schedule = hooks.LRScheduler(scheduler=build_schedule(config.lr_multiplier))
    common = [hooks.IterationTimer(), freeze, schedule]
    evaluation = hooks.EvalHook(config.train.eval_period, evaluate)
    if not comm.is_main_process():
        return [*common, stop, evaluation]
    folder = config.train.output_dir
    metrics = MetricsFile(os.path.join(folder, "metrics.json"), period)
    saving = hooks.PeriodicCheckpointer(checkpointer, **config.train.checkpointer)
    # max_to_keep counts the checkpoints from before a resume, too.
    saving.recent_checkpoints = periodic_checkpoints(folder)
    writers = [CommonMetricPrinter(config.train.max_iter), metrics, TensorBoardFile(folder)]
    printing = hooks.PeriodicWriter(writers, period=period)
    return [*common, WriteMetrics(metrics, period), saving, stop, evaluation, printing]


def _evaluate(
    config: Config, model: nn.Module, test_loader: object, make_evaluator: Callable
) -> dict[str, dict[str, float]]:
    """Scores of ``train.eval_stitches``, or of a baseline, by name."""
    backbone = find_stitched_vit(model)
    stitches = [BASELINE]
    if backbone is not None:
        ids = select_stitches(config.train.eval_stitches, backbone.space)
        stitches = [backbone.space[i] for i in ids]
    results = {}
    for stitch in stitches:
        scores = evaluate_stitch(model, stitch, test_loader, make_evaluator())
        results[stitch.name] = scores
        known = {key: value for key, value in scores.items() if not math.isnan(value)}
        text = ", ".join(f"{key} {value:.1f}" for key, value in known.items())
        # COCO's scorer has no scores at all where nothing is detected.
        logger.info("%s: %s", stitch.name, text or "nothing was detected")
    return results


def _save_after_error(trainer: StitchedTrainer, checkpointer: StrictCheckpointer) -> None:
    """Saves a training that an error ends, such as an image that cannot be read."""
    # trained_iter is None if nothing is new, or the error came during a step. After the last
    # iteration, everything is saved.
    if trainer.trained_iter is None or trainer.iter >= trainer.max_iter:
        return
    trainer.iter = trainer.trained_iter
    try:
        checkpointer.save_iteration(trainer.iter)
    except Exception as error:  # the first error is the one to show
        logger.warning("What was trained could not be saved either: %s", error)
        return
    logger.warning("Saved after iteration %d; --resume goes on from there.", trainer.iter)


def _log_plan(
    config: Config,
    trainer: StitchedTrainer,
    costs: CostTable | None,
    start_iter: int,
    num_images: int,
) -> None:
    # After a resume, the checkpoint's learning rate counts.
    lr = max(group.get("initial_lr", group["lr"]) for group in trainer.optimizer.param_groups)
    plan = training_plan(config, comm.get_world_size(), lr, start_iter, num_images)
    logger.info("Training: %s", plan)
    if costs is None:
        return
    samplers, tables = {"": trainer.sampler}, {"": costs}
    if config.train.image_sizes:
        samplers, tables = trainer.sampler.samplers, costs_by_size(config)
    for size, sampler in samplers.items():
        if crowded := crowded_anchors(sampler, tables[size]):
            at = f" at {size} pixels" if size else ""
            logger.warning("Training%s: %s.", at, crowded)
    if isinstance(sampler, EndsSampler):
        logger.info("Training: %s", ends_plan(sampler, trainer.backbone.space))


def training_plan(
    config: Config, num_processes: int, learning_rate: float, start_iter: int, num_images: int
) -> str:
    """Describes a training in one sentence.

    Args:
        config: The whole config.
        num_processes: Number of training processes.
        learning_rate: Rate before warm-up, milestones and layer-wise decay.
        start_iter: First iteration; above 0 if the training continues.
        num_images: Number of training images.
    """
    batch, max_iter = config.dataloader.train.total_batch_size, config.train.max_iter
    steps = config.train.accumulation.steps
    places = f"{num_processes} process{'es' if num_processes > 1 else ''}"
    micro = f"{steps} micro-batch{'es' if steps > 1 else ''} of {batch // (num_processes * steps)}"
    length = f"{max_iter} iterations" + (f", from {start_iter} on" if start_iter else "")
    return (
        f"{batch} images an iteration ({places} x {micro}), learning rate {learning_rate:g}, "
        f"{length}: {max_iter * batch / num_images:.2f} epochs of {num_images} images."
    )

#!/usr/bin/env python
"""Train, resume and evaluate: the one entry point.

    python train_net.py --config-file configs/shapes/mask_rcnn_snnet_nano.py [key=value ...]
    python train_net.py --config-file F --resume
    python train_net.py --config-file F --eval-only train.init_checkpoint=output/F/model_final.pth

Behaves as detectron2's lazyconfig_train_net.py; --eval-only sweeps over the stitches of
sweep.stitch_ids and writes tables, pareto.png and report.html to sweep/ in train.output_dir.
"""

import contextlib
import copy
import logging
import os

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import torch
from detectron2.config import instantiate
from detectron2.engine import default_argument_parser, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter
from detectron2.utils.logger import setup_logger

from snnet_vitdet.data import category_names
from snnet_vitdet.deploy import Predictor, write_sweep_report
from snnet_vitdet.engine import (
    AUTO,
    AveragedWeights,
    ClassNames,
    FreezeAnchors,
    MetricsFile,
    StopOnSignal,
    StrictCheckpointer,
    TensorBoardFile,
    WriteMetrics,
    alone_in,
    apply_linear_scaling,
    build_schedule,
    build_trainer,
    checkpoint_to_evaluate,
    checkpoint_to_resume,
    crowded_anchors,
    distil,
    ends_plan,
    fit_stitching_layers,
    load_anchors,
    load_config,
    load_detectors,
    note_training_data,
    preflight,
    rehearse_training,
    run_folder,
    run_in_processes,
    save_resumed_config,
    set_up,
    training_plan,
    training_precision,
)
from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.evaluation import (
    BASELINE,
    CocoScorer,
    evaluate_stitch,
    evaluators_of,
    format_table,
    provenance_of,
    sweep,
    two_stage_sweep,
)
from snnet_vitdet.modeling import JoinedRCNN, baseline_cost, find_stitched_vit, stitch_costs
from snnet_vitdet.report import drawing, plot_pareto
from snnet_vitdet.stitching import EndsSampler, select_stitches

logger = logging.getLogger("snnet_vitdet.train_net")


def build_model(config):
    """The detector on its device; the same random weights on every process."""
    seed_all_rng(config.train.seed)
    return instantiate(config.model).to(config.train.device)


def initialise(config, model, data_loader, precision):
    """Pretrained anchors, and stitching layers fitted between them for a precision."""
    mapper = None
    if isinstance(model, JoinedRCNN):
        names = category_names(config.data.train_json)
        load_detectors(model, config.init.detectors, names)
        # What two trained detectors have learnt meets images as they are, not as they were cropped.
        mapper = instantiate(config.dataloader.test.mapper)
    else:
        load_anchors(model, config.init.weights)
    if find_stitched_vit(model) is None:
        return
    if config.init.stitching_layers == "least_squares":
        num_images = config.init.num_images
        fit_stitching_layers(
            model,
            data_loader.fit_samples(num_images, mapper),
            data_loader.held_out_samples(num_images, mapper),
            precision,
        )


def do_train(config, resume):
    """Trains from the start, or on from the last checkpoint of the output folder."""
    as_given = copy.deepcopy(config)
    model = build_model(config)
    config.optimizer.params.model = model
    optimizer = instantiate(config.optimizer)
    data_loader = instantiate(config.dataloader.train)
    test_loader = instantiate(config.dataloader.test)
    make_evaluator = evaluators_of(config.dataloader.evaluator)
    checkpointer = StrictCheckpointer(
        model,
        config.train.output_dir,
        new_classes=True,
        classes=ClassNames(category_names(config.data.train_json)),
    )
    # All processes go on from the checkpoint that the main one sees.
    found = comm.all_gather(checkpoint_to_resume(config.train.output_dir) if resume else "")[0]
    resume = bool(found)
    # Before the model is wrapped for several processes, which hands the first one's weights to all.
    if not resume and config.train.init_checkpoint:
        checkpointer.load(config.train.init_checkpoint, checkpointables=[], averaged=True)
    elif not resume:
        initialise(config, model, data_loader, training_precision(config))
    # Before the rehearsal, for the memory it takes; and of the model as it is without a training.
    decay = config.train.ema_decay
    average = AveragedWeights(model, optimizer, decay) if decay else None
    costs = None if find_stitched_vit(model) is None else stitch_costs(config.model)
    distil(config, model, costs)
    if config.train.rehearsal and config.train.device.startswith("cuda"):
        # Also before it is wrapped: the wrapper notes which parameters have had a gradient.
        rehearse_training(config, model, optimizer, costs)
    trainer = build_trainer(config, model, data_loader, optimizer, costs)
    checkpointer.add_checkpointable("trainer", trainer)
    go_on_from(found, checkpointer, average)
    if not resume:
        # What every later start of this training goes back to; resuming adds 1.
        trainer.iter = -1
        checkpointer.save("model_init")
        found = os.path.join(config.train.output_dir, "model_init.pth")
    start_iter = trainer.iter + 1
    if start_iter >= config.train.max_iter:
        logger.info("%s is trained: %d iterations.", config.train.output_dir, start_iter)
        # Killed after its last periodic checkpoint, a training has everything but this file.
        if not os.path.isfile(os.path.join(config.train.output_dir, "model_final.pth")):
            checkpointer.save_copy(found, "model_final")
        return
    if comm.is_main_process():
        if resume:
            save_resumed_config(as_given, start_iter)
        note_training_data(as_given, start_iter, resume=resume)
    data_loader.start_iteration = start_iter
    plan = training_plan(
        batch=config.dataloader.train.total_batch_size,
        num_processes=comm.get_world_size(),
        accumulation_steps=config.train.accumulation.steps,
        # What counts after a resume is the checkpoint's.
        learning_rate=max(g.get("initial_lr", g["lr"]) for g in optimizer.param_groups),
        start_iter=start_iter,
        max_iter=config.train.max_iter,
        num_images=data_loader.num_images,
    )
    logger.info("Training: %s", plan)
    if costs is not None and (crowded := crowded_anchors(trainer.sampler, costs)):
        logger.warning("Training: %s.", crowded)
    if isinstance(trainer.sampler, EndsSampler):
        logger.info("Training: %s", ends_plan(trainer.sampler, trainer.backbone.space))

    stop = StopOnSignal(checkpointer)

    def evaluate():
        with stop.at_once():
            return scores_of_eval_stitches()

    def scores_of_eval_stitches():
        evaluated = model if average is None else average.model
        backbone = find_stitched_vit(model)
        stitches = [BASELINE]
        if backbone is not None:
            ids = select_stitches(config.train.eval_stitches, backbone.space)
            stitches = [backbone.space[i] for i in ids]
        results = {}
        for stitch in stitches:
            evaluator = make_evaluator()
            results[stitch.name] = evaluate_stitch(evaluated, stitch, test_loader, evaluator)
            scores = ", ".join(f"{key} {value:.1f}" for key, value in results[stitch.name].items())
            logger.info("%s: %s", stitch.name, scores)
        return results

    main = comm.is_main_process()
    folder, log_period = config.train.output_dir, config.train.log_period
    if main:
        metrics = MetricsFile(os.path.join(folder, "metrics.json"), log_period)
        keeper = hooks.PeriodicCheckpointer(checkpointer, **config.train.checkpointer)
        # Of max_to_keep, those from before a resume are a part.
        keeper.recent_checkpoints = checkpointer.periodic_checkpoints()
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            FreezeAnchors(model, config.train.freeze_anchors),
            hooks.LRScheduler(scheduler=build_schedule(config.lr_multiplier)),
            WriteMetrics(metrics, log_period) if main else None,
            keeper if main else None,
            stop,
            hooks.EvalHook(config.train.eval_period, evaluate),
            hooks.PeriodicWriter(
                [CommonMetricPrinter(config.train.max_iter), metrics, TensorBoardFile(folder)],
                period=log_period,
            )
            if main
            else None,
        ]
    )
    try:
        with stop.listening():
            trainer.train(start_iter, config.train.max_iter)
    except FloatingPointError:
        # What the last iteration has left: a training that is started from it repeats this one.
        trainer.iter -= 1
        checkpointer.save(f"not_finite_{trainer.iter + 1:07d}", tag=False, iteration=trainer.iter)
        raise
    except Exception:
        save_what_is_trained(trainer, checkpointer)
        raise


def go_on_from(checkpoint, checkpointer, average):
    """Loads the checkpoint of a training, if any; its average stays one of what is saved."""
    rest = checkpointer.load(checkpoint) if checkpoint else {}
    if average is not None:
        if checkpoint:
            average.resume(rest)
        checkpointer.add_checkpointable("ema", average)
    elif "ema" in rest:
        logger.info("train.ema_decay is 0: the checkpoint's moving average is not kept.")


def save_what_is_trained(trainer, checkpointer):
    """Saves a training that an error ends, such as an image that cannot be read."""
    # None if there is nothing new, or if the weights were being changed. After the last iteration,
    # all is saved.
    if trainer.trained_iter is None or trainer.iter >= trainer.max_iter:
        return
    trainer.iter = trainer.trained_iter
    try:
        checkpointer.save_iteration(trainer.iter)
    except Exception as error:  # whatever it is: the first one is the one to show
        logger.warning("What was trained could not be saved either: %s", error)
        return
    logger.warning("Saved after iteration %d; --resume goes on from there.", trainer.iter)


def load_for_sweep(config, model):
    """Puts weights into a model.

    Returns:
        Their checkpoint, if any, and their iterations; whether they are its moving average, None
        if it has none.
    """
    if config.sweep.at_initialisation:
        precision = getattr(torch, config.sweep.precision)
        initialise(config, model, instantiate(config.dataloader.train), precision)
        return None, 0, None
    classes = ClassNames(category_names(config.data.test_json))
    checkpoint = checkpoint_to_evaluate(config.train.init_checkpoint, config.train.output_dir)
    averaged = config.sweep.averaged
    rest = StrictCheckpointer(model, classes=classes).load(checkpoint, averaged=averaged)
    # The checkpoint has the index of the last iteration.
    iteration = rest["trainer"]["iteration"] + 1 if "trainer" in rest else None
    return checkpoint, iteration, averaged if "ema" in rest else None


def do_sweep(config, resume):
    """Scores the stitches of sweep.stitch_ids, and writes tables, picture and page."""
    model = build_model(config)
    checkpoint, iteration, averaged = load_for_sweep(config, model)
    backbone = find_stitched_vit(model)
    output_dir = os.path.join(config.train.output_dir, "sweep")
    scorer = None
    if backbone is not None and config.sweep.mode == "one_pass":
        scorer = CocoScorer(instantiate(config.dataloader.evaluator.dataset_name))
    data_loader = instantiate(config.dataloader.test)
    costs = [baseline_cost(config.model)] if backbone is None else stitch_costs(config.model)
    make_evaluator = evaluators_of(config.dataloader.evaluator)
    provenance = provenance_of(config, checkpoint, averaged)

    def run(stitch_ids, folder, subset):
        return sweep(
            model,
            stitch_ids,
            costs,
            data_loader,
            make_evaluator,
            folder,
            scorer=scorer,
            subset=subset,
            precision=config.sweep.precision,
            iteration=iteration,
            provenance=provenance,
            resume=resume,
        )

    ids = select_stitches(config.sweep.stitch_ids, backbone.space) if backbone else [0]
    if 0 < config.sweep.subset < len(data_loader.dataset):
        table = two_stage_sweep(run, ids, output_dir, config.sweep.subset)
    else:
        table = run(ids, output_dir, 0)
    if comm.is_main_process():
        logger.info("Results in %s:\n%s", output_dir, format_table(table.rows()))
        picture = os.path.join(output_dir, "pareto.png")
        try:
            with drawing(picture):
                plot_pareto(table.rows(), picture)
        except InputError as error:
            logger.warning("There is no picture: %s", error)
        report_sweep(config, model)
    return table


def report_sweep(config, model):
    """Writes report.html with sample detections of the model, which is used up by it."""

    def predictor(table):
        return Predictor.of_model(
            model,
            category_names(config.data.test_json),
            config.dataloader.test.mapper,
            table=table,
            device=config.train.device,
            precision=config.sweep.precision,
        )

    try:
        with drawing("report.html"):
            write_sweep_report(config, predictor)
    except InputError as error:
        # Hours of scoring are done and saved.
        logger.warning("There is no report: %s", error)


def main(args, config, notes=()):
    """One process of a run; notes are what the log has to say of what came before it."""
    if config.train.device == "cpu" and comm.get_local_size() > 1:
        # More threads than cores make OpenMP's barriers wait ten times longer than the arithmetic.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))
    with alone_in(run_folder(config, args)) if comm.is_main_process() else contextlib.nullcontext():
        set_up(config, args)
        for note in notes:
            logger.info(note)
        (do_sweep if args.eval_only else do_train)(config, args.resume)


def cli():
    """Reads the command line, checks everything, and starts the processes."""
    parser = default_argument_parser(epilog=__doc__)
    # A fixed port, as detectron2 has it, would let a user train once at a time on a machine.
    parser.set_defaults(dist_url=AUTO)
    args = parser.parse_args()
    setup_logger(name="snnet_vitdet", distributed_rank=int(os.environ.get("RANK", 0)))

    def prepare(num_processes):
        config = load_config(args.config_file, args.opts)
        notes = [] if args.eval_only else apply_linear_scaling(config)
        preflight(
            config, evaluation=args.eval_only, resume=args.resume, num_processes=num_processes
        )
        return config, notes

    with exit_on_input_error():
        run_in_processes(prepare, main, args)


if __name__ == "__main__":
    cli()

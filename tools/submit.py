#!/usr/bin/env python
"""Submits a training or a sweep to Slurm, as a job that saves and goes on when it is interrupted.

    python tools/submit.py --nodes 2 --gpus-per-node 8 --hours 72 --partition gpu -- \\
        --config-file configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py [key=value ...]
    python tools/submit.py --local -- --config-file F [--resume] [--eval-only] [key=value ...]

What follows -- is for train_net.py, which is started once on every node. What train_net.py would
refuse is refused here, before the job waits for its turn. Logs are in slurm/ of train.output_dir.
"""

import argparse
import contextlib
import os
import re
import shutil
import sys
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import torch
from detectron2.engine import default_argument_parser

from snnet_vitdet.engine import apply_linear_scaling, load_config, preflight
from snnet_vitdet.engine.checkpoint import last_checkpoint
from snnet_vitdet.errors import InputError, exit_on_input_error

try:
    import submitit

    from snnet_vitdet.cluster import Training
except ImportError:
    submitit = None

TRAIN_NET = Path(__file__).resolve().parent.parent / "train_net.py"
# What sbatch is told by options of this program, or by submitit.
OWN = {
    "nodes": "--nodes",
    "gpus-per-node": "--gpus-per-node",
    "cpus-per-task": "--cpus-per-node",
    "time": "--hours",
    "partition": "--partition",
    "job-name": "--name",
    "signal": "--grace",
    **dict.fromkeys(("ntasks", "ntasks-per-node"), "--nodes: there is one task on each"),
    **dict.fromkeys(("output", "error", "open-mode"), "train.output_dir"),
    **dict.fromkeys(("array", "requeue", "no-requeue"), "another program: a job is one run"),
}


def arguments():
    """The command line up to --, and that of train_net.py behind it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N")
    parser.add_argument(
        "--gpus-per-node", type=int, default=1, metavar="N", help="processes, with train.device=cpu"
    )
    parser.add_argument("--cpus-per-node", type=int, metavar="N", help="default: enough for data")
    parser.add_argument("--hours", type=float, default=24.0, help="time limit (default 24)")
    parser.add_argument("--partition", metavar="NAME")
    parser.add_argument("--name", help="of the job; default: that of the output folder")
    parser.add_argument(
        "--extra",
        action="append",
        default=[],
        metavar="KEY[=VALUE]",
        help="any other option of sbatch: account=vision, qos=long, constraint=h100, exclusive",
    )
    parser.add_argument(
        "--grace",
        type=int,
        default=180,
        metavar="SECONDS",
        help="how long before its end the job is to save (default 180)",
    )
    parser.add_argument(
        "--max-requeues",
        type=int,
        default=10,
        metavar="N",
        help="how often it goes on after its time limit (default 10); preemptions do not count",
    )
    parser.add_argument(
        "--local", action="store_true", help="run it on this machine, without Slurm"
    )
    words = sys.argv[1:]
    there = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:there])
    if there == len(words):
        raise InputError("nothing to run: add -- and what train_net.py is to be started with")
    training = default_argument_parser().parse_args(words[there + 1 :])
    for name in ("num_gpus", "num_machines", "machine_rank", "dist_url"):
        option = f"--{name.replace('_', '-')}"
        if any(word.split("=")[0] == option for word in words[there + 1 :]):
            raise InputError(f"{option} is set for every node: leave it out, see --nodes")
    return args, training


def check_numbers(args):
    """Refuses numbers that make no job."""
    for name, lowest in (
        ("nodes", 1),
        ("gpus_per_node", 1),
        ("cpus_per_node", 1),
        ("grace", 10),
        ("max_requeues", 0),
    ):
        value = getattr(args, name)
        if value is not None and value < lowest:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least {lowest}")
    # Slurm counts minutes.
    if not args.hours * 60 >= 1 or args.hours * 3600 <= args.grace:
        raise InputError(
            f"--hours {args.hours:g} must be at least a minute, and longer than the --grace of "
            f"{args.grace} seconds"
        )


def check_training(args, training):
    """Checks what train_net.py checks, without the GPUs of the node; returns the config."""
    config = load_config(training.config_file, training.opts)
    asked_for = config.train.device
    if asked_for == "auto" or asked_for.startswith("cuda"):
        # Here there may be none.
        config.train.device = "cpu"
    if not training.eval_only:
        apply_linear_scaling(config)
    preflight(
        config,
        evaluation=training.eval_only,
        resume=training.resume,
        num_processes=args.nodes * args.gpus_per_node,
    )
    config.train.device = asked_for
    folder = config.train.output_dir
    if not (training.eval_only or training.resume) and last_checkpoint(folder):
        raise InputError(
            f"{folder} already holds the beginning of a training, with which the job would go on: "
            "add --resume behind -- to do so, or choose another train.output_dir"
        )
    if training.eval_only and config.sweep.overwrite:
        raise InputError(
            "sweep.overwrite=True would begin anew whenever the job is started again: delete "
            f"{os.path.join(folder, 'sweep')}, and leave it out"
        )
    for option, text in (
        ("train.output_dir=", os.path.abspath(folder)),
        ("--name ", args.name or ""),
        ("--partition ", args.partition or ""),
    ):
        if "%" in text or not text.isprintable():
            raise InputError(
                f"{option}{text!r} has a %, which stands for something else in names of Slurm's "
                "logs, or a character that cannot be printed: choose another"
            )
    return config


def extra_options(texts):
    """Options of sbatch by name; True for one without a value."""
    options = {}
    for text in texts:
        key, given, value = text.partition("=")
        key = key.replace("_", "-")
        if (
            not re.fullmatch(r"[a-z][a-z-]*", key)
            or (given and not value)
            or not text.isprintable()
        ):
            raise InputError(
                f"--extra {text!r} is no option of sbatch: write account=vision, or exclusive"
            )
        if key in OWN:
            raise InputError(f"--extra {text} is set already: use {OWN[key]}")
        options[key] = value if given else True
    return options


def command_of(args, training, on_cluster, config):
    """What runs on every node, and the overrides that go behind the options that name it."""
    command = [sys.executable, str(TRAIN_NET), "--config-file", training.config_file, "--resume"]
    if training.eval_only:
        command.append("--eval-only")
    overrides = list(training.opts)
    if on_cluster and config.train.device == "auto":
        # Rather refused than trained for days on the CPU of a node whose GPUs are not seen.
        overrides.append("train.device=cuda")
    return [*command, "--num-gpus", str(args.gpus_per_node)], overrides


def slurm_executor(args, config, folder):
    """Submitit's executor for Slurm, with what the job asks for."""
    # Of each process on a node: itself and its data workers.
    loaders = config.dataloader.train, config.dataloader.test
    workers = max(loader.num_workers for loader in loaders)
    cpus = args.cpus_per_node or args.gpus_per_node * (1 + workers)
    extra = extra_options(args.extra)
    executor = submitit.SlurmExecutor(folder, max_num_timeout=args.max_requeues)
    on_gpu = config.train.device != "cpu"
    executor.update_parameters(
        job_name=args.name or Path(config.train.output_dir).resolve().name,
        partition=args.partition,
        time=int(args.hours * 60),
        nodes=args.nodes,
        ntasks_per_node=1,
        cpus_per_task=cpus,
        # A cluster that counts them as generic resources is asked by --extra gres=gpu:8.
        gpus_per_node=args.gpus_per_node if on_gpu and "gres" not in extra else None,
        signal_delay_s=args.grace,
        # Some clusters refuse keys that they do not know.
        wckey=None,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True, **extra},
        srun_args=[
            # Since Slurm 22.05 it does not take this over from sbatch.
            f"--cpus-per-task={cpus}",
            # A job that was requeued goes on with its log.
            "--open-mode=append",
            # The others would wait for one that has failed.
            "--kill-on-bad-exit=1",
        ],
    )
    return executor


def local_executor(args, config, folder):
    """Submitit's executor for this machine."""
    on_gpu = config.train.device != "cpu" and torch.cuda.is_available()
    if args.nodes > 1 and on_gpu:
        raise InputError(
            f"--nodes {args.nodes} with --local would use each GPU {args.nodes} times: leave out "
            "--nodes, or try it with train.device=cpu"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not re.fullmatch(r"(\d+(,\d+)*)?", visible):
        raise InputError(f"CUDA_VISIBLE_DEVICES={visible} must name GPUs by number for --local")
    executor = submitit.LocalExecutor(folder, max_num_timeout=args.max_requeues)
    try:
        executor.update_parameters(
            timeout_min=int(args.hours * 60),
            tasks_per_node=args.nodes,
            gpus_per_node=args.gpus_per_node if on_gpu else 0,
            visible_gpus=[int(number) for number in visible.split(",") if number],
            signal_delay_s=args.grace,
            stderr_to_stdout=True,
        )
    except ValueError as error:
        raise InputError(
            f"--gpus-per-node {args.gpus_per_node} on this machine: {error}"
        ) from error
    return executor


@contextlib.contextmanager
def detached():
    """Lets what is started have no part in this program's output, which may be waited for."""
    sys.stdout.flush()
    own = {stream.fileno(): os.dup(stream.fileno()) for stream in (sys.__stdout__, sys.__stderr__)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in own:
            os.dup2(nowhere, number)
        yield
    finally:
        for number, before in own.items():
            os.dup2(before, number)
            os.close(before)
        os.close(nowhere)


def run(args, training):
    """Checks, submits, and says how to follow and to end the job."""
    if submitit is None:
        raise InputError("submitit is not installed: pip install -r requirements-slurm.txt")
    if not args.local and not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError(
            "sbatch and srun are not there, so this is no machine of a Slurm cluster: submit from "
            "one, or try the command here with --local"
        )
    check_numbers(args)
    config = check_training(args, training)
    folder = Path(config.train.output_dir).resolve() / "slurm"
    make_executor = local_executor if args.local else slurm_executor
    executor = make_executor(args, config, folder)
    command, overrides = command_of(args, training, not args.local, config)
    try:
        with detached() if args.local else contextlib.nullcontext():
            job = executor.submit(Training(command, overrides, args.grace))
    except submitit.core.utils.FailedJobError as error:
        raise InputError(f"Slurm refuses the job: {error}") from error
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error
    print(f"Job {job.job_id}: {args.nodes} x {args.gpus_per_node} processes, {args.hours:g} hours")
    print(f"  log     {job.paths.stdout}")
    print(f"  follow  tail -F {job.paths.stdout}")
    if args.local:
        print(f"  stop    kill {job.job_id}  (saves; --resume goes on)")
    else:
        print(f"  state   squeue --job {job.job_id}")
        print(f"  cancel  scancel {job.job_id}")


def main():
    """Runs the program."""
    with exit_on_input_error():
        run(*arguments())


if __name__ == "__main__":
    main()

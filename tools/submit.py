#!/usr/bin/env python
"""Submits a training or a sweep to Slurm, as a job that saves and resumes when it is interrupted.

    python tools/submit.py --nodes 2 --gpus-per-node 8 --hours 72 --partition gpu -- \\
        --config-file configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py [key=value ...]
    python tools/submit.py --local -- --config-file F [--resume] [--eval-only] [key=value ...]

The arguments after -- are those of train_net.py, which runs once on every node. They are checked
before the job is submitted. Logs are written to slurm/ in train.output_dir.
"""

import argparse
import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from detectron2.engine import default_argument_parser

from snnet_vitdet.engine import apply_linear_scaling, load_config, preflight, prepare_run
from snnet_vitdet.engine.checkpoint import last_checkpoint
from snnet_vitdet.errors import InputError, exit_on_input_error

try:
    import submitit
except ImportError:
    submitit = None

logger = logging.getLogger("submitit")  # writes to the log of the job
TRAIN_NET = str(Path(__file__).resolve().parent.parent / "train_net.py")
INPUT_ERROR = 2
# Statuses of a training that SIGTERM stopped, after a checkpoint or before its first iteration.
STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)
# More than Slurm usually leaves a preempted job (KillWait, GraceTime).
SECONDS_UNTIL_PREEMPTED = 600
# What sbatch is told by options of this program, and not by --extra.
OWN = {"nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal"}
OWN |= {"partition", "job-name", "output", "error", "open-mode", "array", "requeue", "no-requeue"}


class TrainNet:
    """Runs train_net.py on one node of a job; submitit calls ``checkpoint`` to interrupt it."""

    def __init__(self, options, overrides, grace, variables):
        self.options, self.overrides = options, overrides
        self.grace, self.variables = grace, variables

    def command(self, job):
        """The command line on this node; several nodes meet at the address of the first."""
        where = ["--dist-url", "auto"]
        if job.num_tasks > 1:
            # With --local, the tasks share this machine.
            host = job.hostnames[0] if job.num_nodes > 1 else "127.0.0.1"
            # Equal on all nodes, different for the next job, and below Linux's ephemeral ports.
            port = 10000 + int(job.raw_job_id) % 20000
            where = ["--num-machines", str(job.num_tasks), "--machine-rank", str(job.global_rank)]
            where += ["--dist-url", f"tcp://{host}:{port}"]
        return [sys.executable, TRAIN_NET, *self.options, *where, *self.overrides]

    def __call__(self):
        job = submitit.JobEnvironment()
        # Slurm may send the signals to train_net.py as well. The one for submitit would end it, so
        # that it inherits it blocked. Here they are blocked until the training has stopped.
        for_submitit = getattr(signal, f"SIG{job.USR_SIG}")
        signal.pthread_sigmask(signal.SIG_BLOCK, {for_submitit})
        environment = {**os.environ, **self.variables, "PYTHONUNBUFFERED": "1"}
        training = subprocess.Popen(self.command(job), env=environment)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        logger.info(f"Task {job.global_rank}, process {os.getpid()}: started {training.pid}")
        try:
            interrupted = self.follow(training, for_submitit)
        finally:
            # At Ctrl-C: the local executor kills this process a second later, but not that one.
            training.kill()
        status = training.returncode
        if status in STOPPED and job.cluster == "slurm" and not interrupted:
            # Slurm requeues a preempted job only if it has not ended by itself.
            logger.warning("The training has stopped; waiting for Slurm.")
            seconds = max(self.grace, SECONDS_UNTIL_PREEMPTED)
            interrupted = signal.sigtimedwait({for_submitit}, seconds) is not None
        if interrupted and status not in (0, INPUT_ERROR):
            # submitit requeues the job and ends this process, on the first node.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {for_submitit})
            signal.raise_signal(for_submitit)
            if job.cluster == "slurm":
                time.sleep(SECONDS_UNTIL_PREEMPTED)
        if status in STOPPED:
            logger.error("The training was stopped; submit it again with --resume to go on.")
        elif status:
            logger.error(f"The training ended with status {status}; see the lines above.")
        if status:
            sys.exit(status if status > 0 else 128 - status)

    def follow(self, training, for_submitit):
        """Waits for the end of the training, and asks it to stop when the job is asked to.

        Returns:
            Whether the signal for submitit has come.
        """
        asked, interrupted, deadline = False, False, float("inf")
        while training.poll() is None:
            received = signal.sigtimedwait({for_submitit, signal.SIGTERM}, 0.1)
            if received and not asked:
                asked = True
                training.terminate()
            if received and received.si_signo == for_submitit and not interrupted:
                interrupted = True
                # The rest of the grace period is for requeueing.
                deadline = time.monotonic() + max(self.grace - 30, self.grace / 2)
            if time.monotonic() > deadline:
                logger.warning("The training is killed: it did not stop within the grace period.")
                training.kill()
                training.wait()
        return interrupted

    def checkpoint(self):
        """What the job does when submitit has requeued it."""
        return submitit.helpers.DelayedSubmission(self)


def sbatch_option(text):
    """The key of an option of sbatch, and its value, True if it has none."""
    key, equals, value = text.partition("=")
    key = key.replace("_", "-")
    known = re.fullmatch("[a-z-]+", key) and key not in OWN
    if not known or (equals and not value) or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no option of sbatch, or one that has its own option here (see --help)"
        )
    return key, value if equals else True


def arguments():
    """The arguments of this program and of train_net.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--nodes", type=int, default=1)
    add("--gpus-per-node", type=int, default=1, help="processes, with train.device=cpu")
    add("--cpus-per-node", type=int, help="default: one for each process and data worker")
    add("--hours", type=float, default=24.0, help="time limit (default 24)")
    add("--partition")
    add("--name", help="of the job; default: the name of the output folder")
    add("--extra", type=sbatch_option, action="append", default=[], help="such as account=vision")
    add("--grace", type=int, default=180, help="seconds before the limit to save (default 180)")
    add("--max-requeues", type=int, default=10, help="after the time limit (default 10)")
    add("--local", action="store_true", help="run on this machine, without Slurm")
    if "--" not in sys.argv:
        parser.error("nothing to run: add -- and the arguments of train_net.py")
    split = sys.argv.index("--")
    args = parser.parse_args(sys.argv[1:split])
    training = default_argument_parser().parse_args(sys.argv[split + 1 :])
    for name, lowest in {"nodes": 1, "gpus_per_node": 1, "grace": 10, "max_requeues": 0}.items():
        if getattr(args, name) < lowest:
            parser.error(f"--{name.replace('_', '-')} must be at least {lowest}")
    if not args.hours * 60 >= 1 or args.hours * 3600 <= args.grace:
        parser.error(f"--hours {args.hours:g} must be longer than --grace and at least a minute")
    if training.num_gpus > 1 or training.num_machines > 1 or training.machine_rank:
        parser.error("--nodes and --gpus-per-node take the place of --num-gpus and --num-machines")
    return args, training


def check(args, training):
    """Checks what can be checked without the GPUs of the nodes; returns the config."""
    config = load_config(training.config_file, training.opts)
    device, config.train.device = config.train.device, "cpu"
    if not training.eval_only:
        apply_linear_scaling(config)
    processes = args.nodes * args.gpus_per_node
    mode = {"evaluation": training.eval_only, "resume": training.resume}
    preflight(config, num_processes=processes, **mode)
    prepare_run(config, **mode)
    config.train.device = device
    folder = config.train.output_dir
    if not (training.eval_only or training.resume) and last_checkpoint(folder):
        raise InputError(
            f"{folder} already holds the beginning of a training: add --resume after -- to go on "
            "with it, or choose another train.output_dir"
        )
    if training.eval_only and config.sweep.overwrite:
        raise InputError("sweep.overwrite=True would begin anew at every requeue: leave it out")
    if args.local and args.nodes > 1 and device != "cpu":
        raise InputError(f"--nodes {args.nodes} with --local needs train.device=cpu")
    if "%" in os.path.abspath(folder):
        raise InputError(f"train.output_dir={folder} has a %, which Slurm replaces: choose another")
    return config


def executor_of(args, config, folder):
    """submitit's executor, for Slurm or for this machine."""
    minutes, gpus = int(args.hours * 60), args.gpus_per_node
    if args.local:
        executor = submitit.LocalExecutor(folder, max_num_timeout=args.max_requeues)
        own = {"timeout_min": minutes, "tasks_per_node": args.nodes, "gpus_per_node": gpus}
    else:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=args.max_requeues)
        loaders = config.dataloader.train, config.dataloader.test
        cpus = args.cpus_per_node or gpus * (1 + max(loader.num_workers for loader in loaders))
        extra = dict(args.extra)
        own = {
            "job_name": args.name or Path(config.train.output_dir).resolve().name,
            "partition": args.partition,
            "time": minutes,
            "nodes": args.nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": cpus,
            "gpus_per_node": None if config.train.device == "cpu" or "gres" in extra else gpus,
            "wckey": None,  # some clusters refuse unknown keys
            "additional_parameters": {"requeue": True, **extra},
            # srun takes over the CPUs only before Slurm 22.05. A requeued job appends to its log.
            # If one node fails, all stop.
            "srun_args": [f"--cpus-per-task={cpus}", "--open-mode=append", "--kill-on-bad-exit=1"],
        }
    executor.update_parameters(signal_delay_s=args.grace, stderr_to_stdout=True, **own)
    return executor


@contextlib.contextmanager
def no_output():
    """Lets a process that is started here run on without keeping a pipe of this program open."""
    sys.stdout.flush()
    own, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for number, saved in enumerate(own, start=1):
            os.dup2(saved, number)
            os.close(saved)
        os.close(nowhere)


def main():
    """Checks, submits, and says how to follow and to stop the job."""
    args, training = arguments()
    if submitit is None:
        raise InputError("submitit is not installed: pip install -r requirements-slurm.txt")
    if not args.local and not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError("this is no machine of a Slurm cluster: try it here with --local")
    config = check(args, training)
    folder = Path(config.train.output_dir).resolve() / "slurm"
    options = ["--config-file", training.config_file, "--resume"]
    options += ["--eval-only"] if training.eval_only else []
    options += ["--num-gpus", str(args.gpus_per_node)]
    overrides = list(training.opts)
    if not args.local and config.train.device == "auto":
        # Do not train for days on the CPU of a node whose GPUs are not seen.
        overrides.append("train.device=cuda")
    # submitit's local executor sets it.
    variables = {k: v for k, v in os.environ.items() if k == "CUDA_VISIBLE_DEVICES"}
    training = TrainNet(options, overrides, args.grace, variables if args.local else {})
    try:
        executor = executor_of(args, config, folder)
        with no_output() if args.local else contextlib.nullcontext():
            job = executor.submit(training)
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


if __name__ == "__main__":
    with exit_on_input_error():
        main()

"""What submitit runs on each machine, with stand-ins for train_net.py: signals, ends, addresses."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import submitit
from runs import TIMEOUT, wait_until
from submitit.helpers import DelayedSubmission
from submitit.slurm.slurm import SlurmJobEnvironment

from snnet_vitdet.cluster import Training, launch_options

# Saves at SIGTERM, as train_net.py does, and is through when it is started again.
STAND_IN = """
import pathlib, signal, sys, time
state = pathlib.Path(sys.argv[1])
def save(*_):
    state.write_text("saved")
    sys.exit(143)
if not state.exists():
    signal.signal(signal.SIGTERM, save)
    print("begun", flush=True)
    time.sleep(600)
print("gone on", flush=True)
"""
DEAF = STAND_IN.replace("signal.SIGTERM, save", "signal.SIGTERM, signal.SIG_IGN")
FAILS = "import sys; print('the reason'); print('on two lines', file=sys.stderr); sys.exit(7)"


@pytest.fixture
def submit(tmp_path):
    """Starts a job of this machine that runs a script in place of train_net.py."""
    jobs = []

    def submit(script, grace=40, **parameters):
        executor = submitit.LocalExecutor(tmp_path / "jobs")
        executor.update_parameters(
            timeout_min=60, signal_delay_s=grace, stderr_to_stdout=True, **parameters
        )
        command = [sys.executable, "-c", script, str(tmp_path / "state")]
        jobs.append(executor.submit(Training(command, [], grace)))
        return jobs[-1]

    yield submit
    for job in jobs:
        job.cancel()


def log_of(job, task=0):
    """What the job prints; not the command that it starts, which has all words of the script."""
    path = job.task(task).paths.stdout
    return re.sub(r"(started process \d+).*", r"\1", path.read_text()) if path.exists() else ""


def processes_of(log):
    """Those of submitit and those of the training, in the order they were started."""
    return re.findall(r"process (\d+): started process (\d+)", log)


def begun(job):
    """Process ids of submitit's task and of the training, once that has begun."""
    wait_until(lambda: "begun" in log_of(job))
    return tuple(map(int, processes_of(log_of(job))[0]))


def is_there(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def result_of(job):
    """What the job has failed with, if it has, once it is over."""
    wait_until(lambda: job.done() and job.paths.result_pickle.exists())
    return job.exception()


def test_an_interrupted_job_has_the_training_save_and_goes_on_with_it(submit):
    job = submit(STAND_IN)
    task, _ = begun(job)
    os.kill(task, signal.SIGUSR2)
    assert result_of(job) is None
    log = log_of(job)
    assert log.index("begun") < log.index("Requeued job") < log.index("gone on")
    assert len(processes_of(log)) == 2


def test_the_signal_to_interrupt_does_not_end_a_training_that_gets_it_too(submit, tmp_path):
    """Schedulers may send it to all processes, and it ends one that does not expect it."""
    job = submit(STAND_IN)
    task, training = begun(job)
    os.kill(training, signal.SIGUSR2)
    time.sleep(0.3)
    assert is_there(training)
    os.kill(task, signal.SIGUSR2)
    assert result_of(job) is None
    assert (tmp_path / "state").read_text() == "saved"


def test_a_sigterm_that_reaches_submitit_alone_is_passed_on(submit, tmp_path):
    """Without Slurm to take it back, the job has ended then."""
    job = submit(STAND_IN)
    task, _ = begun(job)
    os.kill(task, signal.SIGTERM)
    assert "submit it again with --resume" in str(result_of(job))
    assert (tmp_path / "state").read_text() == "saved"


def test_a_training_that_does_not_stop_is_killed_in_time_for_the_job_to_go_on(submit, tmp_path):
    job = submit(DEAF, grace=1)
    task, training = begun(job)
    # Once started again, there is something to go on with.
    (tmp_path / "state").write_text("an earlier checkpoint")
    os.kill(task, signal.SIGUSR2)
    assert result_of(job) is None
    log = log_of(job)
    assert log.index("is killed") < log.index("Requeued job") < log.index("gone on")
    assert not is_there(training)


@pytest.mark.parametrize("script", [STAND_IN, DEAF], ids=["saves", "deaf"])
def test_cancelling_a_job_of_this_machine_ends_its_processes(script, submit):
    job = submit(script)
    task, training = begun(job)
    job.cancel()
    wait_until(lambda: not is_there(task) and not is_there(training))


def test_a_failed_training_makes_the_job_fail_with_its_last_lines(submit):
    error = str(result_of(submit(FAILS)))
    assert "ended with status 7; its last lines:\nthe reason\non two lines" in error


def test_an_interrupted_training_that_cannot_save_makes_the_job_fail(submit):
    """Status 2: a full disk, say. Started again, it would lose what this one has to say."""
    full = STAND_IN.replace('state.write_text("saved")', 'print("error: disk is full")')
    job = submit(full.replace("sys.exit(143)", "sys.exit(2)"))
    task, _ = begun(job)
    os.kill(task, signal.SIGUSR2)
    assert "status 2; its last lines:\nbegun\nerror: disk is full" in str(result_of(job))
    assert "Requeued" not in log_of(job)


def test_tasks_beside_each_other_find_each_other_on_this_machine(submit):
    job = submit("import sys; print('given', sys.argv[2:])", tasks_per_node=2)
    wait_until(lambda: all(job.task(i).paths.result_pickle.exists() for i in (0, 1)))
    port = 10000 + int(job.job_id) % 20000
    for rank in (0, 1):
        expected = ["--num-machines", "2", "--machine-rank", str(rank)]
        assert str([*expected, "--dist-url", f"tcp://127.0.0.1:{port}"]) in log_of(job, rank)


@pytest.fixture
def slurm_task(tmp_path):
    """Starts what submitit runs on the only node of a Slurm job, in place of srun."""
    jobs, programs = tmp_path / "jobs", tmp_path / "programs"
    for folder in (jobs, programs):
        folder.mkdir()
    scontrol = programs / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{programs}/asked.txt"\n')
    scontrol.chmod(0o755)
    variables = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": "1",
    }
    tasks = []

    def slurm_task(script):
        command = [sys.executable, "-c", script, str(tmp_path / "state")]
        submission = DelayedSubmission(Training(command, [], 40))
        submission.set_timeout(60, 3)
        submission.dump(jobs / "4711_submitted.pkl")
        with open(jobs / "log.txt", "w") as log:
            tasks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "submitit.core._submit", str(jobs)],
                    env={**os.environ, **variables},
                    stdout=log,
                    stderr=log,
                )
            )
        return tasks[-1], lambda: (jobs / "log.txt").read_text()

    yield slurm_task
    for task in tasks:
        task.kill()


def test_the_exit_status_of_a_training_is_that_of_its_job(slurm_task):
    task, _ = slurm_task(FAILS)
    assert task.wait(TIMEOUT) == 7


def test_a_preempted_job_waits_for_slurm_to_take_it_back(slurm_task, tmp_path):
    """Ended by itself, it would not be started again."""
    task, log = slurm_task(STAND_IN)
    wait_until(lambda: "\nbegun\n" in log())
    task.send_signal(signal.SIGTERM)
    wait_until(lambda: "The training has stopped; waiting 600 s" in log())
    assert task.poll() is None
    task.send_signal(signal.SIGUSR2)
    assert task.wait(TIMEOUT) == 255
    assert (tmp_path / "programs/asked.txt").read_text() == "requeue 4711\n"


def test_nodes_of_a_slurm_job_meet_at_the_first(monkeypatch):
    variables = {
        "SLURM_JOB_ID": "1234567",
        "SLURM_NTASKS": "3",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_PROCID": "2",
        "SLURM_JOB_NODELIST": "gpu[007-008],big1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch_options(SlurmJobEnvironment()) == [
        *("--num-machines", "3", "--machine-rank", "2"),
        *("--dist-url", "tcp://gpu007:24567"),
    ]


def test_one_node_of_a_slurm_job_takes_a_free_port(monkeypatch):
    for name, value in (("SLURM_JOB_ID", "12"), ("SLURM_NTASKS", "1")):
        monkeypatch.setenv(name, value)
    assert launch_options(SlurmJobEnvironment()) == ["--dist-url", "auto"]

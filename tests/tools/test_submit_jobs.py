"""Jobs of tools/submit.py with stand-ins for train_net.py: signals, exit statuses, addresses."""

import importlib.util
import os
import re
import signal
import subprocess
import sys

import cloudpickle
import pytest
import submitit
from in_process import ROOT
from runs import TIMEOUT, wait_until
from submitit.helpers import DelayedSubmission
from submitit.slurm.slurm import SlurmJobEnvironment

spec = importlib.util.spec_from_file_location("submit", ROOT / "tools/submit.py")
tool = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = tool
spec.loader.exec_module(tool)
# As if the program were run: jobs cannot import it.
cloudpickle.register_pickle_by_value(tool)
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class StandIn(tool.TrainNet):
    """Runs a script, which gets the options that name the node."""

    def command(self, job):
        _, _, *options = super().command(job)
        return [sys.executable, "-c", *options]


# Saves at SIGTERM, as train_net.py does, and is through when it is started again.
STAND_IN = """
import pathlib, signal, sys, time
state = pathlib.Path(sys.argv[1])
def save(*_):
    state.write_text("saved")
    print("saved", flush=True)
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
        jobs.append(executor.submit(StandIn([script, str(tmp_path / "state")], [], grace, {})))
        return jobs[-1]

    yield submit
    for job in jobs:
        job.cancel()


def log_of(job, task=0):
    """What the job has printed."""
    path = job.task(task).paths.stdout
    return path.read_text() if path.exists() else ""


def processes_of(log):
    """Those of submitit and those of the training, in the order they were started."""
    return re.findall(r"process (\d+): started (\d+)", log)


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


def finished_log(job):
    """What the job has printed, once it is over."""
    wait_until(job.done)
    return log_of(job)


def test_an_interrupted_job_has_the_training_save_and_goes_on_with_it(submit):
    job = submit(STAND_IN)
    task, _ = begun(job)
    os.kill(task, signal.SIGUSR2)
    log = finished_log(job)
    places = [log.index(text) for text in ("begun", "saved", "Requeued job", "gone on")]
    assert places == sorted(places)
    assert len(processes_of(log)) == 2
    assert job.result() is None


def test_the_signal_to_interrupt_does_not_end_a_training_that_gets_it_too(submit, tmp_path):
    """Schedulers may send it to all processes, and it ends one that does not expect it."""
    job = submit(STAND_IN)
    task, training = begun(job)
    os.kill(training, signal.SIGUSR2)
    os.kill(task, signal.SIGUSR2)
    assert "gone on" in finished_log(job)
    assert (tmp_path / "state").read_text() == "saved"


def test_the_log_has_the_last_lines_of_an_interrupted_training(submit):
    """They are there before the job is requeued and Slurm ends its processes."""
    lines = "print(*range(1000), sep='\\n')"
    job = submit(STAND_IN.replace('state.write_text("saved")', f"state.touch(); {lines}"))
    task, _ = begun(job)
    os.kill(task, signal.SIGUSR2)
    log = finished_log(job)
    assert log.index("\n998\n999\n") < log.index("Requeued job")


def test_a_sigterm_that_reaches_submitit_alone_is_passed_on(submit, tmp_path):
    """Without Slurm to requeue it, the job has ended then."""
    job = submit(STAND_IN)
    task, _ = begun(job)
    os.kill(task, signal.SIGTERM)
    assert "submit it again with --resume" in finished_log(job)
    assert (tmp_path / "state").read_text() == "saved"


def test_a_training_that_does_not_stop_is_killed_in_time_for_the_job_to_go_on(submit, tmp_path):
    job = submit(DEAF, grace=1)
    task, training = begun(job)
    # Once started again, there is something to go on with.
    (tmp_path / "state").write_text("an earlier checkpoint")
    os.kill(task, signal.SIGUSR2)
    log = finished_log(job)
    assert log.index("is killed") < log.index("Requeued job") < log.index("gone on")
    assert not is_there(training)


@pytest.mark.parametrize("script", [STAND_IN, DEAF], ids=["saves", "deaf"])
def test_cancelling_a_job_of_this_machine_ends_its_processes(script, submit):
    job = submit(script)
    task, training = begun(job)
    job.cancel()
    wait_until(lambda: not is_there(task) and not is_there(training))


def test_a_failed_training_is_the_end_of_the_log(submit):
    log = finished_log(submit(FAILS))
    assert "\nthe reason\non two lines\n" in log
    assert "The training ended with status 7; see the lines above." in log


def test_an_interrupted_training_that_cannot_save_makes_the_job_fail(submit):
    """Status 2: a full disk, say. Requeued, it would end in the same way, days later."""
    full = STAND_IN.replace('state.write_text("saved")', 'print("error: disk is full")')
    job = submit(full.replace("sys.exit(143)", "sys.exit(2)"))
    task, _ = begun(job)
    os.kill(task, signal.SIGUSR2)
    log = finished_log(job)
    assert log.index("error: disk is full") < log.index("ended with status 2")
    assert "Requeued" not in log


def test_an_interrupted_training_that_has_just_finished_is_not_started_again(submit):
    """There is nothing left to go on with."""
    job = submit(STAND_IN.replace("sys.exit(143)", "sys.exit(0)"))
    task, _ = begun(job)
    os.kill(task, signal.SIGUSR2)
    assert "Requeued" not in finished_log(job)
    assert job.result() is None


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
        job = StandIn([script, str(tmp_path / "state")], [], 40, {})
        submission = DelayedSubmission(job)
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
    wait_until(lambda: "waiting for Slurm" in log())
    assert task.poll() is None
    task.send_signal(signal.SIGUSR2)
    assert task.wait(TIMEOUT) == 255
    assert (tmp_path / "programs/asked.txt").read_text() == "requeue 4711\n"


def node_options():
    """What train_net.py is told about the node."""
    return tool.TrainNet([], [], 180, {}).command(SlurmJobEnvironment())[2:]


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
    assert node_options() == [
        *("--num-machines", "3", "--machine-rank", "2"),
        *("--dist-url", "tcp://gpu007:24567"),
    ]


def test_one_node_of_a_slurm_job_takes_a_free_port(monkeypatch):
    for name, value in (("SLURM_JOB_ID", "12"), ("SLURM_NTASKS", "1")):
        monkeypatch.setenv(name, value)
    assert node_options() == ["--dist-url", "auto"]

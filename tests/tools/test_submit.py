"""tools/submit.py: what it asks Slurm for, what it refuses, and trainings that it runs to the end.

In place of Slurm there are programs of its names, which do what submitit and the job need of them.
test_submit_jobs.py has the signals one by one.
"""

import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from in_process import ROOT, run_main, run_program
from runs import (
    NANO,
    NUM_ITERATIONS,
    TIMEOUT,
    assert_same_tensors,
    finish,
    start_program,
    trained_iterations,
    training_overrides,
    wait_until,
    weights,
)
from submitit import LocalJob
from submitit.slurm.slurm import SlurmJobEnvironment

JOB = "4711"
FAKES = {
    # Keeps the job, for the test to run.
    "sbatch": 'cp "$1" "$(dirname "$0")/job.sh" && echo "Submitted batch job 4711"',
    "srun": """
while [[ $1 == --* ]]; do
    if [[ $1 == --output ]]; then shift; log=${1//%j/$SLURM_JOB_ID}; fi
    shift
done
exec "$@" >> "${log//%t/$SLURM_PROCID}" 2>&1
""",
    "scontrol": 'echo "$@" >> "$(dirname "$0")/scontrol.txt"',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of programs that stand for Slurm."""
    folder = tmp_path / "slurm programs"
    folder.mkdir()
    for name, script in FAKES.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def submit(tiny_overrides, tmp_path, monkeypatch, restored_logging):
    """Runs the program on the tiny detector; what it says, and what it ended with."""
    monkeypatch.chdir(ROOT)

    def submit(*options, training=(), overrides=()):
        flags = ["--config-file", NANO, *training, *tiny_overrides]
        overrides = [f"train.output_dir={tmp_path / 'output'}", *overrides]
        return run_program("tools/submit.py", *options, "--", *flags, *overrides)

    return submit


@pytest.fixture
def submit_locally(submit, tmp_path):
    """Submits to this machine; returns the job and takes it back in the end."""
    jobs = []

    def submit_locally(*options, overrides=()):
        done = submit("--local", "--hours", "1", *options, overrides=overrides)
        assert done.code == 0, done.error
        number = re.match(r"Job (\d+):", done.printed)[1]
        jobs.append(LocalJob(tmp_path / "output/slurm", number))
        return jobs[-1]

    yield submit_locally
    for job in jobs:
        # Its process is no longer known to whoever has not started it.
        if not job.paths.result_pickle.exists():
            os.kill(int(job.job_id), signal.SIGINT)


def wait_for(job, tasks=1):
    """Waits until all tasks have ended well."""
    tasks = [LocalJob(job.paths.folder, job.job_id, [task]) for task in range(tasks)]
    wait_until(lambda: all(each.paths.result_pickle.exists() for each in tasks))


def run_job(slurm, **kwargs):
    """Starts what sbatch was given, as Slurm does on the only node of a job."""
    variables = {"JOB_ID": JOB, "NTASKS": "1", "JOB_NUM_NODES": "1", "PROCID": "0", "NODEID": "0"}
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    env |= {f"SLURM_{name}": value for name, value in variables.items()}
    return subprocess.Popen(["bash", slurm / "job.sh"], env=env, **kwargs)


def overrides_of(output):
    """Of a training that saves when it is asked to stop, and then alone."""
    return [*training_overrides(output), "train.checkpointer.period=1000", "train.eval_period=0"]


@pytest.fixture(scope="module")
def direct(tiny_config, tmp_path_factory, restored_logging):
    """The weights of a training that was run directly."""
    output = tmp_path_factory.mktemp("direct")
    run_main(tiny_config(*overrides_of(output)))
    return weights(output)


# ---------------------------------------------------------------------------- trainings of a job


@pytest.mark.slow
def test_an_interrupted_job_ends_with_the_weights_of_a_training_that_was_run_directly(
    submit_locally, direct, tmp_path
):
    output = tmp_path / "output"
    job = submit_locally(overrides=overrides_of(output))
    wait_until(lambda: len(trained_iterations(output)) > 2)
    task = re.search(r"process (\d+): started", job.paths.stdout.read_text())[1]
    os.kill(int(task), signal.SIGUSR2)
    wait_for(job)
    assert "Requeued job" in job.paths.stdout.read_text()
    assert len(list(output.glob("model_00*.pth"))) == 1
    assert trained_iterations(output) == list(range(NUM_ITERATIONS))
    assert_same_tensors(weights(output), direct)


@pytest.mark.slow
def test_a_job_of_this_machine_does_not_keep_what_submits_it_from_ending(tiny_overrides, tmp_path):
    """A pipe or a script that reads its output would wait for the job."""
    output = tmp_path / "output"
    overrides = [*tiny_overrides, *overrides_of(output), "train.max_iter=100000"]
    submission = start_program(
        "tools/submit.py", "--local", "--", "--config-file", NANO, *overrides
    )
    code, printed, error = finish(submission)
    try:
        assert code == 0, error
        wait_until(lambda: trained_iterations(output))
    finally:
        os.kill(int(re.match(r"Job (\d+):", printed)[1]), signal.SIGINT)


@pytest.mark.slow
def test_a_job_preempted_by_slurm_is_given_back_to_it_and_goes_on(submit, slurm, direct, tmp_path):
    output = tmp_path / "output"
    done = submit("--hours", "1", overrides=overrides_of(output))
    assert done.code == 0, done.error
    log = output / f"slurm/{JOB}_0_log.out"
    assert f"log     {log}" in done.printed
    job = run_job(slurm, start_new_session=True)
    try:
        wait_until(lambda: len(trained_iterations(output)) > 2)
        # To all processes of the task, as Slurm does: first a warning, then what was asked for.
        pids = re.search(r"process (\d+): started (\d+)", log.read_text()).groups()
        for each in (signal.SIGCONT, signal.SIGTERM, signal.SIGUSR2):
            for pid in pids:
                os.kill(int(pid), each)
        # Slurm would end it now.
        assert job.wait(TIMEOUT) != 0
    finally:
        kill(job)
    assert (slurm / "scontrol.txt").read_text() == f"requeue {JOB}\n"
    assert not (output / "model_final.pth").exists()
    job = run_job(slurm, start_new_session=True)
    try:
        assert job.wait(TIMEOUT) == 0
    finally:
        kill(job)
    assert trained_iterations(output) == list(range(NUM_ITERATIONS))
    assert_same_tensors(weights(output), direct)


def kill(job):
    """Ends what is left of a job with a session of its own."""
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


@pytest.mark.slow
def test_bad_input_found_late_is_the_exit_status_of_the_job_and_in_its_log(
    submit, slurm, tiny_scenes, tmp_path
):
    images = tmp_path / "images"
    shutil.copytree(tiny_scenes.train_images, images)
    for image in images.iterdir():
        image.write_bytes(image.read_bytes()[:200])
    done = submit("--hours", "1", overrides=[f"data.train_images={images}"])
    assert done.code == 0, done.error
    job = run_job(slurm, start_new_session=True)
    try:
        assert job.wait(TIMEOUT) == 2
    finally:
        kill(job)
    log = (tmp_path / f"output/slurm/{JOB}_0_log.out").read_text()
    assert re.search(r"\nerror: .*images.* cannot be .*\n(.*\n)?.*ended with status 2; see", log)


@pytest.mark.slow
def test_two_machines_interrupted_end_with_the_weights_of_two_processes_on_one(
    submit_locally, tiny_overrides, tmp_path
):
    """Bitwise: the same two gradients are added up. The first machine alone is told to end."""
    output, on_one = tmp_path / "output", tmp_path / "on one"
    job = submit_locally("--nodes", "2", overrides=overrides_of(output))
    wait_until(lambda: len(trained_iterations(output)) > 2)
    logs = [LocalJob(job.paths.folder, job.job_id, [task]).paths.stdout for task in (0, 1)]
    task = re.search(r"process (\d+): started", logs[0].read_text())[1]
    os.kill(int(task), signal.SIGUSR2)
    wait_for(job, tasks=2)
    # The second cannot requeue the job; it is started again with the first.
    assert "The training was stopped" in logs[1].read_text()
    subprocess.run(
        [
            *(sys.executable, "train_net.py", "--config-file", NANO, "--num-gpus", "2"),
            *tiny_overrides,
            *overrides_of(on_one),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert trained_iterations(output) == trained_iterations(on_one) == list(range(NUM_ITERATIONS))
    assert_same_tensors(weights(output), weights(on_one))


# ------------------------------------------------------------------------- what Slurm is asked for


def asked_of(slurm):
    """The options that sbatch was given, by name, and the command line of srun."""
    script = (slurm / "job.sh").read_text()
    options = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE)
    (command,) = re.findall(r"^srun .*$", script, re.MULTILINE)
    return {name: "".join(shlex.split(value)) for name, value in options}, shlex.split(command)


def test_slurm_is_asked_for_nodes_time_and_what_else_was_given(submit, slurm, tmp_path):
    done = submit(
        *("--nodes", "2", "--gpus-per-node", "4", "--hours", "1.5", "--partition", "gpu"),
        *("--grace", "60", "--extra", "account=my group", "--extra", "exclusive"),
        overrides=["train.device=auto", "dataloader.train.total_batch_size=8"],
    )
    assert done.code == 0, done.error
    log = f"{tmp_path}/output/slurm/{JOB}_0_log.out"
    options, srun = asked_of(slurm)
    assert options == {
        "account": "my group",
        # A process a GPU, without data workers here.
        "cpus-per-task": "4",
        "exclusive": "",
        "gpus-per-node": "4",
        "job-name": "output",
        "nodes": "2",
        "ntasks-per-node": "1",
        "open-mode": "append",
        "output": log.replace(JOB, "%j"),
        "partition": "gpu",
        "requeue": "",
        "signal": "USR2@60",
        "time": "90",
    }
    expected = ["--cpus-per-task=4", "--open-mode=append", "--kill-on-bad-exit=1"]
    assert [word for word in srun if word in expected] == expected
    assert done.printed.splitlines() == [
        "Job 4711: 2 x 4 processes, 1.5 hours",
        f"  log     {log}",
        f"  follow  tail -F {log}",
        "  state   squeue --job 4711",
        "  cancel  scancel 4711",
    ]


def test_nodes_train_on_their_gpus_or_not_at_all(submit, slurm, tmp_path, monkeypatch):
    """Left to find out, each would train on its CPU for days where its GPUs are not seen."""
    monkeypatch.setenv("SLURM_JOB_ID", JOB)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    for device, last in (("auto", "train.device=cuda"), ("cpu", "train.device=cpu")):
        done = submit("--gpus-per-node", "2", overrides=[f"train.device={device}"])
        assert done.code == 0, done.error
        assert ("gpus-per-node" in asked_of(slurm)[0]) == (device == "auto")
        job = pickle.loads((tmp_path / f"output/slurm/{JOB}_submitted.pkl").read_bytes())
        command = job.function.command(SlurmJobEnvironment())
        assert command[-1] == last
        assert command[1:9] == [
            *(str(ROOT / "train_net.py"), "--config-file", NANO, "--resume"),
            *("--num-gpus", "2", "--dist-url", "auto"),
        ]


def test_gpus_may_be_asked_for_as_generic_resources(submit, slurm):
    done = submit("--extra", "gres=gpu:a100:1", overrides=["train.device=cuda"])
    assert done.code == 0, done.error
    options, _ = asked_of(slurm)
    assert options["gres"] == "gpu:a100:1"
    assert "gpus-per-node" not in options


@pytest.mark.parametrize("status", [0, 1, 143])
def test_the_script_of_the_docs_requeues_a_training_that_was_stopped(status, slurm):
    text = (ROOT / "docs/train.md").read_text(encoding="utf-8")
    script = re.search(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1]
    (slurm / "srun").write_text(f"#!/bin/bash\nexit {status}\n")
    variables = {"SLURM_JOB_ID": JOB, "SLURM_JOB_NODELIST": "gpu[01-02]"}
    run = subprocess.run(["bash", "-c", script], env={**os.environ, **variables}, check=False)
    assert run.returncode == status
    asked = (slurm / "scontrol.txt").read_text().splitlines()
    expected = [f"requeue {JOB}"] if status == 143 else []
    assert asked == ["show hostnames gpu[01-02]", *expected]


# ---------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("options", "training", "override", "expected"),
    [
        ([], [], "train.max_itr=3", "did you mean 'max_iter'"),
        (["--nodes", "3"], [], "", "cannot be shared by 3 processes"),
        (["--nodes", "0"], [], "", "--nodes must be at least 1"),
        (["--hours", "0.05"], [], "", "--hours 0.05 must be longer than --grace"),
        (["--hours", "nan"], [], "", "--hours nan must be longer than --grace"),
        (["--extra", "time=5"], [], "", "'time=5' is no option of sbatch, or one that has its own"),
        (["--extra", "ntasks_per_node=5"], [], "", "'ntasks_per_node=5' is no option of sbatch"),
        (["--extra", "comment=a\nreboot"], [], "", "is no option of sbatch"),
        (["--extra", "=5"], [], "", "is no option of sbatch"),
        ([], ["--num-gpus=2"], "", "--gpus-per-node take the place of --num-gpus"),
        ([], ["--eval-only"], "", "nothing to evaluate"),
        (["--local", "--nodes", "2"], [], "train.device=auto", "--local needs train.device=cpu"),
    ],
)
def test_what_cannot_work_is_refused_before_the_job_waits(
    options, training, override, expected, submit, slurm
):
    done = submit(*options, training=training, overrides=[override] if override else [])
    assert done.code == 2
    assert expected in done.error
    assert re.search("^(submit.py: )?error: ", done.error, re.MULTILINE)
    assert "Traceback" not in done.error
    assert not (slurm / "job.sh").exists()


def test_a_folder_with_a_training_needs_resume(submit, slurm, tmp_path):
    """The job resumes whatever there is, so nobody is asked later."""
    (tmp_path / "output").mkdir()
    for last, expected in (
        ("model_init.pth", "already holds the beginning of a training"),
        ("model_0000099.pth", "already holds a training"),
    ):
        (tmp_path / "output/last_checkpoint").write_text(last)
        done = submit()
        assert done.code == 2
        assert expected in done.error
        assert "add --resume" in done.error
        assert submit(training=["--resume"]).code == 0


def test_what_slurm_refuses_is_said(submit, slurm):
    (slurm / "sbatch").write_text(
        "#!/bin/bash\necho 'sbatch: error: invalid partition' >&2; exit 1"
    )
    done = submit("--partition", "gone")
    assert done.code == 2
    assert "Slurm refuses the job: sbatch: error: invalid partition" in done.error


def test_without_slurm_there_is_local(submit, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = submit()
    assert done.code == 2
    assert "try it here with --local" in done.error


def test_without_a_command_for_train_net_it_says_where_it_goes():
    done = run_program("tools/submit.py", "--local")
    assert done.code == 2
    assert "add -- and the arguments of train_net.py" in done.error


def test_without_submitit_it_says_how_to_install_it(submit, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    done = submit("--local")
    assert done.code == 2
    assert "pip install -r requirements-slurm.txt" in done.error

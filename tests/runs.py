"""Runs of train_net.py as users start them, and what they leave."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
NANO = "configs/shapes/mask_rcnn_snnet_nano.py"
# Far above what any of these runs takes; reached only by one that hangs.
TIMEOUT = 240
NUM_ITERATIONS = 24
NUM_BEFORE_CHECKPOINT = 4


def start(*args, config_file=NANO, launcher=(), **kwargs):
    """Starts train_net.py, by default on the embedded default."""
    return start_program(
        "train_net.py", "--config-file", config_file, *args, launcher=launcher, **kwargs
    )


def start_program(path, *args, launcher=(), **kwargs):
    """Starts a program of Python, without a GPU, by itself or by another one."""
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, (path, *args))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def finish(process):
    """Exit code, standard output and standard error of a run."""
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def wait_until(condition, process=None):
    """Waits for something that a run does; returns what the condition then gives."""
    deadline = time.monotonic() + TIMEOUT
    while not (value := condition()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def weights(output):
    """The state of a trained model."""
    return torch.load(Path(output) / "model_final.pth")["model"]


def assert_same_tensors(first, second):
    """Bitwise."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def metrics_of(output):
    """What a training has noted so far, by iteration."""
    if not Path(output, "metrics.json").exists():
        return []
    lines = (Path(output) / "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def trained_iterations(output):
    """The iterations that a training has done so far, in the order it did them."""
    return [m["iteration"] for m in metrics_of(output) if "total_loss" in m]


def recorded(overrides, output):
    """The overrides of a training whose every iteration is in metrics.json."""
    return [*overrides, f"train.output_dir={output}", "train.log_period=1", "train.eval_period=0"]


def training_overrides(output):
    """The overrides of a short training with checkpoints, whose model is random inside."""
    return [
        f"train.output_dir={output}",
        f"train.max_iter={NUM_ITERATIONS}",
        f"train.checkpointer.period={NUM_BEFORE_CHECKPOINT}",
        "train.eval_stitches=[0]",
        "train.log_period=1",
        # Randomness inside the model, too, has to continue where it was.
        "model.backbone.net.small.drop_path_rate=0.2",
        "model.backbone.net.large.drop_path_rate=0.2",
    ]


def fewer_resources(output):
    """The overrides of the same training with micro-batches, and anchors frozen at first."""
    return [
        *training_overrides(output),
        "train.max_iter=6",
        "train.checkpointer.period=2",
        "train.accumulation.steps=2",
        "train.freeze_anchors=3",
        "init.num_images=2",
    ]

"""Trainings of several processes, started by train_net.py or by torchrun."""

import os
import signal
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from in_process import run_main
from runs import (
    NUM_ITERATIONS,
    assert_same_tensors,
    fewer_resources,
    finish,
    metrics_of,
    start,
    trained_iterations,
    training_overrides,
    wait_until,
    weights,
)

from snnet_vitdet.engine import STOPPED, ddp, launch_here
from snnet_vitdet.stitching import StitchSpace

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def train_in_a_process(config, folder):
    """One of several; saves the weights and what has a gradient from the last iteration."""
    torch.set_num_threads(1)
    wrapped = []
    create_ddp_model = ddp.create_ddp_model

    def catch(model, **kwargs):
        # Before it hands the first process's weights to all.
        torch.save(model.state_dict(), f"{folder}/start{comm.get_rank()}.pth")
        wrapped.append(create_ddp_model(model, **kwargs))
        return wrapped[0]

    ddp.create_ddp_model = catch
    run_main(config)
    (model,) = wrapped
    assert isinstance(model, torch.nn.parallel.DistributedDataParallel)
    named = dict(model.module.named_parameters())
    torch.save(
        {
            "model": model.module.state_dict(),
            "with_gradient": sorted(n for n, p in named.items() if p.grad is not None),
            "trainable": sorted(n for n, p in named.items() if p.requires_grad),
        },
        f"{folder}/rank{comm.get_rank()}.pth",
    )


@pytest.mark.slow
def test_two_processes_that_are_to_end_stop_after_the_same_iteration(tiny_overrides, tmp_path):
    overrides = [*training_overrides(tmp_path), "train.checkpointer.period=1000"]
    process = start("--num-gpus", "2", *tiny_overrides, *overrides, "train.max_iter=100000")
    try:
        wait_until(lambda: len(metrics_of(tmp_path)) >= 2, process)
        process.send_signal(signal.SIGTERM)
        code, printed, error = finish(process)
    finally:
        process.kill()
    assert code == STOPPED, error
    (saved,) = tmp_path.glob("model_0*.pth")
    state = torch.load(saved)
    assert saved.name == f"model_{state['trainer']['iteration']:07d}.pth"
    assert max(m["iteration"] for m in metrics_of(tmp_path)) == state["iteration"]


@pytest.mark.slow
def test_two_processes_train_the_same_weights_and_leave_what_did_not_run_alone(
    tiny_config, tmp_path
):
    config = tiny_config(
        f"train.output_dir={tmp_path}",
        "train.max_iter=3",
        "train.log_period=1",
        "train.eval_stitches=[0]",
        # No walk runs all blocks of both anchors.
        "model.backbone.net.kinds=[S,L,FS]",
        "train.seed=1",
    )
    launch_here(train_in_a_process, 2, config, str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1))
    assert_same_tensors(first["model"], second["model"])
    assert_same_tensors(first["model"], weights(tmp_path))
    assert first["with_gradient"] == second["with_gradient"]

    space = StitchSpace((4, 8), kinds=("S", "L", "FS"))
    trained = [space[int(m["stitch_id"])] for m in metrics_of(tmp_path) if "total_loss" in m]
    assert len(trained) == 3
    before = torch.load(tmp_path / "model_init.pth")["model"]
    ran_ever = set().union(*map(blocks_of, trained))
    moved = {name for name, value in before.items() if not torch.equal(value, first["model"][name])}
    blocks = {n: ".".join(n.split(".")[2:5]) for n in first["trainable"] if ".blocks." in n}
    idle = {name for name, block in blocks.items() if block not in ran_ever}
    assert idle and idle != blocks.keys()
    assert not idle & moved
    ran_last = blocks_of(trained[-1])
    for name, block in blocks.items():
        assert (name in first["with_gradient"]) == (block in ran_last), name
    assert {name for name in blocks if name.endswith("qkv.weight")} - idle <= moved


@pytest.mark.slow
def test_two_processes_thaw_the_anchors_together_and_accumulate(tiny_config, tmp_path):
    config = tiny_config(
        *fewer_resources(tmp_path),
        "train.max_iter=4",
        "train.freeze_anchors=2",
        "train.stitch_scope=process",
        "dataloader.train.total_batch_size=4",
    )
    launch_here(train_in_a_process, 2, config, str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1))
    assert_same_tensors(first["model"], second["model"])
    start, frozen = (
        torch.load(tmp_path / f"{name}.pth")["model"] for name in ("model_init", "model_0000001")
    )
    anchors = {n for n in start if n.startswith(("backbone.net.small.", "backbone.net.large."))}
    moved = {name for name in start if not torch.equal(start[name], frozen[name])}
    assert moved and not moved & anchors
    # Four stitches an iteration run nearly all blocks.
    moved = {name for name in anchors if not torch.equal(start[name], first["model"][name])}
    assert any(name.startswith("backbone.net.small.blocks.") for name in moved)
    assert any(name.startswith("backbone.net.large.blocks.") for name in moved)
    assert first["with_gradient"] == second["with_gradient"]
    assert set(first["with_gradient"]) & anchors


def blocks_of(stitch):
    """The blocks a stitch runs, as ``small.blocks.0``."""
    return {
        f"{('small', 'large')[anchor]}.blocks.{block}"
        for anchor, start, stop in stitch.segments
        for block in range(start, stop)
    }


@pytest.mark.slow
def test_four_processes_of_a_stitch_each_start_and_stay_alike(tiny_config, tmp_path):
    """The fit's sums are added over the processes, each of which has seen other images."""
    config = tiny_config(
        f"train.output_dir={tmp_path}",
        "train.max_iter=3",
        "train.eval_stitches=[0]",
        "dataloader.train.total_batch_size=4",
        "train.stitch_scope=process",
    )
    launch_here(train_in_a_process, 4, config, str(tmp_path))
    for name in ("start", "rank"):
        first, *others = (torch.load(tmp_path / f"{name}{rank}.pth") for rank in range(4))
        for other in others:
            assert_same_tensors(first.get("model", first), other.get("model", other))


@pytest.fixture(scope="module")
def two_uninterrupted(tiny_overrides, tmp_path_factory):
    """The folder of a training of two processes that nothing interrupted."""
    output = tmp_path_factory.mktemp("two")
    code, _, error = finish(start("--num-gpus", "2", *tiny_overrides, *training_overrides(output)))
    assert code == 0, error
    return output


def children_of(pid):
    """Ids of the processes that a process has started."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


@pytest.mark.slow
def test_torchrun_goes_on_without_a_killed_process_as_if_nothing_had_happened(
    tiny_overrides, two_uninterrupted, tmp_path
):
    process = start(
        *tiny_overrides,
        *training_overrides(tmp_path),
        launcher=(*TORCHRUN, "2", "--max-restarts=1"),
    )
    last = tmp_path / "last_checkpoint"
    try:
        wait_until(lambda: last.exists() and last.read_text() == "model_0000003.pth", process)
        os.kill(children_of(process.pid)[-1], signal.SIGKILL)
        code, printed, error = finish(process)
    finally:
        process.kill()
    assert code == 0, error
    assert "torchrun starts the processes again" in printed
    assert len(metrics_of(tmp_path)) < 2 * NUM_ITERATIONS
    assert_same_tensors(weights(tmp_path), weights(two_uninterrupted))


@pytest.mark.slow
def test_a_job_of_torchrun_that_is_to_end_saves_first(tiny_overrides, two_uninterrupted, tmp_path):
    overrides = [*training_overrides(tmp_path), "train.checkpointer.period=1000"]
    process = start(*tiny_overrides, *overrides, launcher=(*TORCHRUN, "2"))
    try:
        wait_until(lambda: len(metrics_of(tmp_path)) >= 2, process)
        process.send_signal(signal.SIGTERM)
        code, printed, error = finish(process)
    finally:
        process.kill()
    assert code != 0
    assert printed.count("Asked to stop (SIGTERM): saved after iteration") == 1, error
    # Started in the other way, it goes on.
    code, _, error = finish(start("--num-gpus", "2", "--resume", *tiny_overrides, *overrides))
    assert code == 0, error
    trained = trained_iterations(tmp_path)
    assert trained == list(range(NUM_ITERATIONS))
    assert_same_tensors(weights(tmp_path), weights(two_uninterrupted))


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_saves_what_several_processes_have_trained(tiny_overrides, tmp_path):
    process = start(
        "--num-gpus",
        "2",
        *tiny_overrides,
        *training_overrides(tmp_path),
        "train.max_iter=100000",
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_until(lambda: len(metrics_of(tmp_path)) >= 2, process)
        os.killpg(process.pid, signal.SIGINT)
        code, printed, error = finish(process)
    finally:
        process.kill()
    assert code == 128 + signal.SIGINT, error
    assert "saved after iteration" in printed
    assert "Traceback" not in printed + error
    last = max(tmp_path.glob("model_0*.pth"))
    assert (tmp_path / "last_checkpoint").read_text() == last.name
    assert torch.load(last)["iteration"] == max(m["iteration"] for m in metrics_of(tmp_path))

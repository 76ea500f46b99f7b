"""train_net.py as its users run it."""

import csv
import json
import logging
import math
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import train_net
from detectron2.engine import default_argument_parser
from detectron2.utils.logger import setup_logger
from in_process import run_main
from PIL import Image
from runs import (
    NANO,
    NUM_BEFORE_CHECKPOINT,
    NUM_ITERATIONS,
    ROOT,
    assert_same_tensors,
    fewer_resources,
    finish,
    metrics_of,
    recorded,
    start,
    start_program,
    trained_iterations,
    training_overrides,
    wait_until,
    weights,
)

from snnet_vitdet.engine import STOPPED, StitchedTrainer, load_config, training
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import provenance_of
from snnet_vitdet.modeling import stitch_costs
from snnet_vitdet.stitching import ResourceConstrainedSampler, StitchSpace

# ------------------------------------------------------------------------------ the command line


@pytest.mark.slow
def test_training_then_sweep_leave_checkpoints_metrics_tables_and_picture(
    tiny_overrides, tiny_config, tmp_path
):
    output = tmp_path / "output"
    common = recorded(tiny_overrides, output)
    code, _, stderr = finish(start(*common, "train.max_iter=5", "train.eval_stitches=[S]"))
    assert code == 0, stderr
    assert {"config.yaml", "log.txt", "model_init.pth", "model_final.pth"} <= set(
        os.listdir(output)
    )
    state = torch.load(output / "model_final.pth")
    assert state["classes"]["thing_classes"] == [
        "circle",
        "triangle",
        "square",
        "star",
        "cross",
        "ring",
    ]
    sampler = ResourceConstrainedSampler(
        stitch_costs(tiny_config().model).gflops, step=0.002, seed=0
    )
    iterations = [m for m in metrics_of(output) if "total_loss" in m]
    assert [m["stitch_id"] for m in iterations] == [sampler(i) for i in range(5)]

    # From the config that the training has saved, as the README says.
    process = start("--eval-only", "sweep.stitch_ids='0-2,FSF'", config_file=output / "config.yaml")
    code, stdout, stderr = finish(process)
    assert code == 0, stderr
    space = StitchSpace((4, 8))
    chosen = [0, 1, 2, *(stitch.id for stitch in space if stitch.kind == "FSF")]
    with open(output / "sweep" / "stitches.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["stitch_id"]) for row in rows] == chosen
    assert [row["name"] for row in rows] == [space[i].name for i in chosen]
    assert all(float(row["bbox_AP"]) >= 0 for row in rows)
    assert f"stitch {len(chosen)} of {len(chosen)}: {space[chosen[-1]].name}" in stdout
    assert Image.open(output / "sweep" / "pareto.png").size > (300, 200)
    provenance = json.loads((output / "sweep" / "sweep.json").read_text())
    assert provenance["checkpoint"] == str(output / "model_final.pth")


@pytest.mark.slow
def test_stitches_are_swept_before_any_training(tiny_config, tmp_path, restored_logging):
    """Figures 13 and 14: what the least-squares fit alone gives, as a training would start from."""
    changes = (f"train.output_dir={tmp_path}", "sweep.stitch_ids=FSF", "init.num_images=3")
    run_main(tiny_config(*changes, "sweep.at_initialisation=True"), "--eval-only")
    with open(tmp_path / "sweep" / "stitches.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["FSF"] * 3
    assert [row["iteration"] for row in rows] == ["0"] * 3
    assert not (tmp_path / "model_init.pth").exists()

    # The same stitches from the checkpoint that a training starts from.
    trained = tmp_path / "trained"
    changes = (f"train.output_dir={trained}", "init.num_images=3", "train.eval_stitches=[S]")
    run_main(tiny_config(*changes, "train.max_iter=1"))
    checkpoint = trained / "model_init.pth"
    run_main(
        tiny_config(*changes, f"train.init_checkpoint={checkpoint}", "sweep.stitch_ids=FSF"),
        "--eval-only",
    )
    with open(trained / "sweep" / "stitches.csv", newline="") as file:
        assert list(csv.DictReader(file)) == rows


@pytest.mark.slow
def test_tuning_by_lora_trains_updates_stitching_layers_and_heads_alone(
    tiny_config, tmp_path, restored_logging
):
    net = "model.backbone.net"
    ranks = (f"{net}.small.lora_rank=2", f"{net}.large.lora_rank=2")
    run_main(
        tiny_config(
            *ranks, f"train.output_dir={tmp_path}", "train.max_iter=6", "train.eval_stitches=[S]"
        )
    )
    before, after = (
        torch.load(tmp_path / name)["model"] for name in ("model_init.pth", "model_final.pth")
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    inside = {name for name in moved if name.startswith("backbone.net.")}
    frozen = {
        name
        for name in before
        if name.startswith(("backbone.net.small.", "backbone.net.large."))
        and not name.endswith((".lora_a", ".lora_b"))
    }
    assert not moved & frozen
    assert any(name.startswith("backbone.net.small.blocks.0.") for name in inside)
    assert any(name.startswith("backbone.net.stitching_layers.") for name in inside)
    assert "roi_heads.box_predictor.cls_score.weight" in moved


def test_a_sweep_belongs_to_weights_data_and_settings(tiny_config, tiny_scenes):
    def digest(*overrides):
        config = tiny_config(*overrides)
        return provenance_of(config, tiny_scenes.test_json)["settings"]

    assert digest() == digest("train.output_dir=elsewhere", "optimizer.lr=1")
    assert digest() != digest("model.roi_heads.box_predictor.test_score_thresh=0.1")
    assert digest() != digest("data.image_size=128")


# ------------------------------------------------------------------------------------- resuming


@pytest.fixture(scope="module")
def uninterrupted(tiny_config, tmp_path_factory, restored_logging):
    """The folder of a training that nothing interrupted."""
    output = tmp_path_factory.mktemp("uninterrupted")
    run_main(tiny_config(*training_overrides(output)))
    return output


@pytest.mark.slow
def test_killed_and_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(
    tiny_overrides, tiny_config, uninterrupted, tmp_path, restored_logging
):
    process = start(*tiny_overrides, *training_overrides(tmp_path))
    tag = tmp_path / "last_checkpoint"
    try:
        wait_until(lambda: tag.exists() and tag.read_text() not in ("", "model_init.pth"), process)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert not (tmp_path / "model_final.pth").exists()

    # With workers, of which the first training had none.
    config = tiny_config(*training_overrides(tmp_path), "dataloader.train.num_workers=2")
    run_main(config, "--resume")
    resumed = trained_iterations(tmp_path)
    assert NUM_BEFORE_CHECKPOINT in resumed
    assert len(resumed) < 2 * NUM_ITERATIONS - NUM_BEFORE_CHECKPOINT
    assert_same_tensors(weights(tmp_path), weights(uninterrupted))
    states = [
        torch.load(folder / "model_final.pth")["trainer"]["optimizer"]["state"]
        for folder in (tmp_path, uninterrupted)
    ]
    assert states[0].keys() == states[1].keys()
    for parameter, state in states[0].items():
        assert_same_tensors(state, states[1][parameter])


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [True, False], ids=["all processes", "the launcher"])
def test_a_job_that_is_to_end_saves_and_goes_on_as_if_it_had_not(
    to_all, tiny_overrides, tiny_config, uninterrupted, tmp_path, restored_logging
):
    """SIGTERM as schedulers send it, to workers of the data too, or as `kill` and `timeout` do."""
    overrides = [*training_overrides(tmp_path), "train.checkpointer.period=1000"]
    process = start(
        *tiny_overrides, *overrides, "dataloader.train.num_workers=2", start_new_session=True
    )
    try:
        wait_until(lambda: len(metrics_of(tmp_path)) >= 3, process)
        if to_all:
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.send_signal(signal.SIGTERM)
        code, printed, error = finish(process)
    finally:
        process.kill()
    assert code == STOPPED, error
    assert "Asked to stop (SIGTERM): saved after iteration" in printed
    assert "Traceback" not in printed + error
    (saved,) = tmp_path.glob("model_0*.pth")
    assert (tmp_path / "last_checkpoint").read_text() == saved.name
    assert not (tmp_path / "model_final.pth").exists()
    run_main(tiny_config(*overrides), "--resume")
    iterations = trained_iterations(tmp_path)
    assert iterations == list(range(NUM_ITERATIONS))
    assert_same_tensors(weights(tmp_path), weights(uninterrupted))


@pytest.mark.slow
def test_a_loss_gone_wrong_leaves_a_checkpoint_to_repeat_the_iteration_from(
    tiny_config, uninterrupted, tmp_path, monkeypatch, restored_logging
):
    config = tiny_config(*training_overrides(tmp_path))
    forward = StitchedTrainer._forward

    def wrong_once(self, batch):
        return {
            name: loss * (math.nan if self.iter == 6 else 1)
            for name, loss in forward(self, batch).items()
        }

    with monkeypatch.context() as patch:
        patch.setattr(StitchedTrainer, "_forward", wrong_once)
        with pytest.raises(FloatingPointError, match=r"iteration 6, .*; images: .*\d\.jpg"):
            run_main(config)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    # Put in place of the last one, it goes on with the iteration that went wrong.
    (tmp_path / "last_checkpoint").write_text("not_finite_0000006.pth")
    before = len(metrics_of(tmp_path))
    run_main(tiny_config(*training_overrides(tmp_path)), "--resume")
    assert metrics_of(tmp_path)[before]["iteration"] == 6
    assert_same_tensors(weights(tmp_path), weights(uninterrupted))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trained"), [("_forward", 5), ("after_step", 6)], ids=["iteration", "evaluation"]
)
def test_an_error_costs_nothing_of_what_was_trained_before(
    name, trained, tiny_config, uninterrupted, tmp_path, monkeypatch, restored_logging
):
    """An image that cannot be read, say, of the training or of an evaluation between."""
    overrides = [*training_overrides(tmp_path), "train.checkpointer.period=1000"]
    original = getattr(StitchedTrainer, name)

    def wrong_once(self, *args):
        found = original(self, *args)
        if self.iter == 6:
            raise InputError("some.jpg cannot be used")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(StitchedTrainer, name, wrong_once)
        with pytest.raises(InputError, match="some.jpg"):
            run_main(tiny_config(*overrides))
    assert (tmp_path / "last_checkpoint").read_text() == f"model_{trained:07d}.pth"
    run_main(tiny_config(*overrides), "--resume")
    trained = trained_iterations(tmp_path)
    assert sorted(set(trained)) == list(range(NUM_ITERATIONS))
    assert_same_tensors(weights(tmp_path), weights(uninterrupted))


@pytest.mark.slow
def test_an_error_in_the_step_itself_is_not_saved(
    tiny_config, tmp_path, monkeypatch, restored_logging
):
    """Half of the weights may be of the next iteration."""

    def full(self):
        if self.iter == 3:
            raise RuntimeError("out of memory")
        self.optimizer.step()

    monkeypatch.setattr(StitchedTrainer, "_update", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_main(tiny_config(*training_overrides(tmp_path), "train.checkpointer.period=2"))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert {path.name for path in tmp_path.glob("*.pth")} == {"model_init.pth", "model_0000001.pth"}


@pytest.mark.slow
def test_resume_before_the_first_checkpoint_starts_from_the_initial_one(
    tiny_config, uninterrupted, tmp_path, monkeypatch, restored_logging
):
    shutil.copy(uninterrupted / "model_init.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_init.pth")
    # What took pretrained weights and images the first time is not done again.
    monkeypatch.delattr(training, "initialise_weights")
    run_main(tiny_config(*training_overrides(tmp_path)), "--resume")
    assert_same_tensors(weights(tmp_path), weights(uninterrupted))


@pytest.mark.slow
def test_resuming_a_finished_training_changes_nothing(
    tiny_config, uninterrupted, tmp_path, restored_logging
):
    shutil.copy(uninterrupted / "model_final.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    run_main(tiny_config(*training_overrides(tmp_path)), "--resume")
    assert_same_tensors(weights(tmp_path), weights(uninterrupted))
    # Nor does one that was meant to be longer.
    run_main(tiny_config(*training_overrides(tmp_path), "train.max_iter=3"), "--resume")
    assert_same_tensors(weights(tmp_path), weights(uninterrupted))


@pytest.mark.slow
def test_a_training_killed_before_its_final_file_gets_it_when_resumed(
    tiny_config, uninterrupted, tmp_path, restored_logging
):
    last = f"model_{NUM_ITERATIONS - 1:07d}.pth"
    shutil.copy(uninterrupted / "model_final.pth", tmp_path / last)
    (tmp_path / "last_checkpoint").write_text(last)
    run_main(tiny_config(*training_overrides(tmp_path)), "--resume")
    assert_same_tensors(weights(tmp_path), weights(uninterrupted))
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.slow
def test_micro_batches_and_frozen_anchors_are_resumed_exactly(
    tiny_config, tmp_path, restored_logging
):
    whole = tmp_path / "whole"
    run_main(tiny_config(*fewer_resources(whole)))
    plan = "2 images an iteration (1 process x 2 micro-batches of 1), learning rate 0.0005, 6 iter"
    assert f"Training: {plan}ations: 1.50 epochs of 8 images." in (whole / "log.txt").read_text()
    # Two micro-batches draw two stitches, of which the second is logged.
    sampler = ResourceConstrainedSampler(
        stitch_costs(tiny_config().model).gflops, step=0.002, seed=0
    )
    stitches = [m["stitch_id"] for m in metrics_of(whole) if "total_loss" in m]
    assert stitches == [sampler(i, 1) for i in range(6)] != [sampler(i, 0) for i in range(6)]

    start, frozen, thawed = (
        torch.load(whole / f"{name}.pth")["model"]
        for name in ("model_init", "model_0000001", "model_0000003")
    )
    anchors = {n for n in start if n.startswith(("backbone.net.small.", "backbone.net.large."))}
    moved = {name for name in start if not torch.equal(start[name], frozen[name])}
    assert moved and not moved & anchors
    assert any(not torch.equal(start[name], thawed[name]) for name in anchors)

    for last in ("model_0000001.pth", "model_0000003.pth"):
        output = tmp_path / last.removesuffix(".pth")
        output.mkdir()
        shutil.copy(whole / last, output)
        (output / "last_checkpoint").write_text(last)
        run_main(tiny_config(*fewer_resources(output)), "--resume")
        assert_same_tensors(weights(output), weights(whole))
        log = (output / "log.txt").read_text()
        assert f"6 iterations, from {int(last[6:13]) + 1} on: " in log


@pytest.mark.slow
def test_a_step_that_ends_in_its_second_micro_batch_is_repeated_as_a_whole(
    tiny_config, tmp_path, monkeypatch, restored_logging
):
    """With turns of the ends: the gradient of the first micro-batch is no part of what is saved."""

    def overrides(output):
        turns = ("train.ends.period=2", "train.ends.stitches=S")
        return [*fewer_resources(output), *turns, "train.checkpointer.period=1000"]

    run_main(tiny_config(*overrides(tmp_path / "whole")))
    forward, micro_batches = StitchedTrainer._forward, []

    def wrong_once(self, batch):
        micro_batches.append(self.iter)
        if micro_batches.count(4) == 2:
            raise InputError("some.jpg cannot be used")
        return forward(self, batch)

    ended = tmp_path / "ended"
    with monkeypatch.context() as patch:
        patch.setattr(StitchedTrainer, "_forward", wrong_once)
        with pytest.raises(InputError, match="some.jpg"):
            run_main(tiny_config(*overrides(ended)))
    assert micro_batches == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert (ended / "last_checkpoint").read_text() == "model_0000003.pth"
    run_main(tiny_config(*overrides(ended)), "--resume")
    assert trained_iterations(ended) == list(range(6))
    assert_same_tensors(weights(ended), weights(tmp_path / "whole"))


# ----------------------------------------------------------------------------------- other starts


@pytest.fixture
def two_classes(tiny_scenes, tmp_path):
    """Annotations of the generated training images with two of their six categories."""
    data = json.loads(Path(tiny_scenes.train_json).read_text())
    data["categories"] = [{"id": 4, "name": "star"}, {"id": 2, "name": "triangle"}]
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] in (2, 4)]
    path = tmp_path / "two_classes.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.slow
def test_training_on_other_classes_starts_from_the_weights_of_a_checkpoint(
    tiny_config, uninterrupted, two_classes, tiny_scenes, tmp_path, restored_logging
):
    output = tmp_path / "output"
    config = tiny_config(
        f"data.train_json={two_classes}",
        f"data.test_json={two_classes}",
        f"data.test_images={tiny_scenes.train_images}",
        "model.roi_heads.num_classes=2",
        f"train.output_dir={output}",
        f"train.init_checkpoint={uninterrupted / 'model_final.pth'}",
        "train.max_iter=1",
        "train.eval_stitches=[0]",
    )
    run_main(config)
    start, saved = torch.load(output / "model_init.pth"), weights(uninterrupted)
    assert start["classes"]["thing_classes"] == ["triangle", "star"]
    assert start["trainer"]["iteration"] == -1
    assert not start["trainer"]["optimizer"]["state"]
    assert start["model"].keys() == saved.keys()
    other = {n for n in saved if start["model"][n].shape != saved[n].shape}
    assert {name.rsplit(".", 1)[0] for name in other} == {
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_head.predictor",
    }
    for name in saved.keys() - other:
        assert torch.equal(start["model"][name], saved[name]), name


@pytest.mark.slow
def test_unreadable_image_ends_the_training_with_its_name(tiny_overrides, tiny_scenes, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(tiny_scenes.train_images, images)
    broken = sorted(images.iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:300])
    process = start(
        *tiny_overrides,
        f"data.train_images={images}",
        f"train.output_dir={tmp_path / 'output'}",
        "train.max_iter=50",
        "dataloader.train.num_workers=2",
        "init.stitching_layers=random",
    )
    code, _, stderr = finish(process)
    assert code not in (0, -signal.SIGKILL)
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert str(broken) in last


# --------------------------------------------------------------------------- config.yaml and log


def test_config_of_a_training_survives_what_is_run_in_its_folder(
    tiny_config, tmp_path, restored_logging
):
    output = tmp_path / "output"
    lora = ("model.backbone.net.small.lora_rank=2", "model.backbone.net.large.lora_rank=2")
    given = [f"train.output_dir={output}", "train.max_iter=2", "train.eval_stitches=[0]"]
    run_main(tiny_config(*given, *lora))
    before = (output / "config.yaml").read_bytes()
    # Overrides forgotten: neither a sweep nor a resumed training loads the checkpoint.
    with pytest.raises(InputError, match="not one of this model"):
        run_main(tiny_config(*given), "--eval-only")
    with pytest.raises(InputError, match="not one of this model"):
        run_main(tiny_config(*given, "train.max_iter=3"), "--resume")
    assert (output / "config.yaml").read_bytes() == before
    # What a sweep is told is in its own folder, with its log.
    saved = load_config(str(output / "config.yaml"), ["sweep.stitch_ids=[0]"])
    run_main(saved, "--eval-only")
    assert (output / "config.yaml").read_bytes() == before
    own = load_config(str(output / "sweep/config.yaml"))
    assert own.sweep.stitch_ids == [0] and own.train.output_dir == str(output)
    assert "Results in" in (output / "sweep/log.txt").read_text()
    # A training that has gone on has the config it went on with.
    run_main(tiny_config(*given, *lora, "train.max_iter=3"), "--resume")
    assert load_config(str(output / "config.yaml")).train.max_iter == 3


def test_notes_of_the_start_are_in_the_log(tiny_config, tmp_path, restored_logging):
    config = tiny_config(
        f"train.output_dir={tmp_path}", "train.max_iter=1", "train.eval_stitches=[0]"
    )
    args = default_argument_parser().parse_args([])
    train_net.main(args, config, ["Scaled linearly from 8 to 2 images an iteration: all."])
    assert "Scaled linearly from 8 to 2 images" in (tmp_path / "log.txt").read_text()


# ------------------------------------------------------------------------------- linear scaling


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--eval-only"]], ids=str)
def test_schedule_is_scaled_once_before_it_is_checked(
    flags, tiny_overrides, tmp_path, monkeypatch, restored_logging
):
    started = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train_net, "main", lambda _, *rest: started.append(rest))
    (tmp_path / "some.pth").touch()
    overrides = (
        f"train.output_dir={tmp_path / 'output'}",
        f"train.init_checkpoint={tmp_path / 'some.pth'}",
        "train.reference_batch_size=8",
        "train.max_iter=300",
    )
    argv = ["train_net.py", "--config-file", NANO, *flags, *tiny_overrides, *overrides]
    monkeypatch.setattr(sys, "argv", argv)
    train_net.cli()
    ((config, notes),) = started
    # A sweep trains nothing.
    scaled = flags != ["--eval-only"]
    expected = (None, 1200, 1.25e-4) if scaled else (8, 300, 5e-4)
    # For the log of the run, which is not open yet.
    assert [note.partition(":")[0] for note in notes] == (
        ["Scaled linearly from 8 to 2 images an iteration"] if scaled else []
    )
    train = config.train
    assert (train.reference_batch_size, train.max_iter, config.optimizer.lr) == expected


# --------------------------------------------------------------------------------------- bad input


@pytest.fixture
def refused(tiny_overrides, tmp_path, monkeypatch, capsys, restored_logging):
    """Runs the command line in this process; returns the sentence it ends with."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train_net, "main", lambda *_, **__: pytest.fail("it has started"))

    def refused(*args, config_file=NANO):
        overrides = [*tiny_overrides, f"train.output_dir={tmp_path / 'output'}"]
        flags = [arg for arg in args if arg.startswith("--")]
        changes = [arg for arg in args if not arg.startswith("--")]
        argv = ["train_net.py", "--config-file", config_file, *flags, *overrides, *changes]
        monkeypatch.setattr(sys, "argv", argv)
        # A handler that an earlier test has left would write to that test's screen.
        setup_logger.cache_clear()
        logging.getLogger("snnet_vitdet").handlers.clear()
        with pytest.raises(SystemExit) as exit_:
            train_net.cli()
        assert exit_.value.code == 2
        # After what the log said on the way, one line and no traceback.
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        message = printed.rstrip("\n").splitlines()[-1]
        assert message.startswith("error: ")
        return message

    return refused


def test_ctrl_c_while_libraries_load_is_not_taken_for_an_error_of_theirs(tmp_path, monkeypatch):
    # Like numpy's import_array, which turns any error into an ImportError.
    (tmp_path / "torch.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt as error:\n"
        "    raise ImportError('it failed to import') from error\n"
    )
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    # The tests may run in the background, where Ctrl-C is ignored.
    code = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "runpy.run_path(sys.argv[1], run_name='__main__')"
    code, _, error = finish(start_program("train_net.py", launcher=("-c", code)))
    assert (code, error) == (-signal.SIGINT, "")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sweep.stitch_ids=[3,99]", "ids go from 0 to 13"),
        ("train.max_itr=3", "did you mean 'max_iter'"),
        ("model.backbone.net.large.patch_size=8", "patch sizes differ (16 and 8)"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--eval-only"]], ids=["training", "sweep"])
def test_wrong_override_is_refused(flags, override, expected, refused):
    assert expected in refused(*flags, override)


def test_missing_data_are_refused_and_before_them_a_missing_checkpoint(refused):
    assert "gone.json cannot be opened" in refused("data.test_json=gone.json")
    assert "nothing to evaluate" in refused("--eval-only", "data.test_json=gone.json")


def test_schedule_that_cannot_be_scaled_is_refused(refused):
    message = refused("train.reference_batch_size=0")
    assert "train.reference_batch_size=0 must be a whole number of at least 1" in message


def test_training_over_another_one_is_refused(refused, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "last_checkpoint").write_text("model_final.pth")
    assert "add --resume" in refused()


def test_sweep_of_an_untrained_folder_is_refused(tiny_config, tmp_path, restored_logging):
    config = tiny_config(f"train.output_dir={tmp_path}")
    with pytest.raises(ValueError, match="nothing to evaluate: .* has no checkpoint"):
        run_main(config, "--eval-only")


def test_truncated_checkpoint_is_refused(tiny_config, tmp_path, restored_logging):
    path = tmp_path / "some.pth"
    torch.save({"model": {"x": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:500])
    config = tiny_config(f"train.output_dir={tmp_path / 'output'}", f"train.init_checkpoint={path}")
    with pytest.raises(ValueError, match=r"some\.pth cannot be read .*truncated"):
        run_main(config, "--eval-only")

import json
import logging
import os
import subprocess
import sys

import pytest
from detectron2.engine import HookBase, TrainerBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventStorage
from in_process import run_main

from snnet_vitdet.engine import MetricsFile, WriteMetrics
from snnet_vitdet.engine.log_file import log_to_file
from snnet_vitdet.errors import InputError


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def record(path, period, iterations, losses):
    """What a training between two starts writes, a line every period."""
    file = MetricsFile(path, period)
    with EventStorage(iterations[0]) as storage:
        for storage.iter in iterations:
            storage.put_scalar("total_loss", losses[storage.iter])
            if (storage.iter + 1) % period == 0:
                file.write()
    file.close()


@pytest.mark.parametrize("period", [1, 4])
def test_a_resumed_training_writes_the_lines_of_an_uninterrupted_one(period, tmp_path):
    losses = [(7 * i) % 11 for i in range(12)]
    whole, resumed = tmp_path / "whole.json", tmp_path / "resumed.json"
    record(whole, period, range(12), losses)
    record(resumed, period, range(8), losses)
    record(resumed, period, range(8, 12), losses)
    assert read(resumed) == read(whole)
    assert [line["iteration"] for line in read(whole)] == list(range(period - 1, 12, period))
    if period == 1:
        assert [line["total_loss"] for line in read(whole)] == losses


def test_what_comes_later_in_an_iteration_gets_a_line_and_nothing_is_written_twice(tmp_path):
    path = tmp_path / "metrics.json"
    file = MetricsFile(path, 1)
    with EventStorage(3) as storage:
        storage.put_scalar("total_loss", 2.0)
        file.write()
        storage.put_scalar("bbox_AP", 5.0, smoothing_hint=False)
        file.write()
        file.write()
    assert read(path) == [{"total_loss": 2.0, "iteration": 3}, {"bbox_AP": 5.0, "iteration": 3}]


def test_a_cut_line_takes_no_other_with_it(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 0, "total_loss": 1.0}\n{"iteration": 1, "tot')
    record(path, 1, range(2, 3), {2: 3.0})
    assert path.read_text() == (
        '{"iteration": 0, "total_loss": 1.0}\n{"iteration": 1, "tot\n'
        '{"iteration": 2, "total_loss": 3.0}\n'
    )


def test_a_checkpoint_finds_the_line_of_its_iteration_written(tmp_path):
    path, seen = tmp_path / "metrics.json", []
    file = MetricsFile(path, 2)

    class Checkpoint(HookBase):
        def after_step(self):
            seen.append([line["iteration"] for line in read(path)])

    class Trainer(TrainerBase):
        def run_step(self):
            self.storage.put_scalar("total_loss", 1.0)

    trainer = Trainer()
    trainer.register_hooks([WriteMetrics(file, 2), Checkpoint(), PeriodicWriter([file], 2)])
    trainer.train(0, 5)
    assert seen == [[], [1], [1], [1, 3], [1, 3, 4]]
    assert [line["iteration"] for line in read(path)] == [1, 3, 4]


def refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def test_every_line_is_json_to_the_letter(tmp_path):
    path = tmp_path / "metrics.json"
    file = MetricsFile(path, 1)
    with EventStorage(3) as storage:
        storage.put_scalars(bbox_APl=float("nan"), grad_norm=float("inf"), lr=1e-3)
        file.write()
    (line,) = path.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {
        "bbox_APl": None,
        "grad_norm": None,
        "lr": 1e-3,
        "iteration": 3,
    }


def test_a_full_disk_is_one_sentence_and_what_follows_does_not_hide_it(tmp_path):
    (tmp_path / "metrics.json").symlink_to("/dev/full")
    file = MetricsFile(tmp_path / "metrics.json", 1)
    with EventStorage(0) as storage:
        storage.put_scalar("total_loss", 1.0)
        with pytest.raises(InputError, match="cannot write .*metrics.json: No space left on devi"):
            file.write()
        file.write()
        file.close()


# A limit on the size of files stands for a full disk: the same error from the same call.
TENSORBOARD = """
import resource, signal, sys, time
from detectron2.utils.events import EventStorage
from snnet_vitdet.engine import TensorBoardFile
from snnet_vitdet.errors import exit_on_input_error

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with EventStorage(0) as storage, exit_on_input_error():
    writer = TensorBoardFile(sys.argv[1])
    storage.put_scalar("total_loss", 1.0)
    writer.write()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        # A thread writes, when it comes to it.
        for storage.iter in range(1, 10_000):
            storage.put_scalar("total_loss", 1.0)
            writer.write()
            time.sleep(0.01)
    finally:
        writer.write()
        writer.close()
"""


def test_the_thread_of_tensorboard_says_the_same_sentence_on_a_full_disk(tmp_path):
    program = [sys.executable, "-c", TENSORBOARD, str(tmp_path)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 2
    assert f"error: cannot write the events of TensorBoard in {tmp_path}: File too" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_log_on_a_full_disk_is_said_once_and_the_run_goes_on(tmp_path, capsys, restored_logging):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log_to_file(str(tmp_path), 0, ("some.library",))
    for _ in range(3):
        logging.getLogger("some.library").info("what is going on")
    said = capsys.readouterr().err
    assert said.count("cannot write") == 1 and "log.txt: No space left on device" in said
    assert "Traceback" not in said


def test_each_process_has_its_log_and_a_second_run_no_second_line(tmp_path, restored_logging):
    for rank in (0, 0, 1):
        log_to_file(str(tmp_path), rank, ("some.program", "some.library"))
        logging.getLogger("some.library").info("process %d", rank)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.partition(": ")[2] for line in lines] == ["process 0", "process 0", "process 1"]
    assert (tmp_path / "log.txt.rank1").read_text().count("process 1") == 1
    assert sorted(os.listdir(tmp_path)) == ["log.txt", "log.txt.rank1"]


def test_a_training_on_a_full_disk_ends_in_a_sentence(
    tiny_config, tmp_path, capfd, restored_logging
):
    for name in ("log.txt", "metrics.json"):
        (tmp_path / name).symlink_to("/dev/full")
    config = tiny_config(f"train.output_dir='{tmp_path}'", "train.max_iter=3", "train.log_period=1")
    with pytest.raises(InputError, match="cannot write .*metrics.json: No space left on device"):
        run_main(config)
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said and said.count("log.txt: No space left") == 1
    assert (tmp_path / "model_init.pth").stat().st_size > 1000

import json

import pytest
from detectron2.engine import HookBase, TrainerBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventStorage

from snnet_vitdet.engine import MetricsFile, WriteMetrics


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

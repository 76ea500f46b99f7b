import csv
import math

import pytest
from detectron2.config import instantiate
from in_process import run_program

pytestmark = pytest.mark.slow


def test_what_grows_with_the_processes_is_measured_and_written(
    monkeypatch, tiny_overrides, tiny_config, tmp_path, root
):
    monkeypatch.chdir(root)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    overrides = [*tiny_overrides, "+train.ddp.bucket_cap_mb=0.01"]
    overrides.append("train.ddp.skip_all_reduce_unused_params=False")
    options = ["--processes", "1", "2", "--total-batch", "2", "--repeats", "1"]
    done = run_program(
        "tools/measure_processes.py", *options, "--output", str(tmp_path), *overrides
    )
    assert done.code == 0, done.error
    with open(tmp_path / "processes.csv", newline="", encoding="utf-8") as file:
        alone, two = csv.DictReader(file)
    assert [alone["num_processes"], alone["batch"]] == ["1", "2"]
    assert [two["num_processes"], two["batch"]] == ["2", "1"]
    # DDP adds up the gradients of all parameters that are trained, used or not.
    model = instantiate(tiny_config().model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert int(two["reduced_bytes"]) == 4 * trained
    assert int(alone["reduced_bytes"]) == 0
    assert 0 < float(two["late_bytes"]) < 4 * trained
    for row in (alone, two):
        assert all(math.isfinite(float(value)) for value in row.values())
        assert float(row["cpu_seconds"]) > 0


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch, root):
    monkeypatch.chdir(root)
    done = run_program("tools/measure_processes.py", "--processes", "3", "--total-batch", "4")
    assert done.code == 2
    assert "--processes 3 cannot share --total-batch 4" in done.error

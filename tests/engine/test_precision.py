import pytest
import torch
from in_process import run_main

from snnet_vitdet.engine.precision import (
    machine_epsilon,
    set_float32_arithmetic,
    training_precision,
)


@pytest.fixture(autouse=True)
def restored_arithmetic():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("tf32", [True, False])
def test_float32_is_the_same_in_matrix_products_and_convolutions(tf32):
    set_float32_arithmetic(not tf32)
    set_float32_arithmetic(tf32)
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32


def test_float32_has_the_epsilon_of_tf32_only_where_a_gpu_may_use_it(monkeypatch):
    set_float32_arithmetic(True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine_epsilon(torch.float32) == 2**-23
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine_epsilon(torch.float32) == 2**-10
    assert machine_epsilon(torch.bfloat16) == 2**-7
    set_float32_arithmetic(False)
    assert machine_epsilon(torch.float32) == 2**-23


@pytest.mark.parametrize(
    ("device", "enabled", "precision", "native", "expected"),
    [
        ("cpu", True, "auto", True, torch.float32),
        ("cuda", False, "auto", True, torch.float32),
        ("cuda", True, "auto", True, torch.bfloat16),
        ("cuda", True, "auto", False, torch.float16),
        ("cuda:1", True, "float16", True, torch.float16),
    ],
)
def test_precision_of_a_training(
    device, enabled, precision, native, expected, tiny_config, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: native)
    config = tiny_config(
        f"train.device={device}", f"train.amp.enabled={enabled}", f"train.amp.precision={precision}"
    )
    assert training_precision(config) == expected


def test_every_run_sets_it(tiny_config, tmp_path, restored_logging):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    run_main(tiny_config(f"train.output_dir={tmp_path}", "train.max_iter=1", "train.tf32=True"))
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32

import json
import math
import sys

import pytest
import torch
from torch.nn import functional as F

import check_device
import device_checks
from check_device import CHECKS
from device_checks import Setting
from device_networks import _Kernels, _worst_error
from snnet_vitdet.modeling import anchor_alone, join_configs
from snnet_vitdet.modeling.attention import Attention

CPU = torch.device("cpu")


@pytest.fixture
def setting(tiny_config):
    return Setting(tiny_config(), CPU, num_images=1, vit_size=64)


def statuses(setting, *checks):
    """The status of each row of some checks."""
    return {row: status for row, status, _ in check_device.rows_of(checks, setting)}


def run(monkeypatch, *options):
    """Exit status of the program."""
    monkeypatch.setattr(sys, "argv", ["check_device.py", "--device", "cpu", *options])
    with pytest.raises(SystemExit) as exit_:
        check_device.main()
    return exit_.value.code


def test_nothing_differs_on_a_cpu(setting):
    found = statuses(setting, "versions", "attention", "vit", "masks", "training")
    assert set(found.values()) == {"ok"}
    assert list(found) == [
        "versions",
        "torchvision's NMS and RoIAlign",
        *(
            f"attention, {side} x {side} tokens of 16, {name}"
            for side in (2, 4)
            for name in ("float32", "float16", "bfloat16")
        ),
        *(f"ViT, {name}" for name in ("float32", "float16", "bfloat16")),
        "masks, encoded",
        "training step, L at 64, float32",
    ]


@pytest.mark.slow
def test_a_sweep_on_the_cpu_finds_what_the_reference_finds(setting):
    assert set(statuses(setting, "sweep").values()) == {"ok"}


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(setting):
    assert statuses(setting, "processes") == {"two processes, gloo": "ok"}


@pytest.mark.slow
def test_the_program_checks_the_default_of_a_cpu(monkeypatch, capsys, root):
    monkeypatch.chdir(root)
    assert run(monkeypatch) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "Nothing differs."


def without_relative_positions(self, q, k, v, grid):
    return F.scaled_dot_product_attention(q, k, v)


def test_wrong_attention_differs(monkeypatch, setting):
    monkeypatch.setattr(Attention, "_decomposed", without_relative_positions)
    found = statuses(setting, "attention", "vit")
    assert len(found) == 9 and set(found.values()) == {"differs"}


@pytest.mark.slow
def test_a_sweep_with_wrong_attention_differs(monkeypatch, setting):
    monkeypatch.setattr(Attention, "_decomposed", without_relative_positions)
    assert set(statuses(setting, "sweep").values()) == {"differs"}


def test_attention_without_a_fused_kernel_differs(monkeypatch, setting):
    monkeypatch.setattr(Attention, "_fused", Attention._reference)
    assert set(statuses(setting, "attention").values()) == {"differs"}


def test_a_wrong_gradient_differs(monkeypatch, setting):
    own = Attention._decomposed

    def without_gradient_of_rel_pos(self, *args):
        try:
            self.rel_pos_h.requires_grad_(False)
            return own(self, *args) + 0 * self.rel_pos_w.sum()
        finally:
            self.rel_pos_h.requires_grad_(True)

    monkeypatch.setattr(Attention, "_decomposed", without_gradient_of_rel_pos)
    assert set(statuses(setting, "attention").values()) == {"differs"}


def test_wrong_masks_differ(monkeypatch, setting):
    own = device_checks.find_runs
    monkeypatch.setattr(
        device_checks, "find_runs", lambda p, boxes, size: own(p, boxes * 0.99, size)
    )
    assert statuses(setting, "masks") == {"masks, encoded": "differs"}


def test_a_loss_that_is_not_finite_differs(monkeypatch, setting):
    own = device_checks.synthetic_batch

    def of_infinite_numbers(*args):
        return [{**each, "image": each["image"] * float("inf")} for each in own(*args)]

    monkeypatch.setattr(device_checks, "synthetic_batch", of_infinite_numbers)
    assert set(statuses(setting, "training").values()) == {"differs"}


def test_a_training_that_does_not_fit_differs(monkeypatch, setting):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(device_checks, "autocast", full)
    ((name, status, figure),) = check_device.rows_of(["training"], setting)
    assert (name, status) == ("training step, L at 64, float32", "differs")
    assert figure.startswith("2 images do not fit into the memory; try ")


def test_the_largest_image_size_of_the_training_takes_a_step_too(tiny_config):
    config = tiny_config("train.image_sizes=[64,96,32]")
    assert list(statuses(Setting(config, CPU), "training")) == [
        "training step, L at 64, float32",
        "training step, L at 96, float32",
    ]


def test_other_detectors_are_checked(tiny_config):
    config = tiny_config()
    two = [anchor_alone(config.model, anchor) for anchor in ("small", "large")]
    config.model = join_configs(*two, lora_rank=2)
    found = statuses(Setting(config, CPU, vit_size=64), "vit", "training")
    assert set(found.values()) == {"ok"}
    # S and L of a joined detector have nothing to learn.
    assert list(found)[-1].startswith("training step, SFS-")


def test_an_error_is_a_row_and_the_rest_runs(monkeypatch, tiny_overrides, capsys, root):
    def fail(setting):
        yield "first", True, "done"
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.chdir(root)
    monkeypatch.setitem(CHECKS, "masks", fail)
    assert run(monkeypatch, *tiny_overrides, "--checks", "masks", "versions") == 1
    printed = capsys.readouterr().out
    assert "masks                           differs  RuntimeError: no kernel image\n" in printed
    assert "versions                        ok" in printed
    assert printed.endswith("1 of 4 differ.\n")


def test_what_a_machine_does_not_have_is_no_difference(monkeypatch, tiny_overrides, capsys, root):
    monkeypatch.chdir(root)
    monkeypatch.setitem(CHECKS, "processes", lambda setting: [("two", None, "1 GPU")])
    assert run(monkeypatch, *tiny_overrides, "--checks", "processes") == 0
    assert "two  not here  1 GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gradient", "error"),
    [([1.0, 1.0], 0.0), ([1.0, 2.0], 0.5**0.5), ([1.0, math.nan], math.inf), (None, math.inf)],
)
def test_the_worst_gradient_counts(gradient, error):
    expected = {"output": torch.ones(2), "weight": torch.ones(2)}
    found = {"output": torch.ones(2)}
    if gradient:
        found["weight"] = torch.tensor(gradient)
    assert _worst_error(found, expected) == pytest.approx(error)


def test_the_kernel_that_runs_is_noted():
    q = torch.randn(1, 2, 8, 16)
    with _Kernels() as kernels, torch.no_grad():
        F.scaled_dot_product_attention(q, q, q)
        q @ q.mT
    assert kernels.names == {"flash_attention_for_cpu"}


def test_processes_that_do_not_exchange_gradients_would_differ(monkeypatch, setting):
    def without_exchange(function, args, nprocs):
        path = f"{args[2]}/errors.json"
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"first": 0.9, "second": 0.9, "apart": 0.9}, file)

    monkeypatch.setattr(torch.multiprocessing, "spawn", without_exchange)
    assert statuses(setting, "processes") == {"two processes, gloo": "differs"}

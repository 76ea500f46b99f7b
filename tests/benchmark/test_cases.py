import pytest
import torch
from detectron2.config import instantiate

from snnet_vitdet.benchmark import block_cases, inference_cases, sweep_cases, training_cases
from snnet_vitdet.benchmark.cases import detectron2_vitdet
from snnet_vitdet.engine import synthetic_batch
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import anchor_alone, baseline_cost, join_configs

CPU = torch.device("cpu")


def _parameters(case):
    # The first argument of a case's forward pass is what it measures.
    return tuple(case.forward.args[0].parameters())


@pytest.fixture(scope="module")
def model_config(tiny_config):
    return tiny_config().model


@pytest.fixture(scope="module")
def batch():
    return synthetic_batch(1, 64, 6)


def test_blocks_of_each_anchor_are_compared_with_those_of_detectron2(model_config):
    cases = {case.network: case for case in block_cases(model_config, CPU, torch.float32, 1)}
    assert len(cases) == 2 * 2 * 3
    # 4 and 8 blocks, every other one in windows.
    for anchor, count in (("small", 2), ("large", 4)):
        for kind in ("window", "global"):
            ours, theirs = cases[f"stitched {anchor} {kind}"], cases[f"detectron2 {anchor} {kind}"]
            assert ours.weight == theirs.weight == count
            sizes = [sum(p.numel() for p in _parameters(case)) for case in (ours, theirs)]
            # LayerScale is ours alone.
            width = model_config.backbone.net[anchor].embed_dim
            assert sizes[0] - sizes[1] == 2 * width
            ours.run()
            assert all(p.grad is not None for p in _parameters(ours))


@pytest.mark.parametrize("anchor", ["small", "large"])
def test_detectron2s_own_detector_has_the_sizes_of_the_anchor(model_config, anchor):
    theirs = instantiate(detectron2_vitdet(model_config, anchor))
    ours = baseline_cost(anchor_alone(model_config, anchor))
    width = model_config.backbone.net[anchor].embed_dim
    params = sum(p.numel() for p in theirs.parameters())
    # It has a position for the class token besides.
    assert params - ours.params == width
    windows = [block.window_size for block in theirs.backbone.net.blocks]
    assert windows == [2, 0] * (len(windows) // 2)


def test_a_training_step_runs_the_stitch_it_is_named_after(model_config, batch):
    cases = training_cases(model_config, CPU, torch.float32, batch, ["S", "FS-2"])
    assert [case.network for case in cases] == [
        "stitch S",
        "stitch FS-2",
        "detectron2 ViTDet small",
        "detectron2 ViTDet large",
    ]
    losses = [case.forward().item() for case in cases]
    assert len(set(losses)) == 4
    cases[1].run()
    ran = [p.grad is not None for p in _parameters(cases[1])]
    assert any(ran) and not all(ran)
    # The learning rate is zero: the next repetition is the same.
    assert [case.forward().item() for case in cases] == losses


def test_detectors_that_are_joined_have_nothing_to_learn(model_config, batch):
    two = (anchor_alone(model_config, anchor) for anchor in ("small", "large"))
    joined = join_configs(*two, lora_rank=2)
    case = training_cases(joined, CPU, torch.float32, batch, ["FS-2"])[0]
    case.run()
    with pytest.raises(InputError, match="stitch L of a joined detector has nothing to learn"):
        training_cases(joined, CPU, torch.float32, batch, ["FS-2", "L"])


def test_inference_and_sweep_run(model_config, batch):
    for case in inference_cases(model_config, CPU, torch.float32, batch, ["L"]):
        case.run()
    one_pass, separate = sweep_cases(model_config, CPU, torch.float32, batch, ["S", "FS-2", "FS-3"])
    assert one_pass.network == "3 stitches in one pass"
    assert separate.network == "3 stitches separately"
    one_pass.run()
    separate.run()

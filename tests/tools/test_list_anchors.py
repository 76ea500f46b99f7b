import sys

import pytest
from tools import list_anchors

from snnet_vitdet.engine import load_config
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.modeling.families import check_pretraining

NAMES = ["vit_base_patch14_dinov2.lvd142m", "vit_base_patch14_reg4_dinov2", "samvit_base_patch16"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the program in this process; returns what it prints."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["list_anchors.py", *args])
        list_anchors.main()
        return capsys.readouterr().out

    return run


def test_list_has_every_plain_vit_with_its_size_or_the_reason(run, monkeypatch):
    monkeypatch.setattr(list_anchors, "plain_vit_names", lambda: NAMES)
    lines = run().splitlines()
    assert lines[0] == "vit_base_patch14_dinov2.lvd142m: width 768, depth 12, heads 12, patch 14"
    assert lines[1] == "samvit_base_patch16: width 768, depth 12, heads 12, patch 16"
    assert lines[3].startswith("Not these, because its blocks keep what they know")
    assert lines[4] == "  vit_base_patch14_reg4_dinov2"


@pytest.mark.parametrize(
    "name",
    [
        "vit_large_patch14_clip_quickgelu_224.openai",
        "beitv2_large_patch16_224",
        "samvit_large_patch16",
    ],
)
def test_printed_overrides_make_the_anchor_of_the_weights(run, name, root):
    overrides = run(name, "--anchor", "large").splitlines()
    assert f"init.weights.large={name}" in overrides
    config = load_config(str(root / "configs/COCO/mask_rcnn_snnet_deit3_b_l_100ep.py"), overrides)
    assert config.init.weights.large == name
    check_pretraining(build_on_meta(config.model).backbone.net.large, name)


def test_a_model_that_cannot_be_an_anchor_is_refused(run, capsys):
    with pytest.raises(SystemExit) as exit_:
        run("vit_base_patch16_dinov3")
    assert exit_.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: vit_base_patch16_dinov3 cannot be an anchor: ")

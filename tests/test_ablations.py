"""The ablations in docs/results.md: overrides that the paper's config and the smallest one take."""

import re
from pathlib import Path

import pytest
from detectron2.config import instantiate

from snnet_vitdet.engine import load_config
from snnet_vitdet.modeling import find_stitched_vit, stitch_costs
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.stitching import ResourceConstrainedSampler, UniformSampler

ROOT = Path(__file__).parent.parent
SL = str(ROOT / "configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py")
PAGE = (ROOT / "docs/results.md").read_text(encoding="utf-8")
# Whatever stands behind a config or alone in a row of a table.
ABLATIONS = sorted(
    {
        found[1]
        for row in re.findall(r"^\| .*$", PAGE, re.MULTILINE)
        for found in re.finditer(r"`(?:configs/COCO/mask_rcnn_snnet\S+ )?([\w.]+=[^`]+)`", row)
    }
)
ONE_CUT = "model.backbone.net.max_cuts=1"
SN_NETV1 = f"{ONE_CUT} model.backbone.net.kinds=[S,L,FS]"


def test_the_page_has_the_ablations_of_the_paper():
    assert len(ABLATIONS) > 12
    for override in (SN_NETV1, ONE_CUT, "model.backbone.net.lora_rank=0", "sampler.step=50"):
        assert override in ABLATIONS


@pytest.mark.parametrize("overrides", ABLATIONS)
def test_an_ablation_builds_at_both_sizes(overrides, tiny_config):
    words = overrides.split()
    small, one_cut = overrides.startswith(SN_NETV1), overrides.startswith(ONE_CUT)
    configs = [(load_config(SL, words), (134, 24, 13))]
    if "lora_rank=64" not in overrides:  # more than the smallest ViT's width
        configs.append((tiny_config(*words), (14, 8, 5)))
    for config, (every, with_one_cut, snnetv1) in configs:
        space = find_stitched_vit(build_on_meta(config.model)).space
        assert len(space) == (snnetv1 if small else with_one_cut if one_cut else every)
        config.sampler.gflops = list(stitch_costs(config.model).gflops)
        sampler = instantiate(config.sampler)
        uniform = "UniformSampler" in overrides
        assert isinstance(sampler, UniformSampler if uniform else ResourceConstrainedSampler)
        assert 0 <= sampler(0) < len(space)

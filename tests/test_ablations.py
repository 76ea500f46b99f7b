"""Every ablation changes what it says and nothing else, and works on the embedded default, too."""

from pathlib import Path

import pytest
from detectron2.config import instantiate
from detectron2.utils.registry import locate
from omegaconf import OmegaConf

from snnet_vitdet.engine import load_config
from snnet_vitdet.modeling import find_stitched_vit, stitch_costs
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.stitching import ResourceConstrainedSampler, UniformSampler

ROOT = Path(__file__).parent.parent
BASE = "configs/COCO/mask_rcnn_snnet_deit3_{}_100ep.py"
NET = "model.backbone.net"
# Networks of 12 stages, and of the embedded default's 4, where they are not all.
SIZES = {"snnetv1": (13, 5), "space_snnetv1": (13, 5), "space_one_cut": (24, 8)}
UNIFORM = ("snnetv1", "snnetv1_two_way", "sampling_uniform")
UNIFORM_SAMPLING = {
    "sampler._target_": UniformSampler,
    "sampler.step": None,
    "sampler.grouping": None,
}
# The config the ablation belongs to, and what it changes.
CHANGES = {
    "space_snnetv1": ("s_l", {f"{NET}.max_cuts": 1, f"{NET}.kinds": ["S", "L", "FS"]}),
    "snnetv1": (
        "s_l",
        {
            f"{NET}.max_cuts": 1,
            f"{NET}.kinds": ["S", "L", "FS"],
            f"{NET}.lora_rank": 0,
            **UNIFORM_SAMPLING,
        },
    ),
    "snnetv1_two_way": (
        "s_l",
        {f"{NET}.lora_rank": 0, **UNIFORM_SAMPLING},
    ),
    "space_one_cut": ("s_l", {f"{NET}.max_cuts": 1}),
    "sampling_uniform": (
        "s_l",
        UNIFORM_SAMPLING,
    ),
    "sampling_step_50": ("s_l", {"sampler.step": 50.0}),
    "stitching_full_rank": ("s_l", {f"{NET}.lora_rank": 0}),
    "stitching_full_rank_b_l": ("b_l", {f"{NET}.lora_rank": 0}),
    "lora_alpha_1": ("s_l", {f"{NET}.lora_alpha": 1.0}),
    "stitching_rank_4": ("s_l", {f"{NET}.lora_rank": 4}),
    "stitching_rank_64": ("s_l", {f"{NET}.lora_rank": 64}),
    "stitching_random_start": ("s_l", {"init.stitching_layers": "random"}),
    "fit_10_images": ("s_l", {"init.num_images": 10}),
    "positions_abs_win": (
        "s_l",
        {
            f"{NET}.{anchor}.{key}": value
            for anchor in ("small", "large")
            for key, value in (("abs_pos", "win"), ("use_rel_pos", "global"))
        },
    ),
    "positions_window_16": (
        "s_l",
        {f"{NET}.{anchor}.window_size": 16 for anchor in ("small", "large")},
    ),
    "tuning_lora_4_b_l": (
        "b_l",
        {
            f"{NET}.{anchor}.{key}": value
            for anchor in ("small", "large")
            for key, value in (("lora_rank", 4), ("use_rel_pos", False))
        },
    ),
}


def flat(node, path=""):
    """Keys with their values; a callable stands for itself however it is written."""
    if isinstance(node, dict):
        items = [flat(value, f"{path}.{key}" if path else key) for key, value in node.items()]
        return {key: value for item in items for key, value in item.items()}
    if path.endswith("_target_") and isinstance(node, str):
        node = locate(node)
    return {path: node}


def plain(path):
    """The keys of a recipe, without the anchors that a config file has imported to choose from."""
    config = OmegaConf.to_container(load_config(str(ROOT / path)), resolve=False)
    return flat({key: value for key, value in config.items() if not key.startswith("deit3_")})


def test_every_ablation_is_tested():
    assert {path.stem for path in (ROOT / "configs/ablations").glob("*.py")} == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_ablation_changes_what_it_says_and_nothing_else(name):
    base, changes = CHANGES[name]
    before, after = plain(BASE.format(base)), plain(f"configs/ablations/{name}.py")
    changed = {
        key: after.get(key) for key in {**before, **after} if before.get(key) != after.get(key)
    }
    assert changed.pop("train.output_dir") == f"output/ablations/{name}"
    assert changed == changes


@pytest.mark.parametrize("name", CHANGES)
def test_ablation_builds(name):
    config = load_config(str(ROOT / f"configs/ablations/{name}.py"))
    space = find_stitched_vit(build_on_meta(config.model)).space
    assert len(space) == SIZES.get(name, (134, 14))[0]
    config.sampler.gflops = list(stitch_costs(config.model).gflops)
    sampler = instantiate(config.sampler)
    expected = UniformSampler if name in UNIFORM else ResourceConstrainedSampler
    assert isinstance(sampler, expected)
    assert 0 <= sampler(0) < len(space)


@pytest.fixture
def override(tiny_config):
    """The tiny detector with the overrides that make an ablation of it."""

    def override(name):
        changes = dict(CHANGES[name][1])
        if "sampler._target_" in changes:
            changes = {k: v for k, v in changes.items() if k not in UNIFORM_SAMPLING}
            changes["sampler._target_"] = "snnet_vitdet.stitching.UniformSampler"
        changes = {k: str(v).replace("'", "").replace(" ", "") for k, v in changes.items()}
        return tiny_config(*(f"{key}={value}" for key, value in changes.items()))

    return override


@pytest.mark.parametrize("name", [n for n in CHANGES if n != "stitching_rank_64"])
def test_ablation_is_made_of_the_embedded_default_by_overrides(name, override):
    config = override(name)
    space = find_stitched_vit(build_on_meta(config.model)).space
    assert len(space) == SIZES.get(name, (134, 14))[1]
    config.sampler.gflops = list(stitch_costs(config.model).gflops)
    assert 0 <= instantiate(config.sampler)(0) < len(space)

"""Every config builds what it names, can be saved, and has the recipe's numbers."""

import json
import logging
import re
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
import yaml
from detectron2 import model_zoo
from detectron2.config import LazyConfig, instantiate
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn

from snnet_vitdet.data.scenes import CATEGORIES
from snnet_vitdet.engine import load_config
from snnet_vitdet.engine.initialise import anchors_of
from snnet_vitdet.modeling import StitchedViT, baseline_cost, find_stitched_vit, stitch_costs
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.modeling.weights import check_weights
from snnet_vitdet.stitching import ResourceConstrainedSampler

ROOT = Path(__file__).parent.parent
PROXY = "research/proxy/configs/"
FILES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("configs/**/*mask_*.py", f"{PROXY}*.py")
    for path in ROOT.glob(pattern)
)
RUNNABLE = [name for name in FILES if "/common/" not in name]
STITCHED = [name for name in RUNNABLE if "snnet" in name]
OF_COCO = ("configs/COCO/", "configs/families/", "configs/join/")
OF_SCENES = (
    "configs/shapes/",
    "configs/join/mask_rcnn_snnet_nano.py",
    PROXY,
)
JOINED = [n for n in RUNNABLE if n.startswith("configs/join/") or n.endswith("_joined.py")]
RECIPES = [
    name
    for name in RUNNABLE
    if name.startswith(OF_COCO) and not name.startswith(OF_SCENES) and "coco_json" not in name
]
PAPER = [name for name in RECIPES if name.endswith("_100ep.py")]
SHORT = [name for name in RECIPES if "_12ep" in name]

SL = {"small": (12, 0.7), "large": (24, 0.8)}
JOINED_SL = {"small": (12, 1.0), "large": (24, 1.0)}
NANO = {"small": (4, 1.0), "large": (8, 1.0)}
FAMILIES = ("mae", "augreg", "sam", "beitv2", "dinov2", "clip")
# Depth and decay per layer of each anchor: 0.7 for 12 blocks, 0.8 for 24, 0.9 for 32.
CASCADE = "configs/COCO/cascade_mask_rcnn_snnet_deit3_s_l_100ep.py"
DECAY = {
    CASCADE: SL,
    "configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py": SL,
    "configs/COCO/mask_rcnn_snnet_deit3_s_l_12ep.py": SL,
    "configs/COCO/mask_rcnn_snnet_deit3_s_l_12ep_1gpu.py": SL,
    "configs/COCO/mask_rcnn_snnet_deit3_b_l_100ep.py": SL,
    "configs/COCO/mask_rcnn_snnet_deit3_s_b_100ep.py": {"small": (12, 0.7), "large": (12, 0.7)},
    "configs/COCO/mask_rcnn_vitdet_deit3_s_100ep.py": {"net": (12, 0.7)},
    "configs/COCO/mask_rcnn_vitdet_deit3_b_100ep.py": {"net": (12, 0.7)},
    "configs/COCO/mask_rcnn_vitdet_deit3_l_100ep.py": {"net": (24, 0.8)},
    "configs/COCO/mask_rcnn_snnet_deit3_l_h_100ep.py": {"small": (24, 0.8), "large": (32, 0.9)},
    **{f"configs/families/mask_rcnn_snnet_{family}_b_l_100ep.py": SL for family in FAMILIES},
    "configs/families/mask_rcnn_snnet_dinov2_s_deit3_l_100ep.py": SL,
    "configs/custom/mask_rcnn_snnet_coco_json.py": NANO,
    "configs/custom/mask_rcnn_snnet_deit3_s_l_coco_json.py": SL,
    "configs/custom/mask_rcnn_vitdet_deit3_s_coco_json.py": {"net": (12, 0.7)},
    "configs/custom/mask_rcnn_vitdet_deit3_l_coco_json.py": {"net": (24, 0.8)},
    "configs/join/mask_rcnn_snnet_s_l.py": JOINED_SL,
    "configs/join/cascade_mask_rcnn_snnet_s_l.py": JOINED_SL,
    "configs/join/mask_rcnn_snnet_mae_b_l.py": JOINED_SL,
    "configs/join/mask_rcnn_snnet_s_l_coco_json.py": JOINED_SL,
    "configs/join/mask_rcnn_snnet_nano.py": NANO,
    f"{PROXY}mask_rcnn_snnet_proxy_joined.py": {"small": (6, 1.0), "large": (12, 1.0)},
    "configs/shapes/mask_rcnn_snnet_nano.py": {"small": (4, 0.7), "large": (8, 0.8)},
    "configs/shapes/mask_rcnn_vitdet_nano_s.py": {"net": (4, 0.7)},
    "configs/shapes/mask_rcnn_vitdet_nano_l.py": {"net": (8, 0.8)},
    f"{PROXY}mask_rcnn_snnet_proxy.py": {"small": (6, 0.7), "large": (12, 0.8)},
    f"{PROXY}mask_rcnn_vitdet_proxy_s.py": {"net": (6, 0.7)},
    f"{PROXY}mask_rcnn_vitdet_proxy_l.py": {"net": (12, 0.8)},
}
WIDTHS = {"s": 384, "b": 768, "l": 1024, "h": 1280}


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    """A COCO file of three categories with sparse ids."""
    path = tmp_path_factory.mktemp("annotations") / "some.json"
    categories = [{"id": i, "name": name} for i, name in ((7, "fig"), (2, "nut"), (90, "pea"))]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    return path


@pytest.fixture(scope="module")
def load(annotations):
    """Loads a config by name with its data filled in; the model on the meta device comes along."""

    @lru_cache
    def load(name):
        keys = ("train_json", "test_json", "train_images", "test_images")
        overrides = [] if name in RECIPES else [f"data.{key}='{annotations}'" for key in keys]
        config = load_config(str(ROOT / name), overrides)
        return config, build_on_meta(config.model)

    return load


def test_every_recipe_is_among_those_tested():
    assert set(RUNNABLE) == set(DECAY)


@pytest.mark.parametrize("name", RUNNABLE)
def test_model_has_the_anchors_and_classes_of_its_config(name, load):
    config, model = load(name)
    net = model.backbone.net
    anchors = (
        {"small": net.small, "large": net.large} if isinstance(net, StitchedViT) else {"net": net}
    )
    assert {key: anchor.depth for key, anchor in anchors.items()} == {
        key: depth for key, (depth, _) in DECAY[name].items()
    }
    letters = re.findall(r"_([sblh])(?=[_.])", name)
    if letters and not name.startswith(OF_SCENES):
        widths = [WIDTHS[letter] for letter in letters]
        assert [anchor.embed_dim for anchor in anchors.values()] == widths
    assert (find_stitched_vit(model) is not None) == (name in STITCHED)
    # COCO's, the generated scenes', else those of the annotation file.
    generated = name.startswith(OF_SCENES)
    expected = 80 if name in RECIPES else len(CATEGORIES) if generated else 3
    assert model.roi_heads.num_classes == expected
    assert config.model.backbone.square_pad == config.data.image_size


@pytest.mark.parametrize(
    "name", [n for n in RUNNABLE if not n.startswith(PROXY) and n not in JOINED]
)
def test_anchors_are_those_that_the_weights_of_the_config_ask_for(name, load):
    config, model = load(name)
    weights = {key: source for key, source in config.init.weights.items() if source}
    for anchor, source in weights.items():
        check_weights(anchors_of(model)[anchor], source)
    assert weights or name == "configs/custom/mask_rcnn_snnet_coco_json.py"


def expected_factor(parameter, decay):
    """ViTDet's rule, written down anew: layer l of n learns at rate ** (n + 1 - l)."""
    match = re.match(
        r"backbone\.net\.(?:(small|large)\.)?(pos_embed|patch_embed|norm_pre|blocks\.\d+)",
        parameter,
    )
    if match is None:
        return 1.0
    depth, rate = decay[match[1] or "net"]
    layer = 1 + int(match[2].split(".")[1]) if match[2].startswith("blocks") else 0
    return rate ** (depth + 1 - layer)


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_parameter_group_has_the_learning_rate_and_decay_of_the_recipe(name, load):
    config, model = load(name)
    config.optimizer.params.model = model
    optimizer = instantiate(config.optimizer)
    config.optimizer.params.model = None
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(groups) == len(names)
    for parameter, value in names.items():
        group = groups[id(value)]
        expected = config.optimizer.lr * expected_factor(parameter, DECAY[name])
        assert group["lr"] == pytest.approx(expected, rel=1e-12), parameter
        undecayed = re.search(r"pos_embed|gamma|backbone\.net\..*norm\d", parameter)
        if undecayed:
            assert group["weight_decay"] == 0.0, parameter
        elif re.search(r"backbone\.net\..*(proj|qkv|fc\d)\.weight$", parameter):
            assert group["weight_decay"] == 0.1, parameter


@pytest.mark.parametrize("name", RUNNABLE)
def test_schedule_warms_up_drops_twice_and_covers_the_training(name, load):
    config, _ = load(name)
    multiplier = instantiate(config.lr_multiplier)
    assert isinstance(multiplier, ParamScheduler)
    last = 1 - 1 / max(config.train.max_iter, 1000)
    assert multiplier(0.0) == pytest.approx(0.001)
    assert [multiplier(where) for where in (0.5, 0.9, last)] == pytest.approx([1.0, 0.1, 0.01])


@pytest.mark.parametrize("name", STITCHED)
def test_sampler_takes_the_real_costs_and_reaches_every_stitch(name, load):
    config, model = load(name)
    space = model.backbone.net.space
    sampler_config = config.sampler.copy()
    sampler_config.gflops = list(stitch_costs(config.model).gflops)
    sampler_config.seed = config.train.seed
    sampler = instantiate(sampler_config)
    assert isinstance(sampler, ResourceConstrainedSampler)
    assert len(space) == {4: 14, 6: 32, 12: 134, 24: 554}[DECAY[name]["small"][0]]
    assert len(sampler.probabilities()) == len(space)
    assert min(sampler.probabilities()) > 0
    # Several budgets, or ROS would be no constraint at all.
    assert len(sampler.groups) >= 5


@pytest.mark.parametrize("name", RUNNABLE)
def test_config_is_saved_as_yaml_that_loads_again(name, load, tmp_path, caplog):
    config, _ = load(name)
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    with caplog.at_level(logging.WARNING):
        LazyConfig.save(config, str(first))
        LazyConfig.save(load_config(str(first)), str(second))
    assert not [record for record in caplog.records if "detectron2.config" in record.name]
    assert {path.name for path in tmp_path.iterdir()} == {"first.yaml", "second.yaml"}
    assert yaml.unsafe_load(first.read_text())["train"]["output_dir"] == config.train.output_dir
    assert first.read_text() == second.read_text()


@pytest.mark.parametrize("name", PAPER)
def test_coco_recipe_has_the_papers_numbers(name, load):
    config, model = load(name)
    # 100 epochs of ViTDet's 118,000 images at the paper's batch of 8.
    assert config.train.max_iter == 100 * 118000 / 8
    assert config.dataloader.train.total_batch_size == 8
    assert config.data.image_size == 1024
    schedule = config.lr_multiplier.scheduler
    assert schedule.num_updates == config.train.max_iter
    assert [m / schedule.num_updates for m in schedule.milestones] == pytest.approx(
        [8 / 9, 26 / 27], abs=2e-6
    )
    # ViTDet warms up for 250 iterations of 184,375.
    assert config.lr_multiplier.warmup_length * 184375 == pytest.approx(250)
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-4, 0.1)
    if name in STITCHED:
        rank = 4 if "_b_l_" in name else 16
        layers = model.backbone.net.stitching_layers.items()
        assert {layer.rank for _, layer in layers} == {rank}
        assert config.init.num_images == 100
        assert config.sampler.step == 10.0
    # Blocks of other stitches have no gradient; a baseline trains everything.
    assert config.train.ddp.find_unused_parameters == (name in STITCHED)


@pytest.mark.parametrize(
    "name",
    [n for n in RUNNABLE if (n in PAPER and n != CASCADE) or "vitdet_proxy" in n],
)
def test_baseline_and_supernet_differ_in_their_backbone_alone(name, load):
    config, _ = load(name)
    paper = "configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py"
    reference, _ = load(f"{PROXY}mask_rcnn_snnet_proxy.py" if "proxy" in name else paper)
    for section in ("data", "dataloader", "lr_multiplier"):
        assert config[section] == reference[section], section
    for part in ("proposal_generator", "roi_heads"):
        assert config.model[part] == reference.model[part], part
    assert config.optimizer.params.overrides == reference.optimizer.params.overrides


def test_twelve_epochs_are_those_of_the_recipe_they_shorten(load):
    assert len(SHORT) == 2
    for name in SHORT:
        config, _ = load(name)
        reference, _ = load("configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py")
        for section in ("data", "dataloader", "model", "optimizer", "sampler", "init", "sweep"):
            assert config[section] == reference[section], (name, section)
        batch = config.dataloader.train.total_batch_size
        # ViTDet's epoch is of 118,000 images.
        assert config.train.max_iter * batch == 12 * 118000
        schedule = instantiate(config.lr_multiplier)
        epochs = [(epoch + side) / 12 for epoch in (8, 11) for side in (-1e-4, 1e-4)]
        assert [schedule(where) for where in epochs] == pytest.approx([1.0, 0.1, 0.1, 0.01])
        # Its warm-up ends after as many images.
        images, reference_images = (
            c.lr_multiplier.warmup_length * c.train.max_iter * batch for c in (config, reference)
        )
        assert images == pytest.approx(reference_images) == pytest.approx(250 * 64)
        # The end is one of the evaluations and checkpoints.
        assert config.train.max_iter % config.train.eval_period == 0
        assert config.train.max_iter % config.train.checkpointer.period == 0


def test_one_gpu_trains_a_stitch_for_each_image_of_the_batch(load):
    recipe = "configs/COCO/mask_rcnn_snnet_deit3_s_l_12ep{}.py"
    ours, several = (load(recipe.format(suffix))[0].train for suffix in ("_1gpu", ""))
    assert ours.accumulation == {"steps": 8, "stitch": "own"}
    changed = {key for key in ours if ours[key] != several[key]}
    assert changed == {"accumulation", "checkpointer", "output_dir"}


def test_the_cascade_has_three_box_heads_of_rising_overlap_on_the_same_backbone(load):
    config, model = load(CASCADE)
    reference, _ = load("configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py")
    assert config.model.backbone == reference.model.backbone
    heads = model.roi_heads
    assert [matcher.thresholds[1] for matcher in heads.proposal_matchers] == [0.5, 0.6, 0.7]
    assert [p.box2box_transform.weights[0] for p in heads.box_predictor] == [10, 20, 30]
    assert len({id(head) for head in heads.box_head}) == 3


def test_output_folders_are_all_different(load):
    folders = [load(name)[0].train.output_dir for name in RUNNABLE]
    assert len(set(folders)) == len(folders)


def test_number_of_classes_of_custom_data_comes_from_its_file(load):
    config, model = load("configs/custom/mask_rcnn_snnet_deit3_s_l_coco_json.py")
    assert instantiate(config.model.roi_heads.num_classes) == 3
    assert model.roi_heads.mask_head.predictor.out_channels == 3


def shapes(detector):
    return {key: tuple(value.shape) for key, value in detector.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        (
            "configs/join/mask_rcnn_snnet_s_l.py",
            "configs/COCO/mask_rcnn_vitdet_deit3_{}_100ep.py",
        ),
        (
            "configs/join/mask_rcnn_snnet_s_l_coco_json.py",
            "configs/custom/mask_rcnn_vitdet_deit3_{}_coco_json.py",
        ),
        (
            "configs/join/mask_rcnn_snnet_nano.py",
            "configs/shapes/mask_rcnn_vitdet_nano_{}.py",
        ),
    ],
)
def test_a_joined_detector_is_of_the_two_that_its_baselines_train(name, baseline, load):
    config, model = load(name)
    for exit_anchor, size in enumerate(("small", "large")):
        alone, detector = load(baseline.format(size[0]))
        assert config.init.detectors[size] == f"{alone.train.output_dir}/model_final.pth"
        assert shapes(model.detector(exit_anchor)) == shapes(detector)
        costs = stitch_costs(config.model)
        assert costs[exit_anchor] == baseline_cost(alone.model)
        for key in ("pixel_mean", "pixel_std", "input_format"):
            assert config.model[key] == alone.model[key]
        assert config.dataloader.test == alone.dataloader.test


def test_the_joined_mae_detectors_are_those_of_detectron2_s_model_zoo(load, monkeypatch):
    """As its projects/ViTDet/configs/COCO/mask_rcnn_vitdet_{b,l}_100ep.py build them."""
    # Whose values its ViT needs, on the meta device too.
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    config, model = load("configs/join/mask_rcnn_snnet_mae_b_l.py")
    zoo = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    large = dict(embed_dim=1024, depth=24, num_heads=16, drop_path_rate=0.4)
    outside = [i for i in range(24) if i not in (5, 11, 17, 23)]
    for exit_anchor, changes in enumerate(({}, dict(large, window_block_indexes=outside))):
        zoo.backbone.net.update(changes)
        theirs, ours = build_on_meta(zoo), model.detector(exit_anchor)
        expected = shapes(theirs)
        batch, length, width = expected["backbone.net.pos_embed"]
        # Its ViT has a place for the class token, of which it makes no use.
        expected["backbone.net.pos_embed"] = (batch, length - 1, width)
        assert shapes(ours) == expected
        windows = [block.window_size for block in theirs.backbone.net.blocks]
        assert [block.window_size for block in ours.backbone.net.blocks] == windows
        norms = {m.eps for m in theirs.backbone.net.modules() if isinstance(m, nn.LayerNorm)}
        assert {m.eps for m in ours.backbone.net.modules() if isinstance(m, nn.LayerNorm)} == norms
    for key in ("pixel_mean", "pixel_std", "input_format"):
        assert config.model[key] == zoo[key]
    assert config.model.input_format == config.dataloader.test.mapper.image_format


@pytest.mark.parametrize("name", JOINED)
def test_a_joined_config_fits_alone_from_detectors_and_no_other_weights(name, load):
    config, _ = load(name)
    assert config.train.max_iter == 0
    assert config.init.stitching_layers == "least_squares"
    assert set(config.init.detectors) == {"small", "large"}
    assert not any(config.init.weights.values())

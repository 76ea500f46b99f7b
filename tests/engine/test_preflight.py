import json
import os
from importlib import import_module
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import GeneralizedRCNN

from snnet_vitdet.engine import load_config, preflight, prepare_run
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import AnchorViT, anchor_alone


@pytest.fixture
def check(tiny_config, tmp_path):
    """Checks the tiny training with overrides, its output in an empty folder."""

    def check(*overrides, evaluation=False, resume=False, num_processes=1):
        if evaluation and not any("at_initialisation" in override for override in overrides):
            (tmp_path / "some.pth").touch()
            overrides = (f"train.init_checkpoint='{tmp_path / 'some.pth'}'", *overrides)
        config = tiny_config(f"train.output_dir='{tmp_path / 'output'}'", *overrides)
        preflight(config, evaluation=evaluation, resume=resume, num_processes=num_processes)
        prepare_run(config, evaluation=evaluation, resume=resume)
        return config

    return check


@pytest.fixture
def write_json(tiny_scenes, tmp_path):
    """Writes a changed copy of the generated training annotations; returns its path."""

    def write_json(change=None, text=None):
        data = json.loads(Path(tiny_scenes.train_json).read_text())
        if change:
            change(data)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(data) if text is None else text)
        return path

    return write_json


def test_sound_training_and_sweep_pass(check, tmp_path):
    assert check().train.device == "cpu"
    assert check(evaluation=True).train.device == "cpu"
    # Nothing but the folder itself is made.
    assert os.listdir(tmp_path / "output") == []


@pytest.mark.parametrize(("available", "device"), [(True, "cuda"), (False, "cpu")])
def test_device_auto_is_the_gpu_where_there_is_one(available, device, check, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert check("train.device=auto").train.device == device


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_gpu_that_is_not_there_is_refused_with_both_remedies(device, check, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"device={device}.*sees no GPU: set train.device=cpu"):
        check(f"train.device={device}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.device=gpu", "train.device=gpu is no device"),
        ("optimizer.lr=-1e-4", "optimizer.lr=-0.0001 must be a number above 0"),
        (
            "optimizer.params.overrides.pos_embed={lr:nan}",
            "optimizer.params.overrides.pos_embed.lr=nan must be a finite number",
        ),
        (
            "optimizer.weight_decay=-1",
            "optimizer cannot be built from its config: Invalid weight_decay",
        ),
        ("lr_multiplier.warmup_length=2", "lr_multiplier cannot be built .*: where in Par"),
        (
            "lr_multiplier.scheduler.values=[1.0,-0.1,0.01]",
            "lr_multiplier after 800 of 1000 parts of the training=-0.1 must be a number of at lea",
        ),
        (
            "sampler.seed=-1",
            "sampler cannot draw with its config: seed must be >= 0, got -1",
        ),
        ("sampler.step=0", "sampler cannot be built from its config: step must be a posit"),
        ("model.backbone.net.small.num_heads=5", "small cannot be built .*: width .* num_heads=5"),
        ("model.backbone.square_pad=0", "model.backbone.square_pad is 0"),
        ("sweep.stitch_ids=14", "stitch '14' is outside .* ids go from 0 to 13"),
        ("sweep.stitch_ids=3-1", "'3-1' runs backwards"),
        ("sweep.stitch_ids=FS-9", "unknown stitch 'FS-9'"),
        ("train.eval_stitches=[0,99]", "stitch '99' is outside"),
        ("train.init_checkpoint=gone.pth", "train.init_checkpoint=gone.pth does not exist"),
        ("model.roi_heads.num_classes=5", "num_classes is 5, but the data has 6 categories"),
        ("init.weights.small=gone.pth", "weight file gone.pth does not exist"),
        (
            "init.weights.large=no_such_vit",
            r"neither an existing file, nor .*, nor a model that timm knows",
        ),
        (
            "model.backbone.net.small.patch_size=32",
            r"cannot be stitched: their patch sizes differ \(32 and 16\)",
        ),
        ("model.backbone.net.small.depth=9", "small anchor has more blocks"),
        ("model.backbone.net.kinds=[FX]", "choose among"),
        ("model.backbone.net.lora_rank=33", "rank must be 0 … 32"),
        ("model.backbone.net.small.global_block_indexes=[4]", "global_block_indexes holds 4"),
        ("model.backbone.net.lora_alpha=-1", "model.backbone.net: alpha must be at least 0, or n"),
        ("model.backbone.net.small.embed_dim=-8", "small: embed_dim=-8 must be a who"),
        ("model.backbone.net.small.num_heads=0", "small: num_heads=0 must be a whole"),
        ("model.backbone.net.small.window_size=-1", "window_size=-1 must be a whole"),
        ("model.backbone.net.small.patch_size=0", "patch_size=0 must be a whole numb"),
        (
            "model.backbone.net.small.drop_path_rate=2",
            "drop_path_rate=2 must be a number .* below 1",
        ),
        ("model.backbone._target_=nix", "model.backbone cannot be built from its config: .*nix"),
        ("model.roi_heads.box_pooler.output_size=5", "model.roi_heads cannot be trained with its"),
        ("model.proposal_generator.pre_nms_topk=[60]", "proposal_generator cannot be .*config"),
        (
            "dataloader.train.mapper.augmentations=null",
            "train.mapper cannot be built from its conf",
        ),
        (
            "dataloader.train.mapper.augmentations.1.max_scale=null",
            "mapper cannot map an image wit",
        ),
        (
            "dataloader.train.mapper.use_instance_mask=false",
            "model has a mask head: set data.masks=false",
        ),
        ("dataloader.train.dataset._target_=nix", "dataloader.train.dataset cannot be built from"),
        ("dataloader.test=null", "dataloader.test=null must be a group of settings"),
        ("dataloader.evaluator._target_=nix", "dataloader.evaluator cannot be built from its conf"),
        ("+dataloader.evaluator.tasks=[abc]", "evaluator cannot score with its config: .*abc"),
        ("dataloader.evaluator.max_dets_per_image=many", "evaluator cannot score with its config"),
        (
            "dataloader.evaluator.dataset_name=abc",
            "but they are scored against abc .dataloader.evaluator.dataset_name.: give both",
        ),
        ("optimizer.params.overrides.pos_embed.weight_decay=-1", "weight_decay of a group .*=-1"),
        ("+train.ddp.nix=1", "train.ddp has no setting nix; it has .*bucket_cap_mb"),
        ("+train.checkpointer.nix=1", "train.checkpointer has no setting nix; it has .*period"),
        ("train.device=meta", "train.device=meta is no device to train on: set auto, cuda or cpu"),
        ("data.test_json=/dev/zero", "/dev/zero is no regular file, but must be a COCO annotation"),
        ("data.train_json=.", "is a folder, but must be a COCO annotation file"),
        ("data.test_json=gone.json", "gone.json cannot be opened"),
        ("data.test_images=gone", "image folder gone .* does not exist"),
    ],
)
def test_value_that_cannot_work_is_refused(override, expected, check):
    with pytest.raises(InputError, match=expected):
        check(override)


def test_the_highest_seed_leaves_one_for_each_process(check):
    check("train.seed=4294967294", num_processes=2)
    with pytest.raises(InputError, match="train.seed=4294967295 must be .* of at most 4294967294"):
        check("train.seed=4294967295", num_processes=2)


def test_custom_config_without_data_says_which_keys_to_give(root):
    config = load_config(str(root / "configs/custom/mask_rcnn_snnet_coco_json.py"))
    with pytest.raises(InputError) as error:
        preflight(config, evaluation=False, resume=False, num_processes=1)
    for key in ("train_json", "train_images", "test_json", "test_images"):
        assert f"data.{key}=…" in str(error.value)


def test_batch_that_the_processes_cannot_share_is_refused(check):
    with pytest.raises(InputError, match="total_batch_size=2 cannot be shared by 3 processes"):
        check(num_processes=3)
    # A sweep has no training batch.
    check(num_processes=3, evaluation=True)


def test_batch_that_the_processes_cannot_split_into_micro_batches_is_refused(check):
    batch, steps = "dataloader.train.total_batch_size=8", "train.accumulation.steps=4"
    expected = r"=8 cannot be split into train.accumulation.steps=4 .* a multiple of 16, or change"
    with pytest.raises(InputError, match=expected):
        check(batch, steps, num_processes=4)
    check(batch, steps, num_processes=2)
    check(batch, steps, num_processes=4, evaluation=True)


def test_frozen_anchors_that_processes_would_wait_for_are_refused(check):
    freeze, find = "train.freeze_anchors=5", "train.ddp.find_unused_parameters"
    with pytest.raises(InputError, match=f"freeze_anchors=5 leaves .* add {find}=True"):
        check(freeze, f"{find}=False", num_processes=2)
    check(freeze, f"{find}=False", num_processes=1)
    check(freeze, num_processes=2)
    check(f"{find}=False", num_processes=2)


def test_freezing_a_backbone_without_anchors_is_refused(check, monkeypatch):
    # The package has a function of the module's name.
    monkeypatch.setattr(import_module(preflight.__module__), "anchors_of", lambda _: {})
    with pytest.raises(InputError, match="the backbone StitchedViT has no anchor to freeze: leave"):
        check("train.freeze_anchors=5")


def test_output_folder_that_cannot_be_made_is_refused(check, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be created .*: choose another"):
        check(f"train.output_dir='{tmp_path / 'file' / 'output'}'")


def test_output_folder_that_holds_a_training_is_refused_unless_resumed(check, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    (output / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(InputError, match=r"already holds a training \(model_0000009.pth\).*resume"):
        check()
    check(resume=True)
    check(evaluation=True)
    # One that was stopped before its first iteration counts for nothing.
    (output / "last_checkpoint").write_text("model_init.pth")
    check()


def anchor_weights(embed_dim=32, num_heads=2, depth=4):
    torch.manual_seed(0)
    anchor = AnchorViT(
        64, 16, embed_dim, depth, num_heads, layer_scale_init=None, pretrain_img_size=64
    )
    return {k: v for k, v in anchor.state_dict().items() if "rel_pos" not in k}


def test_weights_that_fit_pass(check, tmp_path):
    torch.save(anchor_weights(), tmp_path / "weights.pth")
    check(f"init.weights.small='{tmp_path / 'weights.pth'}'")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (anchor_weights(embed_dim=64), r"weights.pth: 64 wide, but the anchor is 32 wide"),
        (anchor_weights(depth=3), r"missing \(blocks.3."),
        (anchor_weights(depth=5), r"unexpected \(blocks.4."),
    ],
)
def test_weights_of_another_model_are_refused(state, expected, check, tmp_path):
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=expected):
        check(f"init.weights.small='{tmp_path / 'weights.pth'}'")


def test_truncated_weights_are_refused(check, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(anchor_weights(), path)
    path.write_bytes(path.read_bytes()[:5000])
    override = f"init.weights.small='{path}'"
    with pytest.raises(InputError, match=r"weights\.pth cannot be read .*truncated"):
        check(override)
    # A resumed or evaluated training does not read them again.
    check(override, resume=True)
    check(override, evaluation=True)


def drop_first_image(data):
    data["images"][0]["file_name"] = "gone.jpg"


def flatten_first_box(data):
    data["annotations"][0]["bbox"][2] = 0


def rename_first_category(data):
    data["categories"][0]["name"] = "blob"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data.pop("categories"), 'has no "categories"'),
        (drop_first_image, r"1 of 8 images .* is not in .* \(gone.jpg\)"),
        (flatten_first_box, r"1 of \d+ annotations .* has a box without area"),
        (rename_first_category, "id 1 is 'blob' in training and 'circle' in test"),
    ],
)
def test_training_data_that_cannot_be_used_are_refused(change, expected, check, write_json):
    with pytest.raises(InputError, match=expected):
        check(f"data.train_json='{write_json(change)}'")


def test_sweep_does_not_look_at_the_training_data(check, write_json):
    check(f"data.train_json='{write_json(drop_first_image)}'", evaluation=True)


def test_checks_of_the_data_can_be_switched_off(check, write_json):
    path = write_json(flatten_first_box)
    check(f"data.train_json='{path}'", "data.check=False")


def test_sweep_without_its_checkpoint_is_refused(check, tmp_path):
    last = "train.init_checkpoint=''"
    with pytest.raises(InputError, match="nothing to evaluate: .*output has no checkpoint"):
        check(last, evaluation=True)
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(InputError, match="model_final.pth does not exist"):
        check(last, evaluation=True)
    (tmp_path / "output" / "model_final.pth").touch()
    check(last, evaluation=True)


def test_sweep_at_initialisation_is_checked_like_a_training(check, write_json):
    start = "sweep.at_initialisation=True"
    check(start, evaluation=True)
    with pytest.raises(InputError, match="weight file gone.pth does not exist"):
        check(start, "init.weights.small=gone.pth", evaluation=True)
    with pytest.raises(InputError, match="not valid JSON"):
        check(start, f"data.train_json='{write_json(text='[')}'", evaluation=True)
    with pytest.raises(InputError, match="leave out train.init_checkpoint"):
        check(start, "train.init_checkpoint=model.pth", evaluation=True)


class OwnEvaluator(COCOEvaluator):
    """Might score in a way of its own."""


class OwnDetector(GeneralizedRCNN):
    """Might infer in a way of its own."""


EVALUATOR = "dataloader.evaluator"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (f"{EVALUATOR}.max_dets_per_image=300", "COCOEvaluator with {'max_dets_per_image': 300}"),
        (f"+{EVALUATOR}.tasks=[bbox]", r"COCOEvaluator with {'tasks': \['bbox'\]}"),
        (f"{EVALUATOR}._target_={__name__}.OwnEvaluator", "dataloader.evaluator a OwnEvaluator"),
        (f"model._target_={__name__}.OwnDetector", "the model is a OwnDetector"),
    ],
)
def test_one_pass_with_a_way_to_infer_or_score_of_ones_own_is_refused(override, expected, check):
    with pytest.raises(InputError, match=f"{expected}.*: set sweep.mode=separate"):
        check(override, evaluation=True)
    check(override, "sweep.mode=separate", evaluation=True)
    check(override)  # a training evaluates separately


@pytest.mark.parametrize(
    "override",
    [
        f"{EVALUATOR}._target_=detectron2.evaluation.COCOEvaluator",
        f"{EVALUATOR}.max_dets_per_image=null",
    ],
)
def test_one_pass_takes_the_evaluator_by_name_and_defaults_that_are_written_out(override, check):
    check(override, evaluation=True)


def test_two_stages_need_one_pass_over_several_stitches(check, tiny_config, tmp_path):
    check("sweep.subset=1", evaluation=True)
    message = "sweep.subset=1 is for a stitched detector and sweep.mode=one_pass: leave it out"
    with pytest.raises(InputError, match=message):
        check("sweep.subset=1", "sweep.mode=separate", evaluation=True)
    (tmp_path / "some.pth").touch()
    checkpoint = f"train.init_checkpoint='{tmp_path / 'some.pth'}'"
    config = tiny_config(f"train.output_dir='{tmp_path}'", checkpoint, "sweep.subset=1")
    config.model = anchor_alone(config.model, "small")
    with pytest.raises(InputError, match=message):
        preflight(config, evaluation=True, resume=False, num_processes=1)
    config.sweep.subset = 0
    preflight(config, evaluation=True, resume=False, num_processes=1)


def one_image_loader(dataset, mapper, num_workers=0):
    """A loader of a user's own, without batches."""
    return []


def test_batches_of_a_sweep_need_square_padding_and_a_loader_that_makes_them(check):
    check("sweep.batch_size=2", evaluation=True)
    tight, own = "sweep.padding=tight", f"dataloader.test._target_={__name__}.one_image_loader"
    for other in (tight, own):
        check(other, evaluation=True)
    with pytest.raises(InputError, match="sweep.batch_size=2 is for sweep.padding=square"):
        check("sweep.batch_size=2", tight, evaluation=True)
    with pytest.raises(InputError, match="dataloader.test cannot be built.*'batch_size'"):
        check("sweep.batch_size=2", own, evaluation=True)
    check("sweep.batch_size=2", tight)  # a training does not sweep


def test_freezing_for_the_whole_training_is_refused(check):
    message = "train.freeze_anchors=4 of train.max_iter=4 iterations would never train the anchors"
    with pytest.raises(InputError, match=message):
        check("train.freeze_anchors=4", "train.max_iter=4")
    check("train.freeze_anchors=3", "train.max_iter=4")


def test_going_on_with_another_batch_is_refused(check, tmp_path):
    output = tmp_path / "output"
    config = check()
    LazyConfig.save(config, str(output / "config.yaml"))
    other = "dataloader.train.total_batch_size=4"
    # Before the first checkpoint there is nothing to go on with.
    check(other, resume=True)
    (output / "last_checkpoint").write_text("model_0000009.pth")
    (output / "model_0000009.pth").touch()
    check(resume=True)
    message = "training in .* has .*total_batch_size=2, .* now has .*=4: resume it with .*=2, or"
    with pytest.raises(InputError, match=message):
        check(other, resume=True)


def test_the_scores_of_a_sweep_are_not_overwritten_unasked(check, tmp_path):
    table = tmp_path / "output/sweep/stitches.json"
    table.parent.mkdir(parents=True)
    for harmless in ("[]", "no json"):
        table.write_text(harmless)
        check(evaluation=True)
    table.write_text('[{"stitch_id": 0}]')
    message = "sweep already holds the scores of 1 stitch: add --resume to keep them and go on"
    with pytest.raises(InputError, match=message):
        check(evaluation=True)
    check("sweep.overwrite=True", evaluation=True)
    check(evaluation=True, resume=True)


def test_detections_and_first_stages_of_interrupted_sweeps_are_not_overwritten_unasked(
    check, tmp_path
):
    detections = tmp_path / "output" / "sweep" / "subset" / "detections"
    detections.mkdir(parents=True)
    (detections / "manifest.json").write_text("{}")
    check(evaluation=True)  # nothing is in it yet
    (detections / "0000-000000.npz").touch()
    with pytest.raises(InputError, match="subset holds the detections of an interrupted .*resume"):
        check(evaluation=True)
    check(evaluation=True, resume=True)
    check("sweep.overwrite=True", evaluation=True)
    (detections / "0000-000000.npz").unlink()
    (detections.parent / "stitches.json").write_text('[{"stitch_id": 0}]')
    with pytest.raises(InputError, match="subset already holds the scores of 1 stitch: add --res"):
        check(evaluation=True)


def test_what_needs_no_data_is_refused_before_any_are_made(check, tmp_path):
    scenes = f"data.prepare.root='{tmp_path / 'scenes'}'"
    for override, expected in (
        ("train.ends.first=99999", "train.ends.first=99999 must be at most train.max_iter"),
        ("dataloader.evaluator._target_=nix", "dataloader.evaluator cannot be built"),
        ("init.weights.small=gone.pth", "weight file gone.pth does not exist"),
    ):
        with pytest.raises(InputError, match=expected):
            check(scenes, override)
        assert not (tmp_path / "scenes").exists()
    check(scenes)
    assert (tmp_path / "scenes").exists()


@pytest.mark.parametrize("key", ["lr_multiplier", "optimizer", "init.weights", "dataloader.test"])
def test_a_config_without_a_part_of_a_training_is_refused_by_its_name(key, tiny_config, tmp_path):
    config = tiny_config(f"train.output_dir='{tmp_path}'")
    group, _, name = key.rpartition(".")
    del (config[group] if group else config)[name]
    with pytest.raises(InputError, match=f"the config has no {key}: begin with"):
        preflight(config, evaluation=False, resume=False, num_processes=1)


def test_preflight_changes_nothing(tiny_config, tmp_path):
    scenes, output = tmp_path / "scenes", tmp_path / "output"
    config = tiny_config(
        f"data.prepare.root='{scenes}'", f"train.output_dir='{output}'", "train.device=auto"
    )
    before = config.copy()
    preflight(config, evaluation=False, resume=False, num_processes=1)
    assert config == before and config.data.masks == "auto" and config.train.device == "auto"
    assert not scenes.exists() and os.listdir(output) == []
    prepare_run(config, evaluation=False, resume=False)
    assert config.data.masks is True and config.train.device in ("cpu", "cuda")
    assert scenes.exists() and os.listdir(output) == []


@pytest.mark.parametrize(
    ("size", "said"), [(64, ""), (70, "the last 6 columns and rows are not s")]
)
def test_an_image_size_that_cuts_images_is_told_of(size, said, tiny_config, tmp_path, caplog):
    config = tiny_config(f"data.image_size={size}", f"train.output_dir={tmp_path}")
    config.data.prepare.image_size = 64
    with caplog.at_level("WARNING"):
        preflight(config, evaluation=False, resume=False, num_processes=1)
    assert said in caplog.text and ("columns" in caplog.text) == bool(said)

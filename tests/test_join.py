"""Two finished detectors become one, by train_net.py as its users run it."""

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from in_process import run_main
from runs import assert_same_tensors, weights

from snnet_vitdet.deploy import Predictor, export_stitch, load_exported
from snnet_vitdet.engine import launch_here, load_config, preflight
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import anchor_alone

NAMES = ["circle", "triangle", "square", "star", "cross", "ring"]
SIZES = ("small", "large")
# Low-rank updates of both ViTs.
UPDATES = [f"model.backbone.net.{size}.lora_rank=2" for size in SIZES]


@pytest.fixture(scope="module")
def joined_config(root, tiny_overrides, tmp_path_factory):
    """Makes the config of the two tiny detectors joined, whose files lie beside each other."""
    net = "model.backbone.net"
    shared = [o for o in tiny_overrides if o.startswith((net, "data", "train", "sampler"))]
    heads = [
        f"model.{part.replace('.', f'.{size}.', 1)}"
        for size in SIZES
        for part in (
            "proposal_generator.pre_nms_topk=[60,40]",
            "proposal_generator.post_nms_topk=[40,20]",
            "roi_heads.batch_size_per_image=16",
            "roi_heads.box_head.fc_dims=[64]",
            "roi_heads.box_predictor.input_shape.channels=64",
            # Untrained heads are sure of nothing.
            "roi_heads.box_predictor.test_score_thresh=0.0",
        )
    ]
    folder = tmp_path_factory.mktemp("sources")
    sources = [f"init.detectors.{size}={folder / size}.pth" for size in SIZES]

    def make(*overrides):
        return load_config(
            str(root / "configs/join/mask_rcnn_snnet_nano.py"),
            [*shared, *heads, *sources, "init.num_images=2", *overrides],
        )

    config = make()
    for seed, size in enumerate(SIZES):
        torch.manual_seed(seed)
        detector = instantiate(anchor_alone(config.model, size))
        state = {"model": detector.state_dict(), "classes": {"thing_classes": NAMES}}
        torch.save(state, folder / f"{size}.pth")
    return make


@pytest.fixture
def check(joined_config, tmp_path):
    def check(*overrides, **kwargs):
        config = joined_config(f"train.output_dir={tmp_path / 'output'}", *overrides)
        preflight(config, **{"evaluation": False, "resume": False, "num_processes": 1, **kwargs})
        return config

    return check


@pytest.fixture(scope="module")
def fitted(joined_config, tmp_path_factory, restored_logging):
    """The folder of a fit without a training."""
    output = tmp_path_factory.mktemp("fitted")
    run_main(joined_config(f"train.output_dir={output}"))
    return output


def source(config, size):
    """The state of one of the two detectors."""
    return torch.load(config.init.detectors[size])["model"]


def test_sound_detectors_pass_and_nothing_is_made(check, tmp_path):
    check()
    assert list((tmp_path / "output").iterdir()) == []


def changed(check, tmp_path, change, size="small"):
    """The override that names a changed copy of a detector's file."""
    saved = torch.load(check().init.detectors[size])
    change(saved)
    torch.save(saved, tmp_path / "changed.pth")
    return f"init.detectors.{size}={tmp_path / 'changed.pth'}"


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (
            lambda saved: saved["classes"]["thing_classes"].reverse(),
            "trained for the classes .*: join detectors of the classes of the data, in their order",
        ),
        (
            lambda saved: saved["model"].update(pixel_mean=torch.zeros(3, 1, 1)),
            r"was trained with pixel_mean \[0.0, 0.0, 0.0\], and this config has \[123.6",
        ),
        (
            lambda saved: saved["model"].pop("backbone.net.patch_embed.proj.bias"),
            r"not one of this model: 1 missing \(backbone.net.patch_embed.proj.bias\)",
        ),
        (
            lambda saved: saved["model"].pop("roi_heads.mask_head.predictor.bias"),
            r"1 missing \(roi_heads.mask_head.predictor.bias\). Give the config and overrides",
        ),
        (
            lambda saved: [saved["model"].pop(k) for k in [*saved["model"]] if ".mask_head." in k],
            "It was trained without masks: set data.masks=false",
        ),
    ],
)
def test_a_detector_that_does_not_fit_is_told_before_anything_starts(
    change, refused, check, tmp_path
):
    with pytest.raises(InputError, match=refused):
        check(changed(check, tmp_path, change))


def test_pixels_that_are_those_of_the_config_are_taken(check, tmp_path):
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    check(changed(check, tmp_path, lambda saved: saved["model"].update(pixel_mean=mean)))


def test_the_config_beside_a_checkpoint_says_how_it_saw_its_images(check, tmp_path):
    source = changed(check, tmp_path, lambda saved: None)
    config = tmp_path / "config.yaml"
    config.write_text("model: {pixel_mean: [123.675, 116.28, 103.53], input_format: '${data.x}'}")
    check(source)
    config.write_text("nothing that is a config")
    check(source)
    config.write_text("model: {pixel_std: [58.395, 57.12, 57.375], input_format: BGR}")
    with pytest.raises(InputError, match="trained with input_format BGR, and this config has RGB"):
        check(source)


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["init.detectors.small=null"], "init.detectors.small is not set: give the checkpoint"),
        (["init.detectors=null"], "init.detectors.small is not set: give the checkpoint"),
        (["init.detectors.large=nix.pth"], "init.detectors.large=nix.pth: .* does not exist"),
        (
            ["init.detectors.large=."],
            "init.detectors.large=.: .* is a folder: give a weight file in",
        ),
        (
            ["model.backbone.net.lora_rank=1.5"],
            "rank must be 0 … .* for a stitching layer .*, got 1.5",
        ),
        (
            ["init.weights.small=deit3_small_patch16_224.fb_in22k_ft_in1k"],
            "init.weights.small=deit3.* takes its ViTs from the two detectors .*: leave it out",
        ),
    ],
)
def test_sources_that_are_not_there_or_of_no_use_are_told(overrides, refused, check):
    with pytest.raises(InputError, match=refused):
        check(*overrides)


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["train.ends.period=2"], "train.ends would train S and L, which have nothing to learn"),
        (["model.backbone.net.kinds=[S,L]"], "no stitch with a cut, so nothing lies between the"),
        (["train.distillation.weight=1"], "given a weight, but in a joined detector the heads"),
    ],
)
def test_what_would_train_the_two_detectors_is_refused(overrides, refused, check):
    with pytest.raises(InputError, match=refused):
        check("train.max_iter=4", *overrides)
    check("train.max_iter=4", "train.ends.period=3", "train.ends.stitches=FS")


def test_swapped_detectors_are_told_to_be(check):
    small, large = (check().init.detectors[size] for size in SIZES)
    with pytest.raises(InputError, match="a detector on the large ViT, and .* small ViT: swap"):
        check(f"init.detectors.small={large}", f"init.detectors.large={small}")


def test_detectors_are_for_joined_ones_alone(tiny_config, tmp_path):
    config = tiny_config(f"train.output_dir={tmp_path}", "+init.detectors={small: x.pth}")
    with pytest.raises(InputError, match="init.detectors.small is set, but .* configs/join"):
        preflight(config, evaluation=False, resume=False, num_processes=1)


def test_an_exported_detector_says_how_it_saw_its_images(check, tiny_config, tmp_path):
    config = check()
    config.model = anchor_alone(config.model, "small")
    config.model.pixel_std = [1.0, 2.0, 3.0]
    detector = instantiate(config.model).eval()
    path = tmp_path / "small.safetensors"
    export_stitch(path, detector, config, None, NAMES)
    with pytest.raises(InputError, match=r"trained with pixel_std \[1.0, 2.0, 3.0\], and this"):
        check(f"init.detectors.small={path}")


@pytest.mark.slow
def test_after_the_fit_the_two_detectors_are_in_it_and_need_not_be_there(
    fitted, joined_config, tmp_path, restored_logging
):
    config = joined_config()
    model = instantiate(config.model)
    model.load_state_dict(weights(fitted))
    for exit_anchor, size in enumerate(SIZES):
        assert_same_tensors(model.detector(exit_anchor).state_dict(), source(config, size))
    assert (
        f"joined in {fitted}; train.max_iter=0 trains nothing" in (fitted / "log.txt").read_text()
    )
    # A sweep and a longer training go on without the files.
    shutil.copytree(fitted, tmp_path / "moved")
    gone = [f"train.output_dir={tmp_path / 'moved'}"]
    gone += [f"init.detectors.{size}=gone.pth" for size in SIZES]
    run_main(joined_config(*gone, "sweep.stitch_ids='S,FS-2'"), "--eval-only")
    assert (tmp_path / "moved" / "sweep" / "stitches.csv").exists()
    run_main(joined_config(*gone, "train.max_iter=2", "train.eval_stitches=S"), "--resume")
    log = (tmp_path / "moved" / "log.txt").read_text()
    assert "init.detectors.small=gone.pth have no effect" in log
    trained = weights(tmp_path / "moved")
    moved = {k for k, v in weights(fitted).items() if not torch.equal(v, trained[k])}
    assert moved and all(key.startswith("backbone.net.stitching_layers.") for key in moved)


@pytest.mark.slow
def test_an_interrupted_training_ends_as_one_that_was_not(
    joined_config, tmp_path, restored_logging
):
    common = ["train.eval_stitches=S", "train.checkpointer.period=2", *UPDATES]
    for name, max_iters in (("whole", [4]), ("interrupted", [4, 4])):
        folder = tmp_path / name
        config = [*common, f"train.output_dir={folder}"]
        run_main(joined_config(*config, f"train.max_iter={max_iters[0]}"))
        if len(max_iters) > 1:
            # As if it had been killed after two iterations.
            (folder / "model_final.pth").unlink()
            (folder / "model_0000003.pth").unlink()
            (folder / "last_checkpoint").write_text("model_0000001.pth")
            run_main(joined_config(*config, f"train.max_iter={max_iters[1]}"), "--resume")
    assert_same_tensors(weights(tmp_path / "whole"), weights(tmp_path / "interrupted"))


def train_in_a_process(config):
    torch.set_num_threads(1)
    run_main(config)


@pytest.mark.slow
def test_two_processes_fit_as_one_and_train_what_lies_between(
    joined_config, fitted, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = joined_config(
        f"train.output_dir={tmp_path}", "train.max_iter=2", "train.eval_stitches=S", *UPDATES
    )
    launch_here(train_in_a_process, 2, config)
    start = torch.load(tmp_path / "model_init.pth")["model"]
    for name, value in weights(fitted).items():
        # Random, and with the updates more is drawn before it.
        if not name.endswith(".lora_b"):
            # Sums in another order.
            torch.testing.assert_close(start[name], value, rtol=1e-4, atol=1e-5)
    moved = {
        name for name, value in weights(tmp_path).items() if not torch.equal(value, start[name])
    }
    assert any(name.endswith(".lora_a") and ".blocks." in name for name in moved)
    learn = {"lora_a", "lora_b", "bias"}
    assert all(name.split(".")[-1] in learn for name in moved)
    assert all(".stitching_layers." in name for name in moved if name.endswith(".bias"))
    model = instantiate(config.model)
    model.load_state_dict(weights(tmp_path))
    for exit_anchor, size in enumerate(SIZES):
        state = model.detector(exit_anchor).state_dict()
        assert_same_tensors(
            {k: v for k, v in state.items() if ".lora_" not in k}, source(config, size)
        )


def assert_same_detections(found, expected):
    """To the bit."""
    assert len(found) == len(expected) > 0
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(torch.as_tensor(found.pred_masks), torch.as_tensor(expected.pred_masks))


@pytest.mark.slow
def test_predictor_and_exported_files_give_what_the_two_detectors_give(
    fitted, joined_config, tiny_scenes, tmp_path, caplog
):
    config = joined_config(f"train.output_dir={fitted}")
    image = sorted(Path(tiny_scenes.test_images).iterdir())[0]
    predictor = Predictor(config, fitted / "model_final.pth", device="cpu")
    assert "finds nothing yet" not in caplog.text
    space = predictor.model.backbone.net.space
    for name, size in (("S", "small"), ("L", "large"), ("FSF-1-3", None)):
        found = predictor(image, stitch=name)
        path = tmp_path / f"{name}.safetensors"
        export_stitch(path, predictor.model, config, space[name], NAMES)
        exported = Predictor.from_file(path, device="cpu")
        if size is not None:
            alone = joined_config()
            alone.model = anchor_alone(alone.model, size)
            expected = Predictor(alone, config.init.detectors[size], device="cpu")(image)
            assert_same_detections(found, expected)
            assert set(load_exported(path).state_dict()) == {
                key.replace("net.blocks.", "net.layers.")
                if ".blocks." in key
                else key.replace("backbone.net.", "backbone.net.embedding.")
                for key in source(config, size)
            }
        assert_same_detections(exported(image), found)
    # Blocks and layers of the walk, one pyramid, one RPN, one pair of heads: those of its exit.
    net = predictor.model.backbone.net
    assert (len(net.small.blocks), len(net.large.blocks)) == (4, 8)
    held = set(load_exported(path).state_dict())
    layers = {key.split(".")[3] for key in held if key.startswith("backbone.net.layers.")}
    # Small block, layer, two stages of large blocks, layer, small block.
    assert len(layers) == 1 + 1 + 4 + 1 + 1
    outside = {key for key in source(config, "small") if not key.startswith("backbone.net.")}
    assert {key for key in held if not key.startswith("backbone.net.")} == outside

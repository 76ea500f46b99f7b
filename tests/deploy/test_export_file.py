"""A stitch of a trained tiny model as a file of its own."""

import copy
import sys
from functools import partial

import pytest
import safetensors.torch
import torch
import train_net
from detectron2.config import LazyCall, instantiate
from detectron2.engine import default_argument_parser
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from snnet_vitdet import Predictor, StitchTable
from snnet_vitdet.deploy import (
    PixelsToPyramid,
    export_graphs,
    export_onnx,
    export_program,
    export_stitch,
    export_torchscript,
    image_files,
    load_exported,
    read_export,
)
from snnet_vitdet.deploy.export_plan import build_detector
from snnet_vitdet.engine import load_config
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import StitchedViT, anchor_alone, stitch_costs
from snnet_vitdet.stitching import LowRankLinear

# Training takes some seconds, whichever of these tests runs first.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def swept(trained_tiny, tmp_path_factory, restored_logging):
    """The config of a trained model, with a sweep of some of its stitches beside it."""
    # So short a training is sure of little.
    low = "model.roi_heads.box_predictor.test_score_thresh=0.01"
    config = trained_tiny(tmp_path_factory.mktemp("swept"), low, "sweep.stitch_ids='0-3,13'")
    train_net.main(default_argument_parser().parse_args(["--eval-only"]), config)
    return config


@pytest.fixture(scope="module")
def supernet(swept):
    """A predictor of all stitches."""
    return Predictor(swept, swept.train.init_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def exported(supernet, swept, tmp_path_factory):
    """Makes the file of a stitch, once each."""
    folder = tmp_path_factory.mktemp("exported")

    def make(name):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            stitch = supernet.model.backbone.net.space[name]
            export_stitch(path, supernet.model, swept, stitch, supernet.class_names)
        return path

    return make


@pytest.fixture
def files(swept):
    return image_files(swept.data.test_images)


@pytest.fixture
def rewritten(exported, rewrite):
    """Makes a copy of the file of FS-2 with something changed."""
    return partial(rewrite, exported("FS-2"))


def test_every_stitch_exported_detects_what_the_supernet_detects(supernet, exported, files):
    """Scores to 1e-4, boxes to 0.01 pixels, in float32; the same pixels in the masks but a few."""
    num_detections = 0
    for stitch in supernet.stitches:
        supernet.set_stitch(stitch.id)
        alone = Predictor.from_file(exported(stitch.name), device="cpu")
        assert alone.stitch == stitch and alone.stitches == [stitch]
        assert alone.class_names == supernet.class_names
        for file in files[:2]:
            expected, found = supernet(file), alone(file)
            assert found.class_names.tolist() == expected.class_names.tolist()
            torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
            boxes = expected.pred_boxes.tensor
            torch.testing.assert_close(found.pred_boxes.tensor, boxes, rtol=0, atol=1e-2)
            assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-3
            num_detections += len(found)
    assert num_detections > 100


def test_a_file_has_the_weights_of_its_stitch_alone(swept, exported):
    costs = stitch_costs(swept.model)
    for name in ("S", "L", "FSF-1-2"):
        model = load_exported(exported(name))
        assert type(model) is GeneralizedRCNN and not model.training
        kinds = {type(module) for module in model.modules()}
        assert not kinds & {StitchedViT, LowRankLinear}
        cost = costs[costs.space[name].id]
        assert sum(p.numel() for p in model.parameters()) == cost.params
        info = read_export(exported(name))
        assert info.params_m == cost.params_m and info.gflops == cost.gflops
        assert exported(name).stat().st_size < 4 * cost.params + 40_000
        # Others may read the file as any other that is written here.
        (exported(name).parent / "other").touch()
        assert exported(name).stat().st_mode == (exported(name).parent / "other").stat().st_mode


def test_what_is_built_before_loading_has_no_memory(exported):
    model = build_detector(read_export(exported("FS-2")).model)
    assert all(parameter.is_meta for parameter in model.parameters())
    # What no file has is there.
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_the_results_of_the_sweep_come_along(swept, exported):
    table = StitchTable.read(swept.train.output_dir)
    alone = Predictor.from_file(exported("FS-1"), score_threshold="f1", device="cpu")
    assert alone.score_threshold == table.threshold("FS-1", "f1")
    assert alone.table.rows()[0]["bbox_AP"] == table["FS-1"].result.metrics["bbox_AP"]
    precision = max(p for p in read_export(exported("FS-1")).curve.precision() if p == p)
    criterion = f"precision={precision:.3f}"
    expected = table.threshold("FS-1", criterion)
    assert alone.set_score_threshold(criterion) == expected
    assert alone.choose(max_gflops=1e6).name == "FS-1"
    # SF-1 was not swept.
    alone = Predictor.from_file(exported("SF-1"), device="cpu")
    with pytest.raises(InputError, match="has no sweep, and budgets and thresholds"):
        alone.set_score_threshold("f1")


def test_an_exported_file_has_no_other_stitch(exported):
    alone = Predictor.from_file(exported("FS-1"), device="cpu")
    assert alone.set_stitch("FS-1") == alone.set_stitch(alone.stitch.id) == alone.stitch
    with pytest.raises(InputError, match="the exported file has stitch FS-1 alone: export L, too"):
        alone.set_stitch("L")
    assert alone.stitch.name == "FS-1"
    assert Predictor.from_file(exported("FS-1"), stitch="FS-1", device="cpu").stitch == alone.stitch
    with pytest.raises(InputError, match="has stitch FS-1 alone"):
        Predictor.from_file(exported("FS-1"), stitch="S", device="cpu")


def randomly(module):
    """Gives low-rank updates and relative positions values, which start at zero."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in module.named_parameters():
        if name.endswith("lora_a") or "rel_pos" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


@torch.no_grad()
def assert_same_features(found, expected):
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    both = zip(found.backbone(image).items(), expected.backbone(image).items(), strict=True)
    for (name, one), (other_name, other) in both:
        assert name == other_name
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_baseline_is_exported_as_well(tiny_config, files, tmp_path, rank):
    config = tiny_config(f"train.output_dir={tmp_path}", "model.roi_heads.num_classes=3")
    config.model = anchor_alone(config.model, "large")
    config.model.backbone.net.lora_rank = rank
    model = randomly(instantiate(config.model))
    path = tmp_path / "baseline.safetensors"
    info = export_stitch(path, model, config, None, ["a", "b", "c"])
    assert info.name == "baseline" and info.stitch is None
    assert_same_features(load_exported(path), model)
    predictor = Predictor.from_file(path, device="cpu")
    assert predictor.stitch is None and predictor.stitches == []
    assert predictor.class_names == ["a", "b", "c"]
    assert predictor(files[0]).image_size == (64, 64)
    with pytest.raises(InputError, match="this model is a baseline: give a score"):
        predictor.set_score_threshold("f1")


@pytest.mark.parametrize("name", ["S", "L", "SF-1", "FS-2"])
def test_a_stitch_takes_the_pyramid_of_its_exit_along(tiny_config, tmp_path, name):
    config = tiny_config(
        f"train.output_dir={tmp_path}",
        "model.roi_heads.num_classes=3",
        "model.backbone._target_=snnet_vitdet.modeling.PyramidPerExit",
        "model.backbone.net.exit_projection=False",
    )
    model = randomly(instantiate(config.model))
    stitch = model.backbone.net.set_stitch(name)
    path = tmp_path / "stitch.safetensors"
    export_stitch(path, model, config, stitch, ["a", "b", "c"])
    alone = load_exported(path)
    assert_same_features(alone, model)
    assert not any("small_exit" in key for key in alone.state_dict())
    width = model.backbone.net.exit_widths[stitch.exit]
    assert alone.backbone.net.output_shape()["last_feat"].channels == width


def test_a_cascade_is_exported_as_well(root, tmp_path):
    config = load_config(
        str(root / "configs/COCO/cascade_mask_rcnn_snnet_deit3_s_l_100ep.py"),
        [f"train.output_dir={tmp_path}", "data.image_size=64"],
    )
    for anchor, width in (("small", 32), ("large", 48)):
        config.model.backbone.net[anchor].update(embed_dim=width, num_heads=2, depth=4)
        config.model.backbone.net[anchor].global_block_indexes = None
    model = randomly(instantiate(config.model))
    stitch = model.backbone.net.set_stitch("SF-2")
    export_stitch(tmp_path / "SF.safetensors", model, config, stitch, [str(i) for i in range(80)])
    alone = load_exported(tmp_path / "SF.safetensors")
    assert len(alone.roi_heads.box_head) == 3
    assert_same_features(alone, model)


def test_what_cannot_be_described_is_not_exported(supernet, swept, tmp_path):
    config = copy.deepcopy(swept)
    config.model.backbone.top_block = LazyCall(LastLevelP6P7)(in_channels=64, out_channels=64)
    stitch, names = supernet.stitch, supernet.class_names
    with pytest.raises(InputError, match="LastLevelP6P7 in the config is none of the parts"):
        export_stitch(tmp_path / "a.safetensors", supernet.model, config, stitch, names)
    config.model.backbone.top_block = print
    with pytest.raises(InputError, match="in the config is no plain value"):
        export_stitch(tmp_path / "a.safetensors", supernet.model, config, stitch, names)
    assert not list(tmp_path.iterdir())


def test_what_differs_from_its_model_is_not_kept(
    supernet, swept, exported, files, tmp_path, monkeypatch
):
    model = load_exported(exported("S"))
    images = [supernet.prepare(file)["image"] for file in files[:2]]
    monkeypatch.setattr(export_graphs, "TOLERANCE", -1.0)
    stitch, names = supernet.stitch, supernet.class_names
    with pytest.raises(InputError, match="is not kept: its features differ"):
        export_stitch(tmp_path / "a.safetensors", supernet.model, swept, stitch, names)
    with pytest.raises(InputError, match="is not kept: its features differ"):
        export_program(model, tmp_path / "a.pt2", (64, 64))
    with pytest.raises(InputError, match="nothing is detected in the 1 images"):
        model.roi_heads.box_predictor.test_score_thresh = 1.0
        export_torchscript(model, tmp_path / "a.ts", images[:1])
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_those_of_the_model_are_listed(rewritten):
    bias, key = "roi_heads.box_predictor.bbox_pred.bias", "backbone.net.layers.0.norm1.weight"
    with pytest.raises(InputError, match=rf'Missing key\(s\) in state_dict: "{bias}"'):
        load_exported(rewritten(tensors=lambda state: state.pop(bias)))
    with pytest.raises(InputError, match=r'Unexpected key\(s\) in state_dict: "other"'):
        load_exported(rewritten(tensors=lambda state: state.update(other=torch.zeros(1))))
    with pytest.raises(InputError, match=rf"size mismatch for {key}: .* torch.Size\(\[5\]\)"):
        load_exported(rewritten(tensors=lambda state: state.update({key: torch.zeros(5)})))


def test_what_is_no_exported_file_is_said_in_a_sentence(exported, rewritten, tmp_path):
    whole = exported("FS-2").read_bytes()
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=r"a.safetensors does not exist"):
        read_export(path)
    for damaged in (b"", b"no tensors", whole[:100], whole[:-1], whole[5000:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is not a whole file of tools/export_stitch.py"):
            load_exported(path)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="is not a whole file of tools/export_stitch.py"):
        Predictor.from_file(path)


def test_backbone_and_pyramid_run_in_onnxruntime_and_as_a_program(exported, tmp_path):
    model = load_exported(exported("FSF-1-2"))
    assert export_onnx(model, tmp_path / "a.onnx", (64, 64)) < 1e-4
    assert export_program(model, tmp_path / "a.pt2", (64, 64)) < 1e-5
    # The relative positions of global blocks are interpolated.
    assert export_program(model, tmp_path / "b.pt2", (96, 96)) < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "a.pt2", "b.pt2"}
    image = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model.backbone((image - model.pixel_mean) / model.pixel_std)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [each.name for each in session.get_outputs()] == ["p2", "p3", "p4", "p5", "p6"]
    found = session.run(None, {"image": image.numpy()})
    for array, own in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(array), own, rtol=1e-4, atol=1e-4)
    program = torch.export.load(tmp_path / "a.pt2").module()
    for tensor, own in zip(program(image), expected.values(), strict=True):
        torch.testing.assert_close(tensor, own, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="must be multiples of 16 pixels, got 100 x 100"):
        export_program(model, tmp_path / "c.pt2", (100, 100))


@pytest.mark.parametrize(("batch_size", "numbers"), [(3, [3]), (None, [1, 2, 5])])
@torch.no_grad()
def test_a_batch_gives_what_its_images_give_alone(exported, tmp_path, batch_size, numbers):
    import onnxruntime

    model = load_exported(exported("SF-1"))
    told = {"point": "SF-1@96/5", "batch_size": str(batch_size)}
    assert export_onnx(model, tmp_path / "a.onnx", (96, 96), batch_size, told) < 1e-4
    assert export_program(model, tmp_path / "a.pt2", (96, 96), batch_size, told) < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert session.get_modelmeta().custom_metadata_map == told
    assert session.get_inputs()[0].shape == [batch_size or "batch", 3, 96, 96]
    found = dict.fromkeys(told, "")
    program = torch.export.load(tmp_path / "a.pt2", extra_files=found).module()
    assert found == told
    for number in numbers:
        images = 255 * torch.rand(number, 3, 96, 96, generator=torch.Generator().manual_seed(3))
        alone = [PixelsToPyramid(model)(image[None]) for image in images]
        expected = [torch.cat(maps) for maps in zip(*alone, strict=True)]
        of_onnx = [torch.from_numpy(each) for each in session.run(None, {"image": images.numpy()})]
        for maps in (of_onnx, program(images)):
            torch.testing.assert_close(list(maps), expected, rtol=1e-4, atol=1e-4)


def test_a_batch_is_compared_on_different_images(exported, tmp_path):
    module = PixelsToPyramid(load_exported(exported("S")))

    def mixed(images):
        return module(images.flip(0))

    assert export_graphs.largest_difference(tmp_path, module, mixed, (64, 64)) == 0
    for batch_size in (2, None):
        with pytest.raises(InputError, match="its features differ"):
            export_graphs.largest_difference(tmp_path, module, mixed, (64, 64), batch_size)


def test_pixels_beyond_an_image_are_the_mean_colour(exported):
    model = load_exported(exported("S"))
    image = 255 * torch.rand(3, 40, 64, generator=torch.Generator().manual_seed(3))
    padded = model.pixel_mean.expand(3, 64, 64).clone()
    padded[:, :40] = image
    with torch.no_grad():
        expected = model.backbone(model.preprocess_image([{"image": image}]).tensor)
        found = PixelsToPyramid(model)(padded[None])
    for own, other in zip(expected.values(), found, strict=True):
        torch.testing.assert_close(other, own, rtol=1e-5, atol=1e-5)


def test_a_missing_package_is_named(exported, tmp_path, monkeypatch):
    model = load_exported(exported("S"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match="package onnxscript,.*requirements-export.txt"):
        export_onnx(model, tmp_path / "a.onnx", (64, 64))


def test_the_whole_detector_is_traced_for_images_of_any_shape(exported, supernet, files, tmp_path):
    model = load_exported(exported("SFS-1-3"))
    images = [supernet.prepare(file)["image"] for file in files[:3]]
    images += [images[0][:, :48], images[1][:, :, 8:60], torch.zeros(3, 64, 64)]
    assert export_torchscript(model, tmp_path / "a.ts", images) > 20
    traced = torch.jit.load(tmp_path / "a.ts")
    with torch.no_grad():
        expected = model.inference([{"image": images[3]}], do_postprocess=False)[0]
    boxes, classes, masks, scores, size = traced(images[3])
    torch.testing.assert_close(boxes, expected.pred_boxes.tensor)
    assert torch.equal(classes, expected.pred_classes) and size.tolist() == [48, 64]
    torch.testing.assert_close(masks, expected.pred_masks)
    torch.testing.assert_close(scores, expected.scores)


@torch.no_grad()
def test_a_traced_detector_of_a_batch_gives_the_detections_of_each_image(
    exported, supernet, files, tmp_path
):
    model = load_exported(exported("SFS-1-3"))
    images = [supernet.prepare(file)["image"] for file in files[:3]]
    empty = torch.zeros(3, 16, 16)
    (found,) = model.inference([{"image": empty}], do_postprocess=False)
    model.roi_heads.box_predictor.test_score_thresh = found.scores.max().item() + 1e-3
    told = {"point": "SFS-1-3", "batch_size": "2"}
    assert export_torchscript(model, tmp_path / "a.ts", images, 2, told) > 5
    read = dict.fromkeys(told, "")
    traced = torch.jit.load(tmp_path / "a.ts", _extra_files=read)
    assert {name: text.decode() for name, text in read.items()} == told
    # Images of other shapes than the traced ones, and one without detections.
    counts = []
    for batch in ((images[0][:, :48], images[2]), (empty, images[1][:, :, 8:60]), (empty, empty)):
        tensors = traced(*batch)
        for image, of_image in zip(batch, (tensors[:5], tensors[5:]), strict=True):
            (expected,) = model.inference([{"image": image}], do_postprocess=False)
            boxes, classes, masks, scores, size = of_image
            assert size.tolist() == list(image.shape[1:])
            torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=0, atol=1e-2)
            assert torch.equal(classes, expected.pred_classes)
            torch.testing.assert_close(masks, expected.pred_masks, rtol=0, atol=1e-3)
            torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-4)
            counts.append(len(expected))
    assert counts[0] > 0 and counts[2] == counts[4] == counts[5] == 0

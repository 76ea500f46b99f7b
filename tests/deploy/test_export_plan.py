"""Exported files as a stranger, or a broken disk, could have written them."""

import copy
import json
from functools import partial

import pytest
import safetensors.torch
import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from hypothesis import example, given
from hypothesis import strategies as st

from snnet_vitdet import Predictor
from snnet_vitdet.deploy import export_stitch, load_exported, read_export
from snnet_vitdet.deploy.export_file import ExportInfo, exported_table
from snnet_vitdet.deploy.export_plan import PARTS, build_augmentations, build_detector
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import ScoreCurve, StitchResult, StitchTable
from snnet_vitdet.modeling import stitch_costs


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
    """The file of a stitch that was swept; its weights are random."""
    folder = tmp_path_factory.mktemp("whole")
    config = tiny_config(
        f"train.output_dir={folder}",
        "model.roi_heads.num_classes=3",
        "model.roi_heads.box_head.conv_norm=BN",
        "model.roi_heads.box_predictor.test_score_thresh=0.01",
    )
    torch.manual_seed(0)
    model = instantiate(config.model).eval()
    stitch = model.backbone.net.space["FS-2"]
    cost = stitch_costs(config.model)[stitch.id]
    which = (stitch.id, stitch.name, stitch.kind, stitch.cuts)
    table = StitchTable()
    table.put(
        StitchResult(*which, cost.gflops, cost.params_m, {"bbox_AP": 12.5}),
        ScoreCurve(stitch.name, 20, tuple(range(200, 99, -1)), (10,) * 101),
    )
    table.write(folder / "sweep")
    path = folder / "FS-2.safetensors"
    export_stitch(path, model, config, stitch, ["a", "b", "c"])
    return path


@pytest.fixture(scope="module")
def header(whole):
    """What the file says, as plain data."""
    with safetensors.safe_open(whole, "pt") as file:
        return json.loads(file.metadata()["snnet_vitdet"])


@pytest.fixture
def rewritten(whole, rewrite):
    """Makes a copy of the file with something changed: its text, what it says, its tensors."""
    return partial(rewrite, whole)


def paths(value, path=()):
    """The keys that lead to every value inside a JSON value."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from paths(each, (*path, key))


def replaced(content, path, new):
    """A copy with another value at a path, or without the path for ``...``."""
    content = copy.deepcopy(content)
    if not path:
        return new
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    if new is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = new
    return content


def read(text):
    """All that is made of a description, as Predictor.from_file makes it."""
    info = ExportInfo.from_json(text)
    info.resizing()
    exported_table([info], "a file")
    return build_detector(info.model)


def test_what_is_whole_is_read(whole, header):
    assert read(json.dumps(header)).roi_heads.num_classes == 3
    predictor = Predictor.from_file(whole, score_threshold="f1", device="cpu")
    assert predictor.table.rows()[0]["bbox_AP"] == 12.5
    assert read_export(whole).to_json() == json.dumps(header, ensure_ascii=False)


def test_nothing_that_a_file_names_is_run(rewritten, header, tmp_path):
    """At any place of the description, whichever key is to name what is called."""
    marker = tmp_path / "marker"
    for path in paths(header):
        for key in ("_target_", "part"):
            payload = {key: "os.mkdir", "path": str(marker)}
            with pytest.raises(InputError):
                read(json.dumps(replaced(header, path, payload)))
            assert not marker.exists(), path
    for key in ("_target_", "part"):
        payload = {key: "os.mkdir", "path": str(marker)}
        for says in (
            lambda content, payload=payload: content["augmentations"].append(payload),
            lambda content, payload=payload: content.update(model=payload),
            lambda content, payload=payload: content["model"]["backbone"].update(payload),
            lambda content, payload=payload: content.update(payload),
        ):
            with pytest.raises(InputError):
                Predictor.from_file(rewritten(says), device="cpu")
            assert not marker.exists()
    # Known parts in places that are not theirs.
    for part in sorted(set(PARTS) - {"LastLevelMaxPool"}):
        with pytest.raises(InputError, match=r"part must be one of \['LastLevelMaxPool'\], got"):
            read(json.dumps(replaced(header, ("model", "backbone", "top_block", "part"), part)))


JUNK = st.one_of(
    st.just(...),
    st.sampled_from(
        [None, True, -1, 0, 1, 2, 10**9, -(10**9), 10**400, 1e-300, 1e300, 0.5, "", "S", "LN", "\0"]
    ),
    st.sampled_from(
        [[], {}, [[]], [1] * 5, {"part": "Matcher"}, ["\ud800"], "x" * 10**6, [[0]] * 999]
    ),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=5),
)


@given(st.data())
def test_a_damaged_description_is_a_sentence_or_a_model(header, data):
    path = data.draw(st.sampled_from(list(paths(header))[1:]))
    text = json.dumps(replaced(header, path, data.draw(JUNK)))
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(text)))
        text = text[:start] + data.draw(st.text(max_size=3)) + text[start + 1 :]
    try:
        read(text)
    except InputError as error:
        assert 0 < len(str(error)) < 500 and "\n" not in str(error)


@given(st.binary(max_size=40), st.integers(0, 3000))
@example(b"\xff" * 8, 0)
def test_damaged_bytes_are_a_sentence_or_a_model(whole, tmp_path_factory, noise, start):
    content = bytearray(whole.read_bytes())
    content[start : start + len(noise)] = noise
    path = tmp_path_factory.getbasetemp() / "noise.safetensors"
    path.write_bytes(content)
    try:
        load_exported(path)
    except InputError as error:
        assert "noise.safetensors" in str(error)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (
            "model.backbone.net.anchors.0.depth",
            10**6,
            "depth must be a whole number of at most 128",
        ),
        ("model.backbone.net.segments", [[0, 0, 2]] * 999, "segments must be a list of at most"),
        ("model.proposal_generator.anchor_generator.sizes", [[1] * 10**5] * 5, "at most 16 values"),
        ("model.backbone.square_pad", 10**8, "square_pad must be a whole number of at most 4096"),
        ("model.pixel_std", [1.0, 0.0, 1.0], "pixel_std must be a list of 3, each a number of"),
        ("class_names", [str(i) for i in range(10**5)], "class_names must be a list of 1 to 65536"),
        ("augmentations.0.max_size", 10**400, "4096, got a whole number of 1329 bits"),
        ("augmentations", [], None),
        ("augmentations", {}, "augmentations must be a list of at most 8 values"),
        ("curve.detections", [1], "its score curve does not have a name and 101 scores"),
        ("result.metrics", {"surprise": 1}, "metrics has unknown names: surprise"),
        ("result.metrics.bbox_AP", 1e300, "bbox_AP must be an AP on 0-100"),
        ("stitch.kind", "SF", "its stitch or sweep is damaged: a walk of kind FS has another name"),
        ("stitch", 3, "its stitch or sweep is damaged"),
        ("format_version", 7, "its format has version 7, this program reads 1"),
        ("format_version", ..., "its format has version None"),
        ("class_names", ..., "unknown or missing keys: class_names"),
        ("model.roi_heads.mask_head.conv_norm", "XX", "conv_norm must be one of"),
        ("model.backbone.net.anchors.0.num_heads", 5, "AnchorViT cannot be made as described"),
    ],
)
def test_sizes_are_bounded_and_names_are_known(header, path, value, sentence):
    keys = [int(key) if key.isdecimal() else key for key in path.split(".")]
    text = json.dumps(replaced(header, keys, value))
    if sentence is None:
        read(text)
        return
    with pytest.raises(InputError, match=sentence):
        read(text)


def test_what_is_nested_too_deeply_or_too_long_is_a_sentence(rewritten):
    for text, sentence in (
        ("[" * 10**6, "it is nested too deeply"),
        ('{"model": ' * 5000 + "1" + "}" * 5000, "it is nested too deeply"),
        (" " * 17_000_000, "has more than 16000000 characters"),
        ('{"gflops": NaN}', "NaN is no number"),
        ('{"gflops": ' + "9" * 5000 + "}", "no JSON that can be read"),
    ):
        with pytest.raises(InputError, match=sentence):
            read_export(rewritten(text=text))


def test_an_image_of_any_shape_is_resized_to_a_bounded_size():
    """Also by a file that does not say how large the longer side may become."""
    (resize,) = build_augmentations([{"part": "ResizeShortestEdge", "short_edge_length": 800}])
    assert isinstance(resize, T.ResizeShortestEdge) and resize.max_size == 4096


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone.net.layers.0.norm1.weight", torch.nan),
        ("roi_heads.box_head.conv1.norm.running_mean", -torch.inf),
        # Finite in the file, infinite in the model's precision.
        ("backbone.net.layers.0.mlp.fc1.bias", 1e300),
    ],
)
def test_weights_and_statistics_that_are_no_numbers_are_refused(rewritten, key, value):
    def change(state):
        state[key] = state[key].double()
        state[key].view(-1)[-1] = value

    with pytest.raises(InputError, match=f"'{key}' holds NaN or infinite values"):
        load_exported(rewritten(tensors=change))


def test_a_description_of_another_stitch_is_refused(rewritten):
    def other(content):
        content["stitch"].update(name="FS-1", cuts=[1], segments=[[0, 0, 1], [1, 2, 8]])

    with pytest.raises(InputError, match="its model does not run the blocks of FS-1"):
        load_exported(rewritten(other))
    with pytest.raises(InputError, match="its model has 3 classes, not 1"):
        load_exported(rewritten(lambda content: content.update(class_names=["one"])))

"""Files as annotation tools write them give the scores of the file they were made of."""

import copy
import json
from pathlib import Path

import pytest
from detection_arrays import as_arrays
from detectron2.data import MetadataCatalog
from in_process import run_main
from pycocotools import mask as mask_util

from snnet_vitdet.data import dataset_name
from snnet_vitdet.data.coco_json import id_order
from snnet_vitdet.evaluation import CocoScorer, StitchTable

HASH = 0x9E3779B97F4A7C15


def renumbered(of, new):
    """Gives ids anew, from those of their order, 1 on; classes keep their order."""
    key = {"images": "image_id", "categories": "category_id"}.get(of)

    def change(coco):
        old = [entry["id"] for entry in coco[of]]
        ids = [new(n) for n in range(1, len(old) + 1)]
        if of == "categories":
            old, ids = sorted(old), sorted(ids, key=id_order)
        ids = dict(zip(old, ids, strict=True))
        for entry in coco[of]:
            entry["id"] = ids[entry["id"]]
        for annotation in coco["annotations"] if key else ():
            annotation[key] = ids[annotation[key]]

    return change


def with_extra_keys(coco):
    for number, annotation in enumerate(coco["annotations"]):
        x, y = map(round, annotation["bbox"][:2])
        annotation |= {
            "keypoints": [x, y, 2] * 17,
            "num_keypoints": 17,
            "caption": "a thing",
            "attributes": {"occluded": False},
            "score": 0.5,
            "track_id": number,
            "segmentation_mode": None,
            "category": "x",
        }
    for image in coco["images"]:
        image |= {"caption": ["a"], "annotations": [], "license": None, "image_id": -1}
    for category in coco["categories"]:
        category |= {"keypoints": ["nose"] * 17, "skeleton": [[1, 2]], "isthing": 0}
    coco |= {"info": None, "licenses": "none", "type": "instances", "videos": [{}]}


def odd_keypoints(coco):
    for annotation, keypoints in zip(coco["annotations"], ([], "x", [1, None], {}), strict=False):
        annotation["keypoints"] = keypoints


def as_rle(coco, written):
    for annotation in coco["annotations"]:
        (image,) = (each for each in coco["images"] if each["id"] == annotation["image_id"])
        mask, size = annotation["segmentation"], (image["height"], image["width"])
        if isinstance(mask, list):
            mask = mask_util.merge(mask_util.frPyObjects(mask, *size))
        elif isinstance(mask["counts"], list):
            mask = mask_util.frPyObjects(mask, *size)
        counts = mask["counts"]
        counts = counts if isinstance(counts, bytes) else counts.encode()
        annotation["segmentation"] = {"size": list(size), "counts": written(counts)}


def with_backslashes(coco):
    for image in coco["images"]:
        image["file_name"] = f"train\\{image['file_name']}"


def with_urls(coco):
    for image in coco["images"]:
        image["coco_url"] = f"http://images.example/{Path('train') / image.pop('file_name')}"


CASES = {
    "no change": lambda coco: None,
    "annotation ids above 2^64": renumbered("annotations", lambda n: 2**70 + n),
    "image ids of signed hashes": renumbered("images", lambda n: n * HASH % 2**64 - 2**63),
    "image ids of texts and numbers": renumbered("images", lambda n: n if n % 2 else f"{n}"),
    "category ids of texts": renumbered("categories", lambda n: f"kind {n}"),
    "extra keys": with_extra_keys,
    "odd keypoints": odd_keypoints,
    "counts with b'…'": lambda coco: as_rle(coco, str),
    'counts with b"…"': lambda coco: as_rle(coco, lambda c: 'b"' + str(c)[2:-1] + '"'),
    "iscrowd of decimals": lambda coco: [a.update(iscrowd=0.0) for a in coco["annotations"]],
    "backslashes": with_backslashes,
    "LVIS's coco_url": with_urls,
}
# Both ways of scoring take ids; what else is in a file is read before.
BOTH = [
    (kind, mode)
    for kind in CASES
    for mode in ("one_pass", "separate")
    if " ids" in kind or mode == "one_pass"
]
ENCODINGS = ("utf-8-sig", "utf-16", "utf-32-be")


@pytest.fixture(scope="module")
def scores(trained_tiny, tiny_scenes, tmp_path_factory, restored_logging):
    """Sweeps two stitches on annotations; returns their rows."""

    def scores(content, mode, *overrides):
        folder = tmp_path_factory.mktemp("case")
        path = folder / "case.json"
        path.write_bytes(content)
        config = trained_tiny(
            folder,
            f"data.train_json={path}",
            f"data.train_images={Path(tiny_scenes.train_images).parent}",
            f"data.test_json={path}",
            f"data.test_images={Path(tiny_scenes.train_images).parent}",
            f"sweep.mode={mode}",
            "sweep.stitch_ids=[L,FS-1]",
            # So short a training is sure of little.
            "model.roi_heads.box_predictor.test_score_thresh=0.01",
            *overrides,
        )
        run_main(config, "--eval-only")
        assert (folder / "sweep/report.html").is_file()
        return {each.name: each.result.metrics for each in StitchTable.read(folder)}

    return scores


@pytest.fixture(scope="module")
def base(tiny_scenes):
    """Annotations whose images are below the folder, in order of neither ids nor names."""
    coco = json.loads(Path(tiny_scenes.train_json).read_text(encoding="utf-8"))
    for image in coco["images"]:
        image["file_name"] = f"train/{image['file_name']}"
    coco["images"].reverse()
    return coco


@pytest.fixture(scope="module")
def expected(scores, base):
    """The scores of the file that cases are made of."""
    rows = scores(json.dumps(base).encode(), "separate")
    assert 1 < rows["L"]["bbox_AP"] < 99 and 1 < rows["FS-1"]["segm_AP"] < 99
    return rows


def assert_as_expected(found, expected):
    assert found.keys() == expected.keys()
    for name, row in expected.items():
        assert found[name] == pytest.approx(row, rel=0, abs=1e-9, nan_ok=True), name


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mode"), BOTH)
def test_a_case_scores_as_the_file_it_was_made_of(kind, mode, base, scores, expected):
    coco = copy.deepcopy(base)
    for image in coco["images"]:
        if kind in ("backslashes", "LVIS's coco_url"):
            image["file_name"] = Path(image["file_name"]).name
    CASES[kind](coco)
    assert_as_expected(scores(json.dumps(coco).encode(), mode), expected)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_of_json_is_read(encoding, base, scores, expected):
    assert_as_expected(scores(json.dumps(base).encode(encoding), "one_pass"), expected)


@pytest.mark.slow
def test_what_the_evaluator_writes_has_the_ids_of_the_file(base, scores, expected, tmp_path):
    coco = copy.deepcopy(base)
    CASES["image ids of texts and numbers"](coco)
    CASES["category ids of texts"](coco)
    content = json.dumps(coco).encode()
    output = f"+dataloader.evaluator.output_dir='{tmp_path}'"
    assert_as_expected(scores(content, "separate", output), expected)
    # Of the last stitch: by the ids and file names, it is scored as it was.
    results = json.loads((tmp_path / "coco_instances_results.json").read_bytes())
    assert {each["image_id"] for each in results} == {each["id"] for each in coco["images"]}
    assert {each["category_id"] for each in results} <= {each["id"] for each in coco["categories"]}
    (tmp_path / "truth.json").write_bytes(content)
    name = dataset_name(str(tmp_path / "truth.json"), str(tmp_path))
    metadata = MetadataCatalog.get(name)
    for each in results:
        each["image_id"] = metadata.image_ids.index(each["image_id"]) + 1
        each["category_id"] = metadata.category_ids.index(each["category_id"])
    found = CocoScorer(name).score(as_arrays(results))
    assert found == pytest.approx(expected["FS-1"], rel=0, abs=1e-9, nan_ok=True)

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator

from snnet_vitdet.data import category_names, coco_dicts, dataset_name, num_categories
from snnet_vitdet.data.datasets import mask_truth
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import evaluators_of
from snnet_vitdet.files import temporary_folder

POLYGON = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]


def annotation(number, image_id, category_id, iscrowd=0):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [1.0, 1.0, 8.0, 8.0],
        "area": 32.0,
        "iscrowd": iscrowd,
        "segmentation": POLYGON,
    }


@pytest.fixture
def coco():
    """Sparse, unordered category ids; one image empty, one with a crowd only."""
    return {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": 20, "height": 10}
            for number in (7, 3, 5, 9)
        ],
        "annotations": [
            annotation(1, 7, 90),
            annotation(2, 7, 4),
            annotation(3, 3, 17),
            annotation(4, 5, 17, iscrowd=1),
        ],
        "categories": [
            {"id": 90, "name": "pear"},
            {"id": 4, "name": "apple"},
            {"id": 17, "name": "nut"},
        ],
    }


@pytest.fixture
def json_file(tmp_path, coco):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(coco))
    return str(path)


def test_categories_are_contiguous_in_the_order_of_their_ids(json_file, tmp_path):
    assert num_categories(json_file) == 3
    assert category_names(json_file) == ["apple", "nut", "pear"]
    dicts = coco_dicts(json_file, str(tmp_path), filter_empty=False)
    classes = {
        os.path.basename(d["file_name"]): [a["category_id"] for a in d["annotations"]]
        for d in dicts
    }
    assert classes == {"3.jpg": [1], "5.jpg": [1], "7.jpg": [2, 0], "9.jpg": []}


def test_images_are_in_the_order_of_the_file_and_numbered_in_that_of_their_ids(json_file, tmp_path):
    dicts = coco_dicts(json_file, str(tmp_path), filter_empty=False)
    numbers = [(os.path.basename(d["file_name"]), d["image_id"]) for d in dicts]
    assert numbers == [("7.jpg", 3), ("3.jpg", 1), ("5.jpg", 2), ("9.jpg", 4)]


def test_dicts_are_those_of_detectron2_but_for_ids_order_and_what_is_not_used(
    json_file, tmp_path, coco
):
    height, width = 10, 20
    coco["annotations"][0]["segmentation"] = {"size": [height, width], "counts": [30, 20, 150]}
    coco["annotations"][1]["keypoints"] = [1, 2, 2]
    with open(json_file, "w") as file:
        json.dump(coco, file)
    theirs = load_coco_json(json_file, str(tmp_path), "coco of theirs")
    MetadataCatalog.remove("coco of theirs")
    del theirs[2]["annotations"][1]["keypoints"]
    ours = coco_dicts(json_file, str(tmp_path), filter_empty=False)
    ids = {1: 3, 2: 5, 3: 7, 4: 9}
    ours = [{**record, "image_id": ids[record["image_id"]]} for record in ours]
    assert sorted(ours, key=lambda record: record["image_id"]) == theirs


def test_filtering_drops_empty_and_crowd_only_images(json_file, tmp_path):
    kept = coco_dicts(json_file, str(tmp_path), filter_empty=True)
    assert [os.path.basename(d["file_name"]) for d in kept] == ["7.jpg", "3.jpg"]


def test_name_is_registered_with_what_evaluation_needs_before_any_loading(json_file, tmp_path):
    name = dataset_name(json_file, str(tmp_path))
    assert name in DatasetCatalog
    metadata = MetadataCatalog.get(name)
    with open(metadata.json_file, encoding="ascii") as file:
        numbered = json.load(file)
    assert [(i["id"], i["file_name"]) for i in numbered["images"]] == [
        *((3, "7.jpg"), (1, "3.jpg"), (2, "5.jpg"), (4, "9.jpg"))
    ]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in numbered["annotations"]] == [
        *((1, 3, 3), (2, 3, 1), (3, 1, 2), (4, 2, 2))
    ]
    assert metadata.image_ids == [3, 5, 7, 9]
    assert metadata.category_ids == [4, 17, 90]
    assert metadata.image_root == str(tmp_path)
    assert metadata.evaluator_type == "coco"
    assert metadata.thing_classes == ["apple", "nut", "pear"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2}


def test_a_copy_that_something_has_removed_is_made_anew(json_file, tmp_path):
    name = dataset_name(json_file, str(tmp_path))
    first = Path(MetadataCatalog.get(name).json_file)
    content = first.read_bytes()
    for remove in (first.unlink, lambda: shutil.rmtree(first.parent)):
        remove()
        assert dataset_name(json_file, str(tmp_path)) == name
        assert Path(MetadataCatalog.get(name).json_file).read_bytes() == content


def test_a_copy_is_not_made_anew_of_annotations_that_have_changed(json_file, tmp_path, coco):
    make = evaluators_of(
        L(COCOEvaluator)(dataset_name=L(dataset_name)(json_file=json_file, image_root=""))
    )
    coco["images"].pop()
    with open(json_file, "w") as file:
        json.dump(coco, file)
    evaluator = make()
    assert len(evaluator._coco_api.getImgIds()) == 4
    os.unlink(evaluator._metadata.json_file)
    with pytest.raises(InputError, match=r"some\.json has changed since the start, and the copy"):
        make()


def test_a_full_temporary_folder_is_a_sentence_at_the_start(json_file, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*\.json: No space left .*, by TMPDIR"):
        evaluators_of(L(print)(dataset_name=L(dataset_name)(json_file=json_file, image_root="x")))
    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with pytest.raises(InputError, match="no folder for temporary files .No space.*: set TMPDIR"):
        temporary_folder("")


def test_name_depends_on_the_absolute_paths_and_the_file(json_file, tmp_path, monkeypatch, coco):
    name = dataset_name(json_file, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert dataset_name("some.json", ".") == name
    assert dataset_name(json_file, str(tmp_path / "elsewhere")) != name
    coco["categories"].append({"id": 2, "name": "fig"})
    with open(json_file, "w") as file:
        json.dump(coco, file)
    changed = dataset_name(json_file, str(tmp_path))
    assert MetadataCatalog.get(changed).thing_classes == ["fig", "apple", "nut", "pear"]


def test_no_image_left_is_an_error(tmp_path, coco):
    path = tmp_path / "crowds.json"
    path.write_text(json.dumps({**coco, "annotations": [annotation(1, 3, 4, iscrowd=1)]}))
    with pytest.raises(InputError, match=r"crowds\.json has no image with an annotated object"):
        coco_dicts(str(path), str(tmp_path), filter_empty=True)
    path = tmp_path / "none.json"
    path.write_text(json.dumps({**coco, "images": [], "annotations": []}))
    with pytest.raises(InputError, match=r"none\.json lists no images"):
        coco_dicts(str(path), str(tmp_path), filter_empty=False)


def test_masks_are_scored_on_crowds_in_place_of_boxes_alone():
    mask = {"bbox": [0, 0, 2, 2], "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2, 2]]}
    box = {"bbox": [1, 2, 3, 4], "iscrowd": 0}
    content = {"annotations": [mask, box], "images": []}
    assert mask_truth({"annotations": [mask]})["annotations"][0] is mask
    first, second = mask_truth(content)["annotations"]
    assert first is mask
    assert second == {**box, "iscrowd": 1, "segmentation": [[1, 2, 4, 2, 4, 6, 1, 6]]}
    assert "segmentation" not in box

import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from snnet_vitdet.data import category_names, coco_dicts, dataset_name, num_categories
from snnet_vitdet.errors import InputError

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
    classes = {d["image_id"]: [a["category_id"] for a in d["annotations"]] for d in dicts}
    assert classes == {3: [1], 5: [1], 7: [2, 0], 9: []}


def test_dicts_are_detectron2s_with_paths_boxes_and_masks(json_file, tmp_path):
    first, *_ = coco_dicts(json_file, str(tmp_path / "images"), filter_empty=True)
    assert first == {
        "file_name": os.path.join(str(tmp_path / "images"), "3.jpg"),
        "image_id": 3,
        "height": 10,
        "width": 20,
        "annotations": [
            {
                "iscrowd": 0,
                "bbox": [1.0, 1.0, 8.0, 8.0],
                "category_id": 1,
                "segmentation": POLYGON,
                "bbox_mode": BoxMode.XYWH_ABS,
            }
        ],
    }


def test_filtering_drops_empty_and_crowd_only_images(json_file, tmp_path):
    kept = coco_dicts(json_file, str(tmp_path), filter_empty=True)
    assert [d["image_id"] for d in kept] == [3, 7]


def test_loading_twice_gives_the_same_dicts(json_file, tmp_path):
    first = coco_dicts(json_file, str(tmp_path), filter_empty=False)
    assert coco_dicts(json_file, str(tmp_path), filter_empty=False) == first


def test_name_is_registered_with_what_evaluation_needs_before_any_loading(json_file, tmp_path):
    name = dataset_name(json_file, str(tmp_path))
    assert name in DatasetCatalog
    metadata = MetadataCatalog.get(name)
    assert metadata.json_file == json_file
    assert metadata.image_root == str(tmp_path)
    assert metadata.evaluator_type == "coco"
    assert metadata.thing_classes == ["apple", "nut", "pear"]
    assert metadata.thing_dataset_id_to_contiguous_id == {4: 0, 17: 1, 90: 2}


def test_name_depends_on_the_absolute_paths_alone(json_file, tmp_path, monkeypatch):
    name = dataset_name(json_file, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert dataset_name("some.json", ".") == name
    assert dataset_name(json_file, str(tmp_path / "elsewhere")) != name


def test_functions_work_from_a_lazy_config(json_file, tmp_path):
    from detectron2.config import LazyCall as L
    from detectron2.config import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.create({"data": {"train_json": json_file, "root": str(tmp_path)}})
    config.dataset = L(coco_dicts)(
        json_file="${data.train_json}", image_root="${data.root}", filter_empty=True
    )
    config.num_classes = L(num_categories)(json_file="${data.train_json}")
    assert len(instantiate(config.dataset)) == 2
    assert instantiate(config.num_classes) == 3


def test_a_changed_file_is_read_again(json_file, coco):
    assert num_categories(json_file) == 3
    coco["categories"].append({"id": 2, "name": "fig"})
    with open(json_file, "w") as file:
        json.dump(coco, file)
    assert category_names(json_file) == ["fig", "apple", "nut", "pear"]


def test_no_image_left_is_an_error(tmp_path, coco):
    path = tmp_path / "crowds.json"
    path.write_text(json.dumps({**coco, "annotations": [annotation(1, 3, 4, iscrowd=1)]}))
    with pytest.raises(InputError, match=r"crowds\.json has no image with an annotated object"):
        coco_dicts(str(path), str(tmp_path), filter_empty=True)
    path = tmp_path / "none.json"
    path.write_text(json.dumps({**coco, "images": [], "annotations": []}))
    with pytest.raises(InputError, match=r"none\.json lists no images"):
        coco_dicts(str(path), str(tmp_path), filter_empty=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"bad\.json is not valid JSON .*: it may be truncated"),
        ('{"images": [', r"bad\.json is not valid JSON .*copy or export it again"),
        ("\xff\xfe", r"bad\.json is not valid JSON"),
        ("[]", r"bad\.json holds a JSON list, but COCO annotations are an object"),
        ('{"images": [], "annotations": []}', r'bad\.json has no "categories"'),
        ('{"images": [], "categories": []}', r'bad\.json has no "annotations"'),
        ('{"annotations": [], "categories": []}', r'bad\.json has no "images"'),
        (
            '{"images": {}, "annotations": [], "categories": []}',
            r'"images" in .*bad\.json must be a list of objects',
        ),
        (
            '{"images": [], "annotations": [], "categories": []}',
            r'"categories" in .*bad\.json is empty: list at least one',
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": "1", "name": "nut"}]}',
            r"A category in .*bad\.json is .*must have a whole number as id and a name",
        ),
        (
            '{"images": [], "annotations": [], "categories": '
            '[{"id": 1, "name": "nut"}, {"id": 1, "name": "fig"}]}',
            r"Category id 1 in .*bad\.json stands for both 'nut' and 'fig'",
        ),
    ],
)
def test_a_file_that_is_no_coco_file_is_named(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        num_categories(str(path))
    with pytest.raises(InputError, match=message):
        dataset_name(str(path), str(tmp_path))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.json cannot be opened \(No such file"):
        num_categories(str(tmp_path / "gone.json"))
    with pytest.raises(InputError, match="is a folder, but must be a COCO annotation file"):
        num_categories(str(tmp_path))

import json

import pytest

from snnet_vitdet.data import category_names, dataset_name, num_categories
from snnet_vitdet.errors import InputError


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "some.json"
    coco = {"images": [], "annotations": [], "categories": [{"id": 4, "name": "apple"}]}
    path.write_text(json.dumps(coco))
    assert num_categories(str(path)) == 1
    coco["categories"].append({"id": 2, "name": "fig"})
    path.write_text(json.dumps(coco))
    assert category_names(str(path)) == ["fig", "apple"]


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
            '{"images": [], "annotations": [], "categories": [{"id": 1.0, "name": "nut"}]}',
            r"A category in .*bad\.json has the id .*needs a whole number or a text as id, and a",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "\\ud83d"}]}',
            r"The name of category 1 in .*bad\.json has half of a surrogate pair",
        ),
        (
            '{"images": [], "annotations": [], "categories": '
            '[{"id": "1", "name": "nut"}, {"id": 1, "name": "fig"}]}',
            r"Category id 1 in .*bad\.json stands for both 'nut' and 'fig'",
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

import json
import logging
import os
import re
from pathlib import Path

import pytest

from snnet_vitdet.data import Inspection, check_coco_json, check_same_categories
from snnet_vitdet.errors import InputError

WIDTH, HEIGHT = 200, 120
EMPTY = "P^g0"  # one run of all their 24000 pixels, compressed


def make_annotation(number, image_id=1, **changes):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 5,
        "bbox": [10.0, 10.0, 20.0, 20.0],
        "area": 200.0,
        "iscrowd": 0,
        "segmentation": [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0]],
    } | changes


@pytest.fixture
def coco():
    return {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT}
            for number in (1, 2, 3)
        ],
        "annotations": [
            make_annotation(1),
            make_annotation(2, area=5000.0, category_id=2),
            make_annotation(
                3, image_id=2, area=9300.0, segmentation={"size": [HEIGHT, WIDTH], "counts": EMPTY}
            ),
            make_annotation(4, image_id=3, iscrowd=1),
        ],
        "categories": [{"id": 5, "name": "nut"}, {"id": 2, "name": "fig"}],
    }


@pytest.fixture
def check(tmp_path):
    """Writes the annotations to ``some.json``, its images 1 to 3 beside it, and checks them."""
    images = tmp_path / "images"
    images.mkdir()
    for number in (1, 2, 3):
        (images / f"{number}.jpg").touch()

    def write_and_check(coco, for_evaluation=False, masks=True):
        path = tmp_path / "some.json"
        path.write_text(json.dumps(coco))
        return check_coco_json(str(path), str(images), for_evaluation=for_evaluation, masks=masks)

    return write_and_check


def test_summary_counts_what_is_there(check, coco):
    summary = check(coco, for_evaluation=True)
    assert (summary.images, summary.empty_images) == (3, 1)
    assert (summary.annotations, summary.crowds) == (4, 1)
    assert (summary.rle_masks, summary.flat_boxes) == (1, 0)
    assert summary.categories == {2: "fig", 5: "nut"}
    assert summary.instances == {2: 1, 5: 2}
    assert summary.sizes == {"small": 1, "medium": 1, "large": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"id": None},
            r"has no id that is a whole number \(annotation at index 4 of image 1 has id None",
        ),
        ({"id": 1}, r"1 of 5 annotations in .*some\.json has the same id as another one"),
        ({"image_id": 77}, "names an image that is not listed .*annotation 9 of image 77"),
        ({"category_id": 8}, "names a category that is not listed .*has category 8"),
        ({"image_id": "1"}, "names an image that is not listed .*annotation 9 of image '1'"),
        ({"category_id": "5"}, "has a category_id that is not a whole number .*has category '5'"),
        ({"category_id": 5.0}, r"has a category_id that is not a whole number .*has category 5\.0"),
        ({"ignore": 1}, 'is marked "ignore", which detectron2 cannot load'),
        ({"bbox": None}, "has no bbox of four finite numbers .*has None"),
        ({"bbox": [1, 2, 3]}, r"has no bbox of four finite numbers .*has \[1, 2, 3\]"),
        ({"bbox": [1, 2, float("nan"), 4]}, "has no bbox of four finite numbers"),
        ({"bbox": [1, 2, 0, 4]}, r"has a box without area \(annotation 9 of image 1 has .*remove"),
        ({"bbox": [1, 2, 3, -4]}, "has a box without area"),
        ({"bbox": [WIDTH, 2, 3, 4]}, r"has a box outside the image .*\[200, 2, 3, 4\]"),
        ({"segmentation": "1 2 3"}, "has a polygon that is not a list of at least 3 points"),
        ({"segmentation": [[1, 2, 3, 4]]}, "has a polygon that is not a list of at least 3 points"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "has a polygon that is not a list"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "has a polygon that is not a list"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "has a polygon that is not a list"),
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": "a"}}, "is not of the image's size"),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH]}},
            "has an RLE mask whose counts are not run lengths",
        ),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "abc"}},
            "counts are not run lengths",
        ),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, 9]}},
            "counts are not run lengths",
        ),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [7, 9]}}, "do not cover the ima"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [10**30]}}, "do not cover the im"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e10]]}, "has a polygon that goes far beyond the image"),
        ({"segmentation": [[1, 2, 3, 4, 5, 10**400]]}, "has a polygon that is not a list"),
        ({"segmentation": [[10**400, -(10**400), 3, 4, 5, 6]]}, "has a polygon that is not a list"),
        ({"segmentation": [[1, 2, 3, 4, 5, True]]}, "has a polygon that is not a list"),
        ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, "has a polygon that is not a list"),
        ({"segmentation": [[[1, 2], [3, 4], [5, 6], [7, 8], [9, 9], [1, 1]]]}, "has a polygon th"),
        ({"bbox": [0, 0, 10**30, 10**30]}, r"goes far beyond .*\[0, 0, \d+, \d+\]\): correct"),
        ({"bbox": [-1e300, 0, 2e300, 5]}, "has a box that goes far beyond the image"),
        ({"bbox": [0, 0, 10**400, 1]}, "has no bbox of four finite numbers .* of 1329 bits, 1"),
        ({"bbox": [1, 2, True, 4]}, r"has no bbox of four finite numbers .*\[1, 2, True, 4\]"),
        ({"area": 1e300}, r'has an "area" far larger than their image .* has area 1e\+300\): set'),
        ({"area": "5"}, "has no \"area\" in pixels.* has area '5'"),
        ({"image_id": True}, "names an image that is not listed .*annotation 9 of image True"),
    ],
)
def test_a_faulty_annotation_is_named_with_a_remedy(check, coco, changes, message):
    coco["annotations"].append(make_annotation(9, **{"image_id": 1} | changes))
    with pytest.raises(InputError, match=message):
        check(coco)


def test_what_goes_beyond_the_border_as_whole_objects_do_is_taken(check, coco):
    change = {
        "bbox": [-9 * WIDTH, 0, 12 * WIDTH, 5],
        "area": 20.0 * WIDTH * HEIGHT,
        "segmentation": [[-9 * WIDTH, 0, 3 * WIDTH, 0, 0, 5]],
        "ignore": None,
    }
    coco["annotations"].append(make_annotation(9, **{"image_id": 1} | change))
    assert check(coco, for_evaluation=True).annotations == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (r"C:\data\x.jpg", r"1 of 3 images .* has a path of a drive of Windows .*\(C:\\data"),
        ("https://a.org/x.jpg", r"has a web address as file_name \(https://a.org/x.jpg\): downl"),
        ("x.jpg", r"is not in .*images \(x.jpg\): correct the image folder, or add the files"),
    ],
)
def test_a_name_that_is_no_file_of_the_folder_is_told_with_the_cause(check, coco, name, message):
    coco["images"][1]["file_name"] = name
    with pytest.raises(InputError, match=message):
        check(coco)


def test_an_address_that_is_none_leaves_an_image_without_a_name(check, coco):
    coco["images"][1] |= {"file_name": None, "coco_url": "http://["}
    with pytest.raises(InputError, match="image 2 has file_name None"):
        check(coco)


@pytest.mark.parametrize("missing", ["area", "iscrowd"])
def test_evaluation_needs_area_and_iscrowd_and_training_does_not(check, coco, missing):
    del coco["annotations"][1][missing]
    with pytest.raises(InputError, match=f'has no "{missing}".*the evaluation needs'):
        check(coco, for_evaluation=True)
    assert check(coco).annotations == 4


def test_crowds_may_lack_a_mask(check, coco):
    del coco["annotations"][3]["segmentation"]
    assert check(coco).crowds == 1
    assert check(coco, for_evaluation=True).crowds == 1


@pytest.mark.parametrize("nothing", [None, []])
def test_training_on_masks_needs_one(check, coco, nothing):
    for annotation in coco["annotations"]:
        annotation["segmentation"] = nothing
    with pytest.raises(InputError, match="3 of 4 .*have no segmentation .*data.masks=false"):
        check(coco)
    assert check(coco, for_evaluation=True).masks == 0
    assert check(coco, masks=False).masks == 0


def test_many_faults_of_a_kind_are_counted_and_the_first_are_shown(check, coco):
    coco["annotations"] += [make_annotation(k, bbox=[1, 1, 0, 0]) for k in range(10, 17)]
    message = r"7 of 11 .*annotation 10 of .*annotation 11 of .*annotation 12 of .*and 4 more\)"
    with pytest.raises(InputError, match=message):
        check(coco)


def test_as_few_flat_boxes_as_coco_has_are_a_warning(check, coco, caplog):
    coco["annotations"] = [make_annotation(k) for k in range(1, 100_001)]
    coco["annotations"][0]["bbox"] = [296.65, 388.33, 1.03, 0.0]
    with caplog.at_level(logging.WARNING, logger="snnet_vitdet"):
        assert check(coco).flat_boxes == 1
    assert "1 of 100000 annotations" in caplog.text
    coco["annotations"][1]["bbox"] = [1, 1, 0, 1]
    with pytest.raises(InputError, match="2 of 100000 annotations .* have a box without area"):
        check(coco)


@pytest.mark.parametrize("field", ["id", "file_name", "width", "height"])
def test_an_incomplete_image_entry_is_named(check, coco, field):
    del coco["images"][1][field]
    name = "at index 1" if field == "id" else "2"
    message = rf"1 of 3 images in .*some\.json has .*\(image {name} has no {field}\)"
    with pytest.raises(InputError, match=message):
        check(coco)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("file_name", None), ("width", "800"), ("width", -800), ("height", 0.5)),
        *(("width", True), ("height", 10**30)),
    ],
)
def test_a_wrong_field_of_an_image_entry_is_shown_and_no_count_is_negative(
    check, coco, tmp_path, field, value
):
    coco["annotations"].append(make_annotation(5, image_id=3))
    coco["images"][2][field] = value
    shown = rf"\(image 3 has {field} {value!r}\): each needs"
    with pytest.raises(InputError, match=shown):
        check(coco)
    path = str(tmp_path / "some.json")
    found = Inspection(path, str(tmp_path / "images"), for_evaluation=False)
    assert (found.summary.images, found.summary.empty_images) == (2, 0)


@pytest.mark.parametrize("for_evaluation", [False, True])
def test_ids_of_text_are_as_good_as_numbers(check, coco, caplog, for_evaluation):
    for image in coco["images"]:
        image["id"] = f"image {image['id']}"
    for annotation in coco["annotations"]:
        annotation["image_id"] = f"image {annotation['image_id']}"
        annotation["id"] = f"annotation {annotation['id']}"
        annotation["category_id"] = f"category {annotation['category_id']}"
    for category in coco["categories"]:
        category["id"] = f"category {category['id']}"
    coco["annotations"] = [each for each in coco["annotations"] if not each["iscrowd"]]
    with caplog.at_level(logging.WARNING, logger="snnet_vitdet"):
        summary = check(coco, for_evaluation=for_evaluation)
    assert caplog.text == ""
    assert list(summary.categories) == ["category 2", "category 5"]
    assert summary.annotations == sum(summary.instances.values()) == 3


def test_a_number_is_no_category_of_a_text(check, coco):
    for category in coco["categories"]:
        category["id"] = str(category["id"])
    with pytest.raises(InputError, match="have a category_id that is not a text .* category 5"):
        check(coco)


def test_ids_that_differ_by_quotes_alone_are_one(check, coco):
    coco["images"][1]["id"] = str(coco["images"][0]["id"])
    with pytest.raises(InputError, match="has the same id as another one \\('"):
        check(coco)


def test_categories_given_twice_are_a_warning(check, coco, caplog):
    with caplog.at_level(logging.WARNING, logger="snnet_vitdet"):
        coco["categories"].append({"id": 9, "name": "nut"})
        check(coco)
    assert "categories of the same name ('nut' of ids [5, 9])" in caplog.text


@pytest.mark.parametrize(
    ("for_evaluation", "says"),
    [(False, "training leaves crowds out"), (True, "evaluation ignores what is found in crowds")],
)
def test_crowds_are_a_warning_with_their_number_and_the_remedy(
    check, coco, caplog, for_evaluation, says
):
    with caplog.at_level(logging.WARNING, logger="snnet_vitdet"):
        check(coco, for_evaluation=for_evaluation)
    assert "1 of 4 annotations in" in caplog.text
    assert says in caplog.text and "set iscrowd to 0" in caplog.text


def test_no_images_and_no_objects_are_errors(check, coco):
    with pytest.raises(InputError, match=r"some\.json lists no images"):
        check({**coco, "images": []})
    crowds_only = {**coco, "annotations": coco["annotations"][3:]}
    message = "no image with an annotated object .*training needs.*All its 1 annotations are crowds"
    with pytest.raises(InputError, match=message):
        check(crowds_only)
    with pytest.raises(InputError, match="no image with an annotated object .*evaluation needs"):
        check(crowds_only, for_evaluation=True)


def test_images_that_do_not_exist_are_counted_and_named(check, coco):
    names = ["a/4.jpg", "5.jpg", "6.jpg", "7.jpg"]
    coco["images"] += [
        {"id": k, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for k, name in enumerate(names, start=4)
    ]
    message = r"4 of 7 images that .*some\.json names are not in .*a/4\.jpg, 5\.jpg, 6\.jpg and 1 m"
    with pytest.raises(InputError, match=message):
        check(coco)


def test_a_wrong_image_folder_and_annotation_file_are_named(check, coco, tmp_path):
    check(coco)
    json_file = str(tmp_path / "some.json")
    with pytest.raises(InputError, match="The image folder .*gone .*check the path"):
        check_coco_json(json_file, str(tmp_path / "gone"), for_evaluation=False)
    with pytest.raises(InputError, match="is a folder, but must be a COCO annotation file"):
        check_coco_json(str(tmp_path), str(tmp_path), for_evaluation=False)
    with pytest.raises(InputError, match=r"gone\.json cannot be opened"):
        check_coco_json(str(tmp_path / "gone.json"), str(tmp_path), for_evaluation=False)


def test_categories_that_differ_are_shown(check, coco, tmp_path):
    check(coco)
    paths = [str(tmp_path / name) for name in ("some.json", "test.json")]
    coco["categories"].reverse()
    Path(paths[1]).write_text(json.dumps(coco))
    check_same_categories(*paths)
    coco["categories"] = [{"id": 5, "name": "date"}, {"id": 6, "name": "fig"}]
    Path(paths[1]).write_text(json.dumps(coco))
    message = (
        r"some\.json and .*test\.json differ: id 2 is 'fig' in training and absent in test, "
        r"id 5 is 'nut' in training and 'date' in test, id 6 is absent in training and 'fig'"
    )
    with pytest.raises(InputError, match=message):
        check_same_categories(*paths)


def test_all_kinds_of_faults_are_collected_and_the_first_is_raised(check, coco, tmp_path):
    coco["images"] += [coco["images"][0], {"id": 9, "file_name": "gone.jpg"}]
    coco["annotations"] += [
        make_annotation(1, bbox=[1, 1, 0, 0]),
        # Its image has a faulty entry.
        make_annotation(10, image_id=9),
        make_annotation(11, image_id=10, segmentation=[[1, 2]]),
    ]
    with pytest.raises(InputError) as error:
        check(coco)
    found = Inspection(str(tmp_path / "some.json"), str(tmp_path / "images"), for_evaluation=False)
    assert found.faults[0] == str(error.value)
    expected = [
        "1 of 5 images in .* has an incomplete",
        "1 of 5 images in .* the same id as another one",
        r"1 of 5 images that .*\(gone\.jpg\)",
        "1 of 7 annotations in .* the same id as another one",
        r"1 of 7 annotations in .* names an image that is not listed \(annotation 11 of image 10\)",
        "1 of 7 annotations in .* without area",
        "1 of 7 annotations in .* a polygon that is not a list",
    ]
    assert len(found.faults) == len(expected)
    for pattern, fault in zip(expected, found.faults, strict=True):
        assert re.match(pattern, fault), fault
    assert found.missing == {"gone.jpg"}
    assert found.summary.instances == {2: 1, 5: 3}


def test_without_an_image_folder_the_annotations_are_still_looked_at(check, coco, tmp_path):
    coco["annotations"][0]["bbox"] = [1, 1, 0, 0]
    with pytest.raises(InputError, match="without area"):
        check(coco)
    path = str(tmp_path / "some.json")
    found = Inspection(path, str(tmp_path / "gone"), for_evaluation=False)
    assert len(found.faults) == 2
    assert found.missing == {"1.jpg", "2.jpg", "3.jpg"}


def test_a_file_that_cannot_be_read_is_the_only_fault(tmp_path):
    found = Inspection(str(tmp_path / "gone.json"), str(tmp_path), for_evaluation=False)
    assert len(found.faults) == 1 and "cannot be opened" in found.faults[0]
    assert found.data is None and found.summary is None


@pytest.mark.skipif("SNNET_REAL_DATA" not in os.environ, reason="SNNET_REAL_DATA is not set")
def test_real_photographs_pass():
    root = os.environ["SNNET_REAL_DATA"]
    json_file = os.path.join(root, "trainval.json")
    summary = check_coco_json(json_file, os.path.join(root, "images"), for_evaluation=True)
    assert (summary.images, summary.annotations, summary.crowds) == (18, 165, 0)
    assert list(summary.categories.values()) == ["date", "fig", "hazelnut"]


@pytest.fixture
def mixed_file(tiny_scenes, tmp_path):
    """An annotation file whose first two objects have a box alone."""
    coco = json.loads(Path(tiny_scenes.train_json).read_text(encoding="utf-8"))
    for annotation in coco["annotations"][:2]:
        del annotation["segmentation"]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(coco), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("for_evaluation", "consequence"),
    [
        (False, "training learns their boxes, and masks from the others"),
        (True, "mask AP ignores what is found in their boxes"),
    ],
)
def test_boxes_alone_are_counted_in_a_sentence(
    mixed_file, tiny_scenes, caplog, for_evaluation, consequence
):
    with caplog.at_level(logging.WARNING, "snnet_vitdet"):
        summary = check_coco_json(
            mixed_file, tiny_scenes.train_images, for_evaluation=for_evaluation
        )
    assert summary.masks == sum(summary.instances.values()) - 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("2 of ") and "have no mask" in line and consequence in line


def test_normalised_boxes_are_refused_without_masks_too(tiny_scenes, tmp_path):
    coco = json.loads(Path(tiny_scenes.train_json).read_text(encoding="utf-8"))
    for annotation in coco["annotations"]:
        del annotation["segmentation"]
        annotation["bbox"] = [side / 64 for side in annotation["bbox"]]
    path = tmp_path / "normalised.json"
    path.write_text(json.dumps(coco), encoding="utf-8")
    with pytest.raises(InputError, match="have a box of numbers from 0 to 1"):
        check_coco_json(str(path), tiny_scenes.train_images, for_evaluation=False, masks=False)

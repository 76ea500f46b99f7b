"""What happens with bad input (docs/data.md), and that check_dataset.py reports it."""

import json
import re
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from bad_images import BASE, HANDLED, HEIGHT, REFUSED, WIDTH, Case, save
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from in_process import run_program
from PIL import Image

from snnet_vitdet.data import (
    build_evaluation_loader,
    build_train_loader,
    check_coco_json,
    coco_dicts,
)
from snnet_vitdet.deploy import to_rgb
from snnet_vitdet.engine import build_model
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import evaluate_stitch

ROOT = Path(__file__).parent.parent.parent
NANO = ROOT / "configs/shapes/mask_rcnn_snnet_nano.py"
# As many as the detector of the embedded default has.
CATEGORIES = [{"id": i, "name": f"kind {i}"} for i in (1, 3, 4, 7, 8, 90)]


def entry(number, name, size=(WIDTH, HEIGHT)):
    return {"id": number, "file_name": name, "width": size[0], "height": size[1]}


def annotation(number, image_id=1, **changes):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 7,
        "bbox": [10.0, 10.0, 20.0, 20.0],
        "area": 200.0,
        "iscrowd": 0,
        "segmentation": [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0]],
    } | changes


def object_of(number, size):
    """An annotation that fills an image."""
    width, height = size
    outline = [0, 0, width, 0, width, height, 0, height]
    box = {"bbox": [0, 0, width, height], "segmentation": [outline], "area": width * height}
    return annotation(number, number, **box)


def whole(**changes):
    """Annotations of three pictures, of which the first has an object, in order."""
    return {
        "images": [entry(number, f"{number}.png") for number in (1, 2, 3)],
        "annotations": [annotation(1)],
        "categories": CATEGORIES,
    } | changes


@pytest.fixture
def folder(tmp_path):
    """A folder with the three pictures."""
    for number in (1, 2, 3):
        save()(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def write(folder):
    """Writes an annotation file; returns its path."""

    def write(coco, name="some.json"):
        (folder / name).write_text(coco if isinstance(coco, str) else json.dumps(coco))
        return str(folder / name)

    return write


@pytest.fixture
def dicts(write, folder):
    """The dataset dicts of an annotation file, as training or test takes them."""
    return lambda coco, filter_empty=False: coco_dicts(write(coco), str(folder), filter_empty)


@pytest.fixture(scope="module")
def config(tiny_config):
    """The tiny detector's; not to be changed."""
    return tiny_config()


@pytest.fixture(scope="module")
def mappers(config):
    """Those of training and of test."""
    return tuple(instantiate(config.dataloader[part].mapper) for part in ("train", "test"))


def dataset_checker(tiny_overrides, output):
    """Runs check_dataset.py on annotation files of training and of test."""

    def check(train, test, folder, *options):
        return run_program(
            "tools/check_dataset.py",
            *("--config-file", str(NANO), "--workers", "0", *options, *tiny_overrides),
            *(f"data.train_json='{train}'", f"data.train_images='{folder}'"),
            *(f"data.test_json='{test}'", f"data.test_images='{folder}'"),
            f"train.output_dir='{output}'",
        )

    return check


@pytest.fixture
def check_dataset(tiny_overrides, write, folder, tmp_path):
    """What check_dataset.py says of annotations, with others in order for the other part."""
    check = dataset_checker(tiny_overrides, tmp_path / "output")

    def check_dataset(coco, part="train", *options):
        files = {"train": write(whole(), "train.json"), "test": write(whole(), "test.json")}
        files[part] = write(coco, f"{part}.json")
        return check(files["train"], files["test"], folder, *options)

    return check_dataset


def mapped_in_test(record, mapper, workers=0):
    (batch,) = build_evaluation_loader([record], mapper, num_workers=workers)
    return batch[0]


def mapped_in_training(record, mapper, workers=0):
    loader = build_train_loader([record], mapper, total_batch_size=1, num_workers=workers)
    return next(iter(loader))[0]


# ------------------------------------------------------------------------------------------ images

IMAGES = REFUSED | HANDLED


@pytest.fixture(scope="module")
def image_report(tiny_overrides, tmp_path_factory):
    """What check_dataset.py says of all image files at once."""
    folder = tmp_path_factory.mktemp("images")
    coco = whole(images=[], annotations=[])
    for number, case in enumerate(IMAGES.values(), start=1):
        case.make(folder / case.name)
        coco["images"].append(entry(number, case.name, case.size))
        coco["annotations"].append(object_of(number, case.size))
    save()(folder / "1.png")
    (folder / "train.json").write_text(json.dumps(coco))
    test = whole(images=[entry(1, "1.png")])
    (folder / "test.json").write_text(json.dumps(test))
    check = dataset_checker(tiny_overrides, folder / "output")
    return check(folder / "train.json", folder / "test.json", folder)


def record_of(case, folder):
    case.make(folder / case.name)
    width, height = case.size
    return {"file_name": str(folder / case.name), "width": width, "height": height, "image_id": 1}


@pytest.mark.parametrize("kind", REFUSED)
def test_image_is_refused(kind, mappers, image_report, tmp_path):
    case: Case = REFUSED[kind]
    record = record_of(case, tmp_path)
    for mapped, mapper in zip((mapped_in_training, mapped_in_test), mappers, strict=True):
        with pytest.raises(InputError, match=re.escape(case.says)) as error:
            mapped(record, mapper)
        assert str(tmp_path / case.name) in str(error.value)
    if case.alone:
        with pytest.raises(InputError, match=re.escape(case.says)):
            to_rgb(tmp_path / case.name)
    if "its mode" in case.says:
        with Image.open(tmp_path / case.name) as image, pytest.raises(InputError) as error:
            to_rgb(image)
        assert case.says in str(error.value)
    assert image_report.code == 2
    faults = image_report.printed.partition("Faults: ")[2]
    assert case.name in faults
    assert case.says in faults or kind in ("missing", "4000 x 1 pixels")


@pytest.mark.parametrize("kind", HANDLED)
def test_image_is_used(kind, mappers, image_report, tmp_path):
    case: Case = HANDLED[kind]
    record = record_of(case, tmp_path)
    image = mapped_in_test(record, mappers[1])["image"].permute(1, 2, 0).numpy()
    expected = case.expected
    if expected.shape[:2] == (1, 1):
        expected = np.broadcast_to(expected, (64, 64, 3))
    assert image.shape == expected.shape
    difference = np.abs(image.astype(float) - expected).mean()
    assert difference <= case.tolerance
    np.testing.assert_array_equal(to_rgb(tmp_path / case.name).shape[2], 3)
    sample = mapped_in_training(record | {"annotations": []}, mappers[0])
    assert sample["image"].shape[0] == 3 and len(sample["instances"]) == 0
    notes, _, faults = image_report.printed.partition("Faults: ")
    assert case.name not in faults
    assert case.says in notes


def test_modes_of_images_are_counted(image_report):
    modes, _ = re.findall(r"modes of images +(.*)", image_report.printed)
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "1"):
        assert re.search(rf"\d {mode}(,|$)", modes), mode


def test_image_above_the_warning_limit_is_used_with_a_note(
    monkeypatch, mappers, folder, check_dataset
):
    width, height = 12 * WIDTH, 12 * HEIGHT
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", width * height - 1)
    Image.new("RGB", (width, height)).save(folder / "large.png")
    record = {"file_name": str(folder / "large.png"), "width": width, "height": height}
    with pytest.warns(Image.DecompressionBombWarning):
        image = mapped_in_test(record, mappers[1])["image"]
    assert image.shape == (3, HEIGHT, WIDTH)
    with pytest.warns(Image.DecompressionBombWarning):
        assert to_rgb(folder / "large.png").shape == (height, width, 3)
    images = [entry(1, "large.png", (width, height)), *whole()["images"][1:]]
    finished = check_dataset(whole(images=images))
    assert finished.code == 0
    assert "so many pixels that Pillow warns of them" in finished.printed


@pytest.mark.parametrize("mode", ["one_pass", "separate"])
@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_test_image_ends_a_sweep_with_a_sentence(
    mode, workers, tiny_overrides, write, folder, restored_logging
):
    REFUSED["truncated JPEG"].make(folder / "cut.jpg")
    # Behind as many images in order as the workers read ahead.
    images = [*whole()["images"], entry(4, "cut.jpg")]
    finished = run_program(
        "train_net.py",
        *("--config-file", str(NANO), "--eval-only", *tiny_overrides),
        *(f"data.train_json='{write(whole())}'", f"data.train_images='{folder}'"),
        *(f"data.test_json='{write(whole(images=images))}'", f"data.test_images='{folder}'"),
        *("sweep.at_initialisation=True", "sweep.stitch_ids=[S]", f"sweep.mode={mode}"),
        *("init.stitching_layers=random", f"dataloader.test.num_workers={workers}"),
        f"train.output_dir='{folder / 'output'}'",
    )
    assert finished.code == 2
    (line,) = [line for line in finished.error.splitlines() if line.startswith("error: ")]
    assert "cut.jpg cannot be read as an image (image file is truncated" in line
    assert "Traceback" not in finished.error
    assert finished.error.strip().endswith(line)


# ------------------------------------------------------------------------------------- annotations


def test_box_partly_outside_is_clipped(dicts, mappers, check_dataset):
    outline = [[-9.0, 10, 30, 10, 30, 90]]
    coco = whole(annotations=[annotation(1, bbox=[-9, 10, 39, 80], segmentation=outline)])
    (record, *_) = dicts(coco)
    boxes = mapped_in_training(record, mappers[0])["instances"].gt_boxes.tensor
    assert len(boxes) == 1 and boxes.min() >= 0 and boxes.max() <= 64
    finished = check_dataset(coco)
    assert finished.code == 0
    assert "has a box that reaches over the border" in finished.printed


# The objects are 20 pixels wide and high.
ODD_GEOMETRY = {
    "normalised boxes": (
        {"bbox": [10 / WIDTH, 10 / HEIGHT, 20 / WIDTH, 20 / HEIGHT]},
        "a box of numbers from 0 to 1",
        "they look normalised: multiply by width and height",
    ),
    "normalised polygons": (
        {"segmentation": [[10 / WIDTH, 10 / HEIGHT, 30 / WIDTH, 10 / HEIGHT, 30 / WIDTH, 0.5]]},
        "polygons of numbers from 0 to 1",
        "they look normalised: multiply by width and height",
    ),
    "two corners as boxes": (
        {"bbox": [10, 10, 30, 30]},
        "a box that is not around its mask",
        "are boxes written as [x1, y1, x2, y2]?",
    ),
}


@pytest.mark.parametrize("kind", ODD_GEOMETRY)
def test_most_boxes_or_masks_are_refused(kind, write, folder, check_dataset):
    change, says, remedy = ODD_GEOMETRY[kind]
    coco = whole(annotations=[annotation(k, **(change if k > 1 else {})) for k in (1, 2, 3)])
    for for_evaluation in (False, True):
        with pytest.raises(InputError, match=rf"^2 of 3 annotations .* have {says}") as error:
            check_coco_json(write(coco), str(folder), for_evaluation=for_evaluation)
        assert remedy in str(error.value) and "annotation 2 of image 1" in str(error.value)
    finished = check_dataset(coco)
    assert finished.code == 2
    notes, _, faults = finished.printed.partition("Faults: ")
    assert says in faults and remedy in faults
    assert says not in notes


@pytest.mark.parametrize("kind", ODD_GEOMETRY)
def test_a_few_boxes_or_masks_get_a_note(kind, check_dataset):
    change, says, remedy = ODD_GEOMETRY[kind]
    finished = check_dataset(whole(annotations=[annotation(1), annotation(2, **change)]))
    assert finished.code == 0
    assert "1 of 2 annotations in" in finished.printed
    assert says in finished.printed and remedy in finished.printed


def test_box_that_is_not_around_its_mask_is_taken_from_the_mask(dicts, mappers):
    (record, *_) = dicts(whole(annotations=[annotation(1, bbox=[10, 10, 30, 30])]))
    instances = mapped_in_training(record, mappers[0])["instances"]
    torch.testing.assert_close(
        instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor, rtol=0, atol=0
    )


def test_object_annotated_twice_gets_a_note(check_dataset):
    finished = check_dataset(whole(annotations=[annotation(1), annotation(2)]))
    assert finished.code == 0
    assert "has the same box and category as another one" in finished.printed


def test_object_smaller_than_a_pixel_gets_a_note(config, dicts, check_dataset):
    outline = [[5.0, 5, 5.5, 5, 5.5, 5.5]]
    tiny = annotation(2, bbox=[5, 5, 0.5, 0.5], segmentation=outline, area=0.1)
    coco = whole(annotations=[annotation(1), tiny])
    (record, *_) = dicts(coco)
    mapper = instantiate(config.dataloader.train.mapper)
    mapper.augmentations = T.AugmentationList([])
    assert len(mapped_in_training(record, mapper)["instances"]) == 1
    finished = check_dataset(coco)
    assert finished.code == 0
    assert "is thinner than a pixel once the image is resized" in finished.printed


def test_rle_without_a_pixel_is_left_out(dicts, mappers, check_dataset):
    empty = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    coco = whole(annotations=[annotation(1), annotation(2, segmentation=empty)])
    (record, *_) = dicts(coco)
    assert len(record["annotations"]) == 2
    assert len(mapped_in_training(record, mappers[0])["instances"]) == 1
    finished = check_dataset(coco)
    assert finished.code == 0
    assert "1 of 2 annotations" in finished.printed
    assert "has a box that is not around its mask" in finished.printed


def test_rle_masks_are_refused_by_a_mapper_of_polygons(
    config, dicts, mappers, write, folder, check_dataset
):
    mask = {"size": [HEIGHT, WIDTH], "counts": [480, 480, HEIGHT * WIDTH - 960]}
    coco = whole(annotations=[annotation(1, segmentation=mask, bbox=[10, 0, 10, HEIGHT])])
    records = dicts(coco, filter_empty=True)
    assert mapped_in_training(records[0], mappers[0])["instances"].gt_masks.tensor.any()
    polygons = instantiate(config.dataloader.train.mapper)
    polygons.instance_mask_format = "polygon"
    with pytest.raises(InputError, match='set instance_mask_format="bitmask"'):
        build_train_loader(records, polygons, total_batch_size=1, num_workers=0)
    assert check_dataset(coco).code == 0
    finished = check_dataset(coco, "train", "dataloader.train.mapper.instance_mask_format=polygon")
    assert finished.code == 2
    assert "add dataloader.train.mapper.instance_mask_format=bitmask" in finished.printed


def test_image_folder_that_is_not_there_is_refused(write, folder, tiny_overrides):
    path, gone = write(whole()), folder / "gone"
    with pytest.raises(InputError, match="does not exist or is not a folder: check the path"):
        check_coco_json(path, str(gone), for_evaluation=False)
    finished = dataset_checker(tiny_overrides, folder / "output")(path, path, gone)
    assert finished.code == 2
    assert finished.printed.count("does not exist or is not a folder: check the path") == 1


def test_class_without_objects_is_named(check_dataset):
    finished = check_dataset(whole())
    assert finished.code == 0
    assert "5 of 6 categories have no object" in finished.printed
    assert "leaves out 2 of 3 images" in finished.printed and "with crowds" not in finished.printed


def test_file_name_listed_twice_is_named(dicts, check_dataset):
    coco = whole(images=[entry(1, "1.png"), entry(2, "1.png")])
    assert len(dicts(coco)) == 2
    finished = check_dataset(coco)
    assert finished.code == 0
    assert "1 of 1 file names in" in finished.printed


def test_images_in_training_and_test_are_named(folder, check_dataset, tiny_overrides, write):
    finished = check_dataset(whole())
    assert finished.code == 0
    assert "3 of 3 test images are in the training data as well" in finished.printed
    (folder / "copy.png").write_bytes((folder / "1.png").read_bytes())
    Image.fromarray(255 - BASE).save(folder / "2.png")
    train = write(whole(images=[entry(1, "1.png")]), "train.json")
    test = write(whole(images=[entry(1, "copy.png"), entry(2, "2.png")]), "test.json")
    check = dataset_checker(tiny_overrides, folder / "output")
    assert (
        "1 of 2 test images has the content of a training image"
        in check(train, test, folder).printed
    )
    assert "the content" not in check(train, test, folder, "--headers-only").printed


# ---------------------------------------------------------------------- training and evaluation


@pytest.fixture(scope="module")
def model(config):
    """A detector of random weights."""
    return build_model(config)


def assert_trains(model, samples):
    """An iteration: losses and gradients are finite, and there are some."""
    model.train()
    model.zero_grad()
    with EventStorage():
        losses = model(samples)
    sum(losses.values()).backward()
    assert {"loss_rpn_cls", "loss_cls", "loss_mask"} <= losses.keys()
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_empty_and_crowd_only_images_are_left_out_of_training(dicts, check_dataset):
    coco = whole(annotations=[annotation(1), annotation(2, image_id=2, iscrowd=1)])
    (left,) = dicts(coco, filter_empty=True)
    assert left["file_name"].endswith("1.png")
    finished = check_dataset(coco)
    assert finished.code == 0
    assert "leaves out 2 of 3 images" in finished.printed
    assert "which have no object (1 with crowds)" in finished.printed
    assert "has iscrowd 1: training leaves crowds out" in finished.printed


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_a_batch_of_empty_images_trains(mask_format, config, dicts, model):
    """With dataloader.train.dataset.filter_empty=False."""
    mapper = instantiate(config.dataloader.train.mapper)
    mapper.instance_mask_format = mask_format
    records = dicts(whole(annotations=[annotation(1, image_id=2, iscrowd=1)]))
    samples = [mapped_in_training(record, mapper) for record in records]
    assert [len(sample["instances"]) for sample in samples] == [0, 0, 0]
    assert_trains(model, samples)
    (record, *_) = dicts(whole())
    assert_trains(model, [samples[0], mapped_in_training(record, mapper)])


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_a_batch_whose_crop_has_removed_every_object_trains(mask_format, config, dicts, model):
    mapper = instantiate(config.dataloader.train.mapper)
    mapper.instance_mask_format = mask_format
    mapper.augmentations = T.AugmentationList([T.CropTransform(32, 16, 32, 32)])
    (record, *_) = dicts(whole())
    samples = [mapped_in_training(record, mapper) for _ in range(2)]
    assert [len(sample["instances"]) for sample in samples] == [0, 0]
    assert_trains(model, samples)


def test_500_objects_on_an_image_train_and_are_scored(
    config, dicts, model, mappers, write, folder, check_dataset
):
    crowded = [
        annotation(1 + k, bbox=[k % 60, k // 60, 3, 3], segmentation=[square(k % 60, k // 60, 3)])
        for k in range(500)
    ]
    coco = whole(annotations=crowded)
    (record, *_) = dicts(coco)
    sample = mapped_in_training(record, mappers[0])
    assert len(sample["instances"]) > 100
    assert_trains(model, [sample])
    path = write(coco)
    evaluator = config.dataloader.evaluator.copy()
    evaluator.dataset_name.update(json_file=path, image_root=str(folder))
    scores = evaluate_stitch(
        model,
        model.backbone.net.space[0],
        build_evaluation_loader(coco_dicts(path, str(folder), False), mappers[1]),
        instantiate(evaluator),
    )
    assert 0 <= scores["bbox_AP"] <= 100
    finished = check_dataset(coco, "test")
    assert finished.code == 0
    assert "1.png of" in finished.printed and "has 500 objects" in finished.printed


def square(x, y, side):
    """The corners of a square, as a polygon."""
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def test_images_of_one_pixel_train(dicts, folder, model, mappers):
    HANDLED["1 x 1 pixel"].make(folder / "1.png")
    images = [entry(1, "1.png", (1, 1))]
    (record,) = dicts(whole(images=images, annotations=[object_of(1, (1, 1))]))
    assert_trains(model, [mapped_in_training(record, mappers[0])] * 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mapper_of_ones_own_is_told_of_in_general(workers, folder, tmp_path):
    REFUSED["huge"].make(tmp_path / "huge.png")
    record = {"file_name": str(tmp_path / "huge.png"), "image_id": 1}
    for mapped, what in ((mapped_in_training, "training"), (mapped_in_test, "test")):
        says = f"^The {what} image .*huge.png cannot be used .*exceeds limit.*: replace the file"
        with pytest.raises(InputError, match=says):
            mapped(record, own_mapper, workers)
    with pytest.raises(InputError, match=r"gives None for .*huge\.png, but every image has"):
        mapped_in_test(record, no_mapper, workers)


def own_mapper(record):
    return {"image": to_array(record["file_name"])}


def to_array(path):
    with Image.open(path) as image:
        return np.asarray(image)


def no_mapper(record):
    return None


# ------------------------------------------------------------------------------- config and weights


def test_checkpoint_of_other_anchors_is_told_with_the_data(tiny_config, check_dataset, tmp_path):
    narrow = tiny_config("model.backbone.net.small.embed_dim=16", "model.backbone.net.lora_rank=2")
    path, own = tmp_path / "other.pth", tmp_path / "own.pth"
    for config, file in ((narrow, path), (tiny_config(), own)):
        torch.save({"model": build_model(config).state_dict()}, file)
    finished = check_dataset(whole(), "train", f"train.init_checkpoint='{path}'")
    assert finished.code == 2
    assert "other.pth cannot be used: the checkpoint is not one of this model" in finished.printed
    assert check_dataset(whole(), "train", f"train.init_checkpoint='{own}'").code == 0

"""tools/check_dataset.py as a program; what it says of bad input is in data/test_bad_input.py."""

import json
import re
import shutil
from pathlib import Path

import pytest
from detectron2.config import instantiate
from in_process import run_program

from snnet_vitdet.engine import StrictCheckpointer

NANO = "configs/shapes/mask_rcnn_snnet_nano.py"


@pytest.fixture
def run(root, tiny_overrides, tmp_path):
    """Runs the program on the generated scenes."""

    def run(*args, options=("--workers", "0")):
        own = (*tiny_overrides, f"train.output_dir='{tmp_path / 'output'}'")
        file = ("--config-file", str(root / NANO))
        return run_program("tools/check_dataset.py", *file, *options, *own, *args)

    return run


@pytest.fixture
def damaged(tiny_scenes, tmp_path):
    """A copy of the generated training images, one of which is truncated; its overrides."""
    images = tmp_path / "images"
    shutil.copytree(tiny_scenes.train_images, images)
    broken = sorted(images.iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:-200])
    return f"data.train_images='{images}'"


def table(printed, title):
    """The rows of a table of the summary, as name and value."""
    lines = printed.partition(f"{title}\n")[2].partition("\n\n")[0].splitlines()
    return dict(re.split(r"  +", line.strip(), maxsplit=1) for line in lines if line.strip())


def test_data_in_order_give_a_summary_and_status_0(run, tiny_scenes):
    finished = run()
    assert finished.code == 0, finished.printed + finished.error
    assert "Faults" not in finished.printed
    assert finished.printed.endswith("Images decoded: 10; nothing is wrong.\n")
    coco = json.loads(Path(tiny_scenes.train_json).read_text())
    rows = table(finished.printed, "Train data (what is in order)")
    assert rows["annotation file"] == tiny_scenes.train_json
    assert rows["images"] == "8" and rows["crowds"] == "0"
    assert rows["objects"] == str(len(coco["annotations"]))
    masks = [annotation["segmentation"] for annotation in coco["annotations"]]
    rle = sum(isinstance(mask, dict) for mask in masks)
    assert rows["objects with RLE masks"].split()[0] == str(rle)
    per_image = [a["image_id"] for a in coco["annotations"]]
    most = max(per_image.count(image["id"]) for image in coco["images"])
    assert rows["most objects on an image"].startswith(f"{most} (")
    assert rows["smallest image"] == rows["median image"] == rows["largest image"] == "64 x 64"
    assert rows["modes of images"] == "8 RGB"
    assert table(finished.printed, "Test data (what is in order)")["images"] == "2"
    (circles,) = re.findall(r"^ +1  circle +(\d+)", finished.printed, re.MULTILINE)
    assert int(circles) == sum(a["category_id"] == 1 for a in coco["annotations"])


def test_a_truncated_image_is_found_by_decoding_alone(run, damaged):
    finished = run(damaged)
    assert finished.code == 2
    assert "1 of 8 images of" in finished.printed
    assert "is damaged or truncated" in finished.printed and "000004.jpg" in finished.printed
    assert finished.printed.endswith("Images decoded: 10; kinds of faults: 1.\n")
    headers = run(damaged, options=("--workers", "0", "--headers-only"))
    assert headers.code == 0
    assert headers.printed.endswith("Images looked at by their headers: 10; nothing is wrong.\n")


def test_all_faults_are_told_at_once(run, damaged, tiny_scenes, tmp_path):
    coco = json.loads(Path(tiny_scenes.train_json).read_text())
    coco["annotations"][0]["bbox"] = [1, 1, 0, 0]
    coco["annotations"][1]["category_id"] = 77
    coco["images"][0]["file_name"] = "gone.jpg"
    coco["categories"][0]["name"] = "disc"
    (tmp_path / "train.json").write_text(json.dumps(coco))
    finished = run(
        damaged,
        f"data.train_json='{tmp_path / 'train.json'}'",
        "optimizer.betas=[2,0.9]",
    )
    assert finished.code == 2
    faults = finished.printed.partition("Faults: to be corrected before a training\n")[2]
    assert len([line for line in faults.splitlines() if line.startswith("- ")]) == 6
    for says in (
        "1 of 8 images that",
        "has a box without area",
        "names a category that is not listed",
        "is damaged or truncated",
        "id 1 is 'disc' in training and 'circle' in test",
        "optimizer cannot be built from its config: Invalid beta parameter",
    ):
        assert says in faults
    assert "kinds of faults: 6" in finished.printed


def test_data_that_are_left_to_the_user_are_asked_for(root):
    custom = root / "configs/custom/mask_rcnn_snnet_coco_json.py"
    finished = run_program("tools/check_dataset.py", "--config-file", str(custom))
    assert finished.code == 2
    assert finished.error.startswith("error: the config leaves these keys to you")


@pytest.mark.parametrize(
    ("option", "says"),
    [("--workers=-1", "--workers -1 must be 0 or more"), ("train.x=1", "no key")],
)
def test_wrong_arguments_are_refused(option, says, run):
    finished = run(option) if "=1" in option else run(options=(option,))
    assert finished.code == 2
    assert says in finished.error


def test_a_training_that_is_there_is_checked_with_its_last_checkpoint(run, tiny_config, tmp_path):
    folder = tmp_path / "output"
    folder.mkdir()
    StrictCheckpointer(instantiate(tiny_config().model), str(folder)).save("model_0000009")
    finished = run()
    assert finished.code == 0, finished.printed + finished.error
    path = folder / "model_0000009.pth"
    for content in (b"no checkpoint", None):
        path.write_bytes(content) if content else path.unlink()
        finished = run()
        assert finished.code == 2
        assert f"the last checkpoint={path} cannot be used: weight file" in finished.printed


def test_weights_by_name_are_said_not_to_be_tried(run):
    name = "deit3_small_patch16_224.fb_in22k_ft_in1k"
    finished = run(f"init.weights.small={name}")
    assert (
        f"init.weights.small={name} names weights of timm, which a training downloads; nothing"
        in (finished.printed)
    )

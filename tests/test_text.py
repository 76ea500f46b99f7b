"""Names from files are shown without control characters: on a screen, in a log, page or picture."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from snnet_vitdet.data import coco_dicts
from snnet_vitdet.demo.answers import message
from snnet_vitdet.deploy import draw_detections
from snnet_vitdet.errors import InputError, exit_with
from snnet_vitdet.report import SampleColumn, SamplePicture, SampleRow, Samples, report_html
from snnet_vitdet.text import escaped, neutral, plot_text

# Colours a terminal, clears it, goes back, turns text around, ends a line, and is half a character.
ACTING = "\x1b[31m \x9b2J \r \b \x7f \0 \u202e \u2066 \u200f \u061c \u2028 \n \ud800"
NAME = f"cat{ACTING}<b>"


def acting_in(text):
    return [c for c in ACTING if c not in " 2[31mJ" and c in text]


def test_what_acts_is_written_as_python_would():
    assert neutral("a\x1b[31m\x9b\u202e\n\ud800") == r"a\x1b[31m\x9b\u202e\n\ud800"
    assert acting_in(neutral(ACTING)) == []
    assert neutral("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"
    assert neutral(7) == "7"


@pytest.mark.parametrize(
    "name",
    [
        "cat",
        "Stra\u00dfe 7",
        "\u732b",
        "\u05d7\u05ea\u05d5\u05dc",
        "\u0645\u06cc\u200c\u062e",
        "\U0001f469\u200d\U0001f680",
        "C:\\data\\a.png",
    ],
)
def test_names_of_any_language_stay_as_they_are(name):
    assert neutral(name) == name


def test_html_and_pictures_take_names_as_text():
    assert escaped('<b>"\u202e') == "&lt;b&gt;&quot;\\u202e"
    assert plot_text("a$b$\x1b") == r"a\$b\$\x1b"


def test_errors_and_logs_are_neutral(capsys, caplog):
    error = InputError(f"class {NAME} is twice")
    assert acting_in(str(error)) == [] and "<b>" in str(error)
    with pytest.raises(SystemExit):
        exit_with(f"class {NAME}")
    assert acting_in(capsys.readouterr().err.removesuffix("\n")) == []
    assert "class cat" in message(str(error)) and acting_in(message(str(error))) == []
    logging.getLogger("snnet_vitdet.anything").warning("class %s of\n%d", NAME.replace("\n", ""), 3)
    (record,) = caplog.records
    assert acting_in(record.getMessage()) == ["\n"] and record.getMessage().endswith(" of\n3")


def test_classes_of_annotations_are_logged_neutrally(tmp_path, caplog):
    annotation = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 5, 5], area=25, iscrowd=0)
    annotation["segmentation"] = [[1, 1, 6, 1, 6, 6, 1, 6]]
    data = {
        "images": [dict(id=1, file_name="a.png", width=9, height=9)],
        "annotations": [annotation],
        "categories": [dict(id=1, name="a\x1b[1m\u202e"), dict(id=2, name="dog")],
    }
    (tmp_path / "a.json").write_text(json.dumps(data), encoding="utf-8")
    with caplog.at_level(logging.INFO):
        assert len(coco_dicts(str(tmp_path / "a.json"), str(tmp_path), filter_empty=True)) == 1
    assert "dog" in caplog.text and acting_in(caplog.text.replace("\n", "")) == []


def test_records_of_other_packages_stay_as_they_are(caplog):
    # Not all of NAME: what is logged here is sent between the processes of the tests, as UTF-8.
    logging.getLogger("other.package").warning("%s", "a\x1b\u202e")
    (record,) = caplog.records
    assert record.args == ("a\x1b\u202e",)


def test_a_report_has_names_as_text():
    row = dict(stitch_id=0, name="S", kind="S", cuts=(), gflops=1.0, params_m=1.0, on_pareto=True)
    picture = SamplePicture(b"", 1, 1, f"2 {NAME}")
    samples = Samples([SampleColumn(NAME, NAME)], [SampleRow(NAME, [picture])])
    rows = [row | dict(bbox_AP=1.0)]
    html = report_html(rows, title=NAME, facts=[(NAME, NAME)], samples=samples, no_samples=NAME)
    assert acting_in(html) == ["\n"] and "cat\\x1b[31m" in html and "cat\x1b" not in html
    assert "<b>" not in html.partition("<body")[2]
    assert [line for line in html.splitlines() if line.strip().startswith("\\ud800")] == []


def drawn(name):
    instances = Instances(
        (200, 200),
        pred_boxes=Boxes(torch.tensor([[20.0, 60.0, 180.0, 180.0]])),
        pred_classes=torch.tensor([0]),
    )
    instances.class_names = np.array([name], dtype=str)
    return draw_detections(np.full((200, 200, 3), 255, np.uint8), instances)


def test_dollars_in_a_name_are_drawn():
    """Between two of them matplotlib reads maths, and an error ended the drawing."""
    assert (drawn(r"a $\frac$ b") != drawn("a")).any()
    assert (drawn("$a$") != drawn("a")).any()


def test_a_name_that_acts_is_drawn_in_one_line():
    assert (drawn("a\nb") == drawn(r"a\nb")).all()

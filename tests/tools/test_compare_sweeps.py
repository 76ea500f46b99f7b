"""tools/compare_sweeps.py on tables written here."""

import csv
import json
from dataclasses import replace

import pytest
from in_process import run_program
from PIL import Image

from snnet_vitdet.evaluation import StitchResult, StitchTable


@pytest.fixture
def sweep(tmp_path):
    """Writes the results of a sweep into a training's folder of the test."""

    def write(folder, points, num_images=50, annotations="test.json", kind="FS", ratio=None):
        table = StitchTable()
        for i, (cost, box, mask) in enumerate(points):
            name = "baseline" if kind == "baseline" else f"{kind}-{i + 1}"
            scores = {"bbox_AP": box, "segm_AP": mask}
            cuts = () if kind == "baseline" else (i + 1,)
            result = StitchResult(i, name, kind, cuts, cost, 1.0 + i, scores, 9, num_images)
            table.put(replace(result, aspect_ratio=ratio))
        table.write(tmp_path / folder / "sweep")
        facts = {"test_json": f"/data/{annotations}", "test_json_bytes": 7}
        (tmp_path / folder / "sweep" / "sweep.json").write_text(json.dumps(facts))
        return str(tmp_path / folder)

    return write


@pytest.fixture
def compare(tmp_path):
    def run(*arguments, fails=False):
        picture = tmp_path / "comparison.png"
        done = run_program("tools/compare_sweeps.py", *arguments, "--output", str(picture))
        assert (done.code != 0) == fails, done.error
        assert picture.is_file() != fails
        return done.error if fails else done.printed

    return run


def lines_of(printed):
    return [line.split() for line in printed.splitlines()]


def test_differences_at_equal_cost_and_over_all_budgets_are_printed(sweep, compare, tmp_path):
    one = sweep("one", [(1, 10, 5), (3, 30, 15)])
    other = sweep("other", [(1, 12, 5), (2, 24, 15), (3, 25, 16)])
    printed = compare(
        f"one={one}", f"other={other}", "--at", "1,2.5,3", "--csv", str(tmp_path / "new/table.csv")
    )
    lines = lines_of(printed)
    assert ["1", "10.0", "12.0", "+2.0"] in lines
    assert ["2.5", "10.0", "24.0", "+14.0"] in lines
    assert ["3", "30.0", "25.0", "-5.0"] in lines
    # From 1 to 3: 2 x 10, and 12 + 24; of FS-1 and FS-2, one of two is higher.
    (areas,) = [line for line in lines if line[:2] == ["one", "2"]]
    assert areas[2:4] == ["20.0", "10.00"]
    (areas,) = [line for line in lines if line[:2] == ["other", "3"]]
    assert areas[2:5] == ["36.0", "18.00", "+8.00"]
    assert "-2.00, 1 of 2 higher" in printed and "Note" not in printed
    with open(tmp_path / "new/table.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1] == ["1", "10.0", "12.0", "+2.0"]
    assert Image.open(tmp_path / "comparison.png").size == (1440, 900)


def test_another_score_and_another_cost_decide_where_asked(sweep, compare):
    one = sweep("one", [(1, 10, 5), (3, 30, 15)])
    other = sweep("other", [(1, 12, 5), (2, 24, 15)])
    printed = compare(f"a={one}", f"b={other}", "--by", "mask", "--cost", "params_m", "--at=2")
    assert ["2", "15.0", "15.0", "+0.0"] in lines_of(printed)
    assert "segm_AP" in printed and "M params" in printed


def test_equal_names_are_runs_and_joined_folders_one_thing_to_choose_from(sweep, compare):
    ours = [sweep(f"ours{i}", [(1, 10 + i, 5), (3, 30 + i, 15)]) for i in range(2)]
    apart = [
        sweep("small", [(1, 9, 4)], kind="baseline"),
        sweep("large", [(3, 33, 4)], kind="baseline"),
    ]
    printed = compare(*(f"ours={folder}" for folder in ours), f"apart={'+'.join(apart)}")
    lines = lines_of(printed)
    assert ["1", "10.5", "±", "0.7", "9.0", "-1.5"] in lines
    assert ["3", "30.5", "±", "0.7", "33.0", "+2.5"] in lines
    assert "none in common" in printed


def test_what_was_scored_on_other_images_is_noted(sweep, compare):
    points = [(1, 10, 5)]
    one, fewer = sweep("one", points), sweep("fewer", points, num_images=49)
    other = sweep("other", points, annotations="val.json")
    assert "one: 50 images, test.json" in compare(f"one={one}", f"fewer={fewer}")
    assert "other: 50 images, val.json" in compare(f"one={one}", f"other={other}")
    assert "Note" not in compare(f"one={one}", f"again={one}")


def test_what_was_padded_in_another_way_is_noted(sweep, compare):
    square, tight = sweep("square", [(1, 10, 5)]), sweep("tight", [(1, 10, 5)], ratio=1.5)
    note = "The sweeps have different padding or aspect ratios"
    assert note in compare(square, tight) and note in compare(f"a={square}", f"a={tight}")
    assert note not in compare(tight, f"again={tight}")


def test_what_cannot_be_compared_is_said_in_a_sentence(sweep, compare, tmp_path):
    one = sweep("one", [(1, 10, float("nan"))])
    assert "Cannot read the sweep's results" in compare(str(tmp_path / "none"), fails=True)
    assert "has both gflops and segm_AP" in compare(one, "--by", "mask", fails=True)
    assert "has both latency_ms and bbox_AP" in compare(one, "--cost", "latency_ms", fails=True)
    assert "--by takes box, mask or one of" in compare(one, "--by", "AP", fails=True)
    assert "--at takes numbers" in compare(one, "--at", "1;2", fails=True)
    assert "the lowest is 1" in compare(one, "--at", "0.5", fails=True)
    assert "cannot be read: write FOLDER" in compare(f"={one}", fails=True)
    assert "cannot be read: write FOLDER" in compare(f"a={one}+", fails=True)

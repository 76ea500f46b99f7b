"""The study as a whole, with trainings that are made up."""

import csv
import sys
from functools import cache

import pytest
from PIL import Image
from research.proxy import __main__ as program
from research.proxy.gap_plot import gap_figure
from research.proxy.runs import Study
from research.proxy.variants import cost_of

# Small end, large end by seed; of the ViTs alone, the one there is.
SCORES = {
    "small_alone": {0: (30.0,), 1: (32.0,)},
    "large_alone": {0: (40.0,), 1: (41.0,)},
    "paper": {0: (25.0, 38.0), 1: (28.0, 39.0)},
    "full_rank": {0: (27.0, 38.0), 1: (31.0, 40.0)},
}


@pytest.fixture
def drawn(monkeypatch):
    """The rows of each picture."""
    rows = []

    def note(table):
        figure = gap_figure(table)
        rows.append([label.get_text() for label in figure.axes[0].get_yticklabels()])
        return figure

    monkeypatch.setattr(program, "gap_figure", note)
    return rows


@pytest.fixture
def study(root, monkeypatch, capsys, tmp_path):
    """Runs the program; returns what it prints."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(Study, "run", made_up)
    monkeypatch.setattr(program, "cost_of", lambda variant, _, max_iter: cost(variant, max_iter))

    def run(*args):
        folder = ["--folder", str(tmp_path / "study")]
        monkeypatch.setattr(sys, "argv", ["research.proxy", *args, *folder])
        program.main()
        return capsys.readouterr().out

    return run


@cache
def cost(variant, max_iter):
    """The cost of a variant, which takes half a second to count."""
    return cost_of(variant, (), max_iter)


def made_up(self, name, config, overrides, seed):
    """Rows of a sweep of three stitches, or of a ViT alone."""
    if name.startswith("pretrained_"):
        return []
    scores = SCORES[name][seed]
    if len(scores) == 1:
        cost = 0.2 if config == "small" else 0.3
        return [{"name": "baseline", "kind": "baseline", "gflops": cost, "bbox_AP": scores[0]}]
    small, large = scores
    return [
        {"name": "S", "kind": "S", "gflops": 0.21, "bbox_AP": small},
        {"name": "L", "kind": "L", "gflops": 0.3, "bbox_AP": large},
        {"name": "FS-1", "kind": "FS", "gflops": 0.25, "bbox_AP": (small + large) / 2},
    ]


def summary_of(printed):
    """The lines of the table."""
    return [line for line in printed.splitlines() if line.startswith("| ")]


def cells_of(printed):
    """The table's cells by the name of the run."""
    rows = [line.strip("|").split("|") for line in summary_of(printed)]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in rows}


def test_differences_are_taken_seed_by_seed(study):
    table = cells_of(study("--seeds", "0", "1", "--variants", "paper", "full_rank"))
    # Means 25, 28 and 27, 31; gaps -5, -4 and -3, -1; gains of 2 and 3.
    assert table["paper"][:3] == ["2", "26.50 ± 1.50", "-4.50 ± 0.50"]
    assert table["full_rank"][1] == "29.00 ± 2.00 (+2.50 ± 0.50)"
    assert table["full_rank"][2] == "-2.00 ± 1.00"
    assert table["full_rank"][4] == "-1.50 ± 0.50"
    assert table["small_alone"][1] == "31.00 ± 1.00 (+4.50 ± 0.50)"
    assert table["paper"][-1].endswith("(1.00×)")


def test_rows_and_picture_are_left_in_the_folder(study, tmp_path):
    study("--seeds", "0", "1", "--variants", "paper", "full_rank")
    with open(tmp_path / "study/study.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["run"]) for row in rows] == [
        (seed, run) for run in SCORES for seed in ("0", "1")
    ]
    assert rows[-1]["small_gap"] == "-1.0" and rows[-1]["FS"] == "35.5"
    assert Image.open(tmp_path / "study/gaps.png").width == 1280


def test_seeds_of_several_machines_are_put_together(study, tmp_path):
    variants = ["--variants", "paper", "full_rank"]
    expected = summary_of(study("--seeds", "0", "1", *variants))
    both = (tmp_path / "study/study.csv").read_text()
    study("--seeds", "1", *variants)
    elsewhere = (tmp_path / "study/study.csv").rename(tmp_path / "elsewhere.csv")
    rows = ["--rows", str(elsewhere)]
    assert summary_of(study("--seeds", "0", *variants, *rows)) == expected
    found = (tmp_path / "study/study.csv").read_text()
    assert sorted(found.splitlines()) == sorted(both.splitlines())
    # Nothing is trained: it is drawn and told again.
    again = ["--rows", str((tmp_path / "study/study.csv").rename(tmp_path / "both.csv"))]
    (tmp_path / "study/gaps.png").unlink()
    assert summary_of(study("--seeds", *again)) == expected
    assert Image.open(tmp_path / "study/gaps.png").width == 1280
    assert not (tmp_path / "study/study.csv").exists()


def test_a_vit_alone_for_longer_is_compared_with_the_same_of_the_usual_length(
    study, drawn, monkeypatch
):
    monkeypatch.setitem(SCORES, "small_alone_longer", {0: (33.0,), 1: (34.0,)})
    monkeypatch.setitem(SCORES, "large_alone_longer", {0: (43.0,), 1: (45.0,)})
    both = ("small_alone_longer", "large_alone_longer")
    cells = cells_of(study("--seeds", "0", "1", "--variants", *both))
    assert cells["small_alone_longer"][1:3] == ["33.50 ± 0.50", "+2.50 ± 0.50"]
    assert cells["large_alone_longer"][3:5] == ["44.00 ± 1.00", "+3.50 ± 0.50"]
    # Of 1.3 times the iterations; S is the cheaper.
    assert cells["large_alone"][-1].startswith("1.00 ")
    assert cells["large_alone_longer"][-1].startswith("1.30 ")
    small = float(cells["small_alone"][-1].split()[0])
    assert 0.3 < small < 0.6
    assert float(cells["small_alone_longer"][-1].split()[0]) == pytest.approx(1.3 * small, abs=0.01)
    # The picture is that of the small end.
    assert [row.split()[0] for row in drawn[0]] == ["small_alone_longer"]


def test_a_seed_twice_is_refused(study, capsys):
    with pytest.raises(SystemExit) as ended:
        study("--seeds", "1", "1")
    assert ended.value.code == 2
    assert "names one twice" in capsys.readouterr().err

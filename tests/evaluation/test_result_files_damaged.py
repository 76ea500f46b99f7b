"""Result files that are broken in any way are a sentence to all that read them."""

import json
import shutil
from pathlib import Path

import pytest
from in_process import run_main, run_program

from snnet_vitdet.engine.preflight import _num_rows
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import StitchTable
from snnet_vitdet.evaluation.score_curves import read_curves
from snnet_vitdet.report.training_curve import read_training

DEEP = b"[" * 100_000 + b"]" * 100_000
ROWS = [None, 5, [], {}, "x", {"stitch_id": "0"}, {"stitch_id": float("inf")}, {"rows": 3}]
CONTENTS = {
    "deep": DEEP,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "somewhat deep": b'[{"stitch_id":' + b"[" * 900 + b"]" * 900 + b"}]",
    "empty": b"",
    "no text": b"\xff\xfe\0",
    "null": b"null",
    "number": b"1e999",
    "large": b"[" + b"9" * 400 + b"]",
    **{f"row {n}": json.dumps([row]).encode() for n, row in enumerate(ROWS)},
    **{f"root {n}": json.dumps(row).encode() for n, row in enumerate(ROWS)},
}


def put(path, content):
    """Content at a path, None for a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.mkdir() if content is None else path.write_bytes(content)


@pytest.fixture
def folder(swept, tmp_path):
    """A copy of a sweep, to be damaged."""
    return Path(shutil.copytree(Path(swept.train.output_dir, "sweep"), tmp_path / "sweep"))


@pytest.mark.parametrize("content", [None, *CONTENTS.values()], ids=["folder", *CONTENTS])
@pytest.mark.parametrize(
    "name", ["stitches.json", "score_curves.json", "latency.json", "sweep.json", "metrics.json"]
)
def test_whoever_reads_it_has_a_sentence_or_goes_without(name, content, folder):
    put(folder / name, content)
    for read in (
        lambda: StitchTable.read_results(folder),
        lambda: read_curves(folder),
        lambda: StitchTable.read(folder, folder / name),
        lambda: StitchTable.read(folder),
        lambda: read_training(folder / "metrics.json"),
        lambda: _num_rows(str(folder / "stitches.json")),
    ):
        try:
            read()
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000


@pytest.mark.parametrize("name", ["stitches.json", "score_curves.json"])
@pytest.mark.parametrize("content", [None, DEEP, b"", b"[5]"], ids=["folder", "deep", "empty", "5"])
def test_programs_end_in_a_sentence(name, content, folder):
    put(folder / name, content)
    finished = run_program("tools/compare_sweeps.py", f"a={folder}", f"b={folder}")
    assert finished.code == 2 and name in finished.error
    assert "Traceback" not in finished.error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stitches.json", "score_curves.json", "sweep.json"])
def test_a_resumed_sweep_ends_in_a_sentence_before_it_scores(name, swept, trained_tiny, tmp_path):
    shutil.copytree(swept.train.output_dir, tmp_path / "out")
    low = "model.roi_heads.box_predictor.test_score_thresh=0.01"
    for content in (None, DEEP, b"", b"[]" if name == "sweep.json" else b"[5]"):
        put(tmp_path / "out" / "sweep" / name, content)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            run_main(trained_tiny(tmp_path / "out", low), "--eval-only", "--resume")

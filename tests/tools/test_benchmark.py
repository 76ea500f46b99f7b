import csv
import json
import sys

import pytest
from PIL import Image
from tools import benchmark

pytestmark = pytest.mark.slow


def test_every_part_is_measured_and_written(monkeypatch, tiny_overrides, tmp_path, capsys, root):
    monkeypatch.chdir(root)
    options = ["--device", "cpu", "--repeats", "1", "--warmup", "0", "--stitches", "S,FS-2"]
    monkeypatch.setattr(
        sys, "argv", ["benchmark.py", *options, "--output", str(tmp_path), *tiny_overrides]
    )
    benchmark.main()
    printed = capsys.readouterr().out
    assert "2 stitches in one pass" in printed and f"Results in {tmp_path}" in printed
    with open(tmp_path / "benchmark.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    facts = json.loads((tmp_path / "benchmark.json").read_text())
    assert len(rows) == len(facts["rows"]) == 12 + 4 + 4 + 2
    by_name = {(row["what"], row["network"]): row for row in rows}
    step = by_name["training", "stitch FS-2"]
    large = by_name["training", "detectron2 ViTDet large"]
    ratio = float(step["median_s"]) / float(large["median_s"])
    assert float(step["over_detectron2"]) == pytest.approx(ratio)
    assert float(step["gflops"]) > float(by_name["training", "stitch S"]["gflops"])
    assert float(step["kept_mib"]) > 0 and step["peak_mib"] == ""
    block = by_name["block", "stitched large window without relative positions"]
    other = by_name["block", "detectron2 large window"]
    ratio = float(block["median_s"]) / float(other["median_s"])
    assert float(block["over_detectron2"]) == pytest.approx(ratio)
    assert by_name["sweep", "2 stitches separately"]["over_detectron2"] == "1.0"
    with Image.open(tmp_path / "benchmark.png") as picture:
        assert picture.width == 1280


def test_an_unknown_stitch_is_refused(monkeypatch, capsys, root):
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--device", "cpu", "--stitches", "99"])
    with pytest.raises(SystemExit) as exit_:
        benchmark.main()
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err

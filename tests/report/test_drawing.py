"""What only draws ends no program: results are there first, and the cause is told."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest
from in_process import ROOT, run_main, run_program

from snnet_vitdet import report, sweep_run
from snnet_vitdet.deploy import sweep_report
from snnet_vitdet.errors import InputError
from snnet_vitdet.report import drawing


def fails(*_, **__):
    raise ZeroDivisionError("no width is left")


def exits(*_, **__):
    sys.exit(4)


def test_whatever_goes_wrong_is_a_sentence_with_its_cause():
    says = r"^a\.png cannot be made \(ZeroDivisionError: no width"
    with pytest.raises(InputError, match=says), drawing("a.png"):
        fails()


def test_a_library_that_would_end_the_program_is_a_sentence_and_an_interruption_stays_one():
    says = r"^a\.png cannot be made \(SystemExit: 3\)"
    with pytest.raises(InputError, match=says), drawing("a.png"):
        raise SystemExit(3)
    with pytest.raises(KeyboardInterrupt), drawing("a.png"):
        raise KeyboardInterrupt


def test_a_screen_that_is_none_ends_no_program():
    code = (
        "import train_net; from snnet_vitdet.report import plot_pareto; print(plot_pareto.__name__)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "MPLBACKEND": "nix"},
        capture_output=True,
        text=True,
    )
    assert finished.stdout == "plot_pareto\n", finished.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "says"),
    [
        (sweep_run, "plot_pareto", "There is no picture: .*pareto.png cannot be made"),
        (sweep_report, "sample_detections", "The report has no sample detections: .*no width"),
        (sweep_report, "read_training", "There is no report: report.html cannot be made"),
        (sweep_report, "write_report", "There is no report: report.html cannot be made"),
        (sweep_report, "_facts", "There is no report: report.html cannot be made"),
    ],
)
def test_a_sweep_keeps_its_rows_whatever_cannot_be_drawn(
    module, name, says, trained_tiny, tmp_path, monkeypatch, restored_logging, caplog
):
    monkeypatch.setattr(module, name, fails)
    logging.getLogger("snnet_vitdet").propagate = True
    with caplog.at_level(logging.INFO, logger="snnet_vitdet"):
        run_main(trained_tiny(tmp_path, "sweep.stitch_ids=[S]"), "--eval-only")
    log = (tmp_path / "sweep/log.txt").read_text(encoding="utf-8")
    assert "ZeroDivisionError" in log and "no width is left" in log
    assert re.search(says, log)
    assert "Results in" in log
    assert len(json.loads((tmp_path / "sweep/stitches.json").read_text(encoding="utf-8"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name"), [(sweep_run, "plot_pareto"), (sweep_report, "write_report")]
)
def test_a_library_that_exits_does_not_end_a_sweep(
    module, name, trained_tiny, tmp_path, monkeypatch, restored_logging
):
    monkeypatch.setattr(module, name, exits)
    run_main(trained_tiny(tmp_path, "sweep.stitch_ids=[S]"), "--eval-only")
    assert "cannot be made (SystemExit: 4)" in (tmp_path / "sweep/log.txt").read_text()
    assert len(json.loads((tmp_path / "sweep/stitches.json").read_bytes())) == 1


def test_a_comparison_is_printed_before_its_picture_fails(swept, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "plot_comparison", fails)
    folder, picture = swept.train.output_dir, str(tmp_path / "a.png")
    done = run_program("tools/compare_sweeps.py", folder, f"other={folder}", "--output", picture)
    assert done.code == 2
    assert "All budgets from" in done.printed
    assert done.error.strip().endswith("the results are not touched by it")
    assert "Traceback" not in done.error and "no width is left" in done.error

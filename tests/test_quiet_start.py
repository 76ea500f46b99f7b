"""What libraries say at every start, and nobody can change, is not on the screen."""

from pathlib import Path

import pytest
from runs import finish, start, start_program


@pytest.mark.slow
def test_programs_write_nothing_to_their_error_output(tiny_overrides, tiny_scenes, tmp_path):
    output = f"train.output_dir={tmp_path / 'output'}"
    short = ["train.max_iter=1", "train.eval_stitches=[0]", "init.num_images=1"]
    code, _, error = finish(start(*tiny_overrides, output, *short))
    assert (code, error) == (0, "")
    # A sweep, which writes its progress on the standard output.
    code, _, error = finish(start("--eval-only", *tiny_overrides, output, "sweep.stitch_ids=[0]"))
    assert (code, error) == (0, "")
    options = ["--config-file", tmp_path / "output/config.yaml", "--output", tmp_path / "found"]
    images = Path(tiny_scenes.test_images)
    code, printed, error = finish(start_program("tools/predict.py", images, *options))
    assert code == 0
    assert "is_fx_tracing" not in printed + error and "deprecated" not in printed + error

"""What a prediction in a large photograph takes, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PROGRAM = Path(__file__).parent / "predict_program.py"
WIDTH, HEIGHT = 8000, 6000
MOST = 200e6 + 3 * (3 * WIDTH * HEIGHT)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """48 megapixels."""
    path = tmp_path_factory.mktemp("large") / "image.jpg"
    Image.radial_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB").save(path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak is Linux's")
@pytest.mark.parametrize(
    ("what", "threshold", "count"),
    [("detect", "1", 0), ("write", "0", 20), ("show", "0", 4)],
)
def test_a_prediction_takes_200_mb_and_three_times_the_image(photograph, what, threshold, count):
    done = subprocess.run(
        [sys.executable, PROGRAM, photograph, threshold, what], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, taken = map(int, done.stdout.split())
    assert found == count
    assert taken < MOST, f"{taken / 1e6:.0f} MB"

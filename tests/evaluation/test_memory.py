import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("simulated_sweep.py")
NUM_IMAGES, NUM_STITCHES, NUM_DETECTIONS = 5000, 20, 5


def simulate(*args):
    process = subprocess.run(
        [sys.executable, PROGRAM, *map(str, args)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_memory_of_a_sweep_on_5000_images_is_that_of_one_stitch(tmp_path):
    """Of 20 stitches with 5 detections in each image; 2 of them are scored."""
    simulate(tmp_path, "draw", NUM_IMAGES)
    peaks = json.loads(simulate(tmp_path, "sweep", NUM_STITCHES, NUM_DETECTIONS, 2))
    mib = 2**20
    # All are too many to be kept: packed, they are some 400 bytes each; as dictionaries, 1,000.
    assert peaks["on_disk"] > 200 * mib
    # 50 images are a hundredth of that, packed and once more when they are put together; the rest
    # is what the drawing and the allocator need.
    assert peaks["packed"] - peaks["before"] < 100 * mib
    # faster-coco-eval keeps about 200 bytes for each of 5,000 images, 80 categories and 4 ranges
    # of sizes, some 300 MiB, and Python about as much for the objects, their masks and overlaps.
    first, second = peaks["scored"]
    assert first - peaks["before"] < 900 * mib
    # Nothing of a stitch is kept, up to what the allocator does not reuse at once.
    assert second - first < 100 * mib

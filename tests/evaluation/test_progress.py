"""The line of the log that says how far a sweep is and what bounds it."""

import time

import pytest

from snnet_vitdet.evaluation.progress import Progress


@pytest.fixture
def wait(monkeypatch):
    """A clock that goes on when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_all_time_is_time_of_a_part(wait):
    progress = Progress(total=500)
    for reading, detecting, writing in ((2, 3, 0), (0, 4, 1)):
        wait(reading)
        progress.lap("reading images")
        wait(detecting)
        progress.lap("the detector")
        wait(writing)
        progress.lap("writing detections")
        progress.count += 4
    assert str(progress) == (
        "8 of 500 images, 1.25 s an image for all, ETA 0:10:15; "
        "the detector 70 %, reading images 20 %, writing detections 10 %"
    )


def test_images_from_before_took_no_time(wait):
    progress = Progress(total=500, before=490)
    wait(3)
    progress.lap("the detector")
    progress.count += 1
    assert str(progress).startswith("491 of 500 images, 3.00 s an image for all, ETA 0:00:27;")

"""Detections written by a process of its own, which may fail or be killed."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import writer as writer_module
from snnet_vitdet.evaluation.detections import Detections, DetectionStore
from snnet_vitdet.evaluation.writer import DetectionWriter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the changes are to be forked")


def detections(image_id):
    """Of two stitches."""
    return [
        Detections(
            image_id,
            [point],
            boxes=np.full((2, 4), image_id, np.float32),
            scores=np.full(2, 0.5, np.float32),
            classes=np.arange(2),
            places=np.arange(2)[:, None],
        )
        for point in ("S", "L")
    ]


@pytest.fixture
def store(tmp_path):
    store = DetectionStore(tmp_path / "detections", images_per_file=2)
    store.open({}, ["S", "L"])
    return store


@pytest.fixture
def on_image(monkeypatch):
    """Lets something happen in the other process instead of adding an image."""

    def change(image_id, happens):
        add = DetectionStore.add

        def changed(self, batch):
            return happens() if batch[0].image_id == image_id else add(self, batch)

        monkeypatch.setattr(DetectionStore, "add", changed)

    return change


def images_written(store):
    return DetectionStore(store.folder).image_ids()


def test_files_are_those_of_the_store_itself(store, tmp_path):
    direct = DetectionStore(tmp_path / "direct", images_per_file=2)
    with DetectionWriter(store) as writer:
        for image_id in range(1, 20):
            writer.add(detections(image_id))
            direct.add(detections(image_id))
        writer.flush()
    direct.flush()
    assert images_written(store) == list(range(1, 20))
    files = sorted(direct.folder.glob("*.npz"))
    assert len(files) == 10
    assert [f.read_bytes() for f in files] == [
        (store.folder / file.name).read_bytes() for file in files
    ]
    assert not multiprocessing.active_children()


def test_without_detections_nothing_starts_and_nothing_is_written(store, monkeypatch):
    monkeypatch.setattr(writer_module, "_start", None)
    with DetectionWriter(store):
        pass
    assert images_written(store) == []


def test_left_by_an_error_it_writes_full_files_only_and_ends(store):
    with pytest.raises(RuntimeError, match="stopped"), DetectionWriter(store) as writer:
        for image_id in range(1, 6):
            writer.add(detections(image_id))
        raise RuntimeError("stopped")
    assert images_written(store) == [1, 2, 3, 4]
    assert not multiprocessing.active_children()


def test_a_full_disk_is_the_error_that_it_is_without_another_process(store, monkeypatch):
    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="No space left") as told, DetectionWriter(store) as writer:
        writer.add(detections(1))
        writer.flush()
    store.add(detections(1))
    with pytest.raises(InputError) as directly:
        store.flush()
    assert str(told.value) == str(directly.value)


def test_an_error_is_raised_with_its_place_and_nothing_is_written_after_it(store, on_image):
    """The images after it would otherwise be taken for those before it when it is resumed."""

    def spoil():
        raise ZeroDivisionError("in the middle")

    on_image(3, spoil)
    with pytest.raises(ZeroDivisionError) as told, DetectionWriter(store) as writer:
        for image_id in range(1, 50):
            writer.add(detections(image_id))
        pytest.fail("it went on")
    assert str(told.value) == "in the middle"
    assert "in spoil" in "".join(traceback.format_exception(told.value))
    assert images_written(store) == [1, 2]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("at", ["add", "flush"])
def test_a_killed_process_is_noticed_and_named(at, store, on_image):
    on_image(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
    killed = pytest.raises(InputError, match="writes the detections was killed.*with --resume")
    with killed, DetectionWriter(store) as writer:
        for image_id in range(1, 4 if at == "flush" else 1000):
            writer.add(detections(image_id))
        writer.flush()
        pytest.fail("it went on")
    assert images_written(store) == [1, 2]
    assert not multiprocessing.active_children()


def test_detection_waits_for_a_writer_that_is_slower(store, monkeypatch):
    """Otherwise what waits would fill the memory."""
    waiting = []
    add = DetectionStore.add

    def slowly(self, batch):
        time.sleep(0.02)
        add(self, batch)

    monkeypatch.setattr(DetectionStore, "add", slowly)
    with DetectionWriter(store) as writer:
        for image_id in range(1, 20):
            writer.add(detections(image_id))
            waiting.append(sum(not future.done() for future in writer._waiting))
        writer.flush()
    assert max(waiting) == writer_module._BATCHES_WAITING
    assert images_written(store) == list(range(1, 20))


PROGRAM = """
import os, sys, time
from snnet_vitdet.evaluation import detections
from snnet_vitdet.evaluation.writer import DetectionWriter

detections.DetectionStore.add = lambda self, batch: print(os.getpid(), flush=True)
with DetectionWriter(detections.DetectionStore(sys.argv[1])) as writer:
    writer.add([])
    time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_its_parent(sent, tmp_path):
    """Terminals and schedulers send a signal to all processes."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        writer = Path("/proc", process.stdout.readline().strip())
        assert writer.exists()
        (os.kill if sent == signal.SIGKILL else os.killpg)(process.pid, sent)
        process.communicate(timeout=60)
        deadline = time.monotonic() + 60
        while writer.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not writer.exists()
    finally:
        process.kill()

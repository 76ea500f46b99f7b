"""One predictor for several threads, and for other processes."""

import multiprocessing
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from detectron2.config import instantiate

from snnet_vitdet import Predictor, StitchTable
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import ScoreCurve, StitchResult

NUM_THREADS = 8


@pytest.fixture(scope="module")
def predictor(tiny_config):
    """A predictor with random weights; each stitch finds something else."""
    torch.manual_seed(1)
    few = "model.roi_heads.box_predictor.test_topk_per_image=5"
    config = tiny_config("model.roi_heads.num_classes=3", few)
    model = instantiate(config.model)
    table = StitchTable()
    for stitch in model.backbone.net.space:
        # The largest F1 is at 0.01 times the id: all detections from there on are right.
        shown = tuple(9 if i <= stitch.id else 5 for i in range(101))
        table.put(
            StitchResult(stitch.id, stitch.name, stitch.kind, stitch.cuts, 1, 1, {"bbox_AP": 1}),
            ScoreCurve(stitch.name, 9, shown, shown),
        )
    return Predictor.from_model(
        model,
        ["a", "b", "c"],
        config.dataloader.test.mapper,
        table=table,
        device="cpu",
    )


@pytest.fixture
def images():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (60, 60 + i, 3), dtype=np.uint8) for i in range(3)]


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for name in ("scores", "pred_classes"):
        assert torch.equal(found.get(name), expected.get(name))
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_masks, expected.pred_masks)
    assert found.class_names.tolist() == expected.class_names.tolist()


def one_by_one(predictor, images):
    expected = {}
    for stitch in predictor.stitches:
        predictor.set_stitch(stitch.id)
        for index, image in enumerate(images):
            expected[stitch.name, index] = predictor(image)
    predictor.set_stitch("L")
    scores = {found.scores[0].item() for found in expected.values()}
    assert len(scores) == len(expected)
    return expected


def test_a_stitch_for_one_call_leaves_the_one_in_effect(predictor, images):
    expected = one_by_one(predictor, images)
    for stitch in predictor.stitches:
        for given in (stitch.id, stitch.name):
            assert_same(predictor(images[0], stitch=given), expected[stitch.name, 0])
            assert predictor.stitch.name == "L"
        several = predictor(images, stitch=stitch.name)
        streamed = predictor.stream(images, stitch=stitch.name)
        for index, found in enumerate(zip(several, streamed, strict=True)):
            for each in found:
                assert_same(each, expected[stitch.name, index])
    assert_same(predictor(images[0]), expected["L", 0])
    with pytest.raises(InputError, match="no stitch 'FS-99'"):
        predictor(images[0], stitch="FS-99")


def test_a_stitch_for_one_call_has_its_own_threshold(predictor, images):
    try:
        assert predictor.set_score_threshold("f1") == pytest.approx(0.01)
        every = predictor.stitches[12]
        shown = predictor(images[0], stitch=every.id)
        assert predictor.score_threshold == pytest.approx(0.01)
        predictor.set_score_threshold(0.0)
        expected = predictor(images[0], stitch=every.id)
        assert_same(shown, expected[expected.scores >= 0.12])
    finally:
        predictor.set_score_threshold(0.0)


def test_8_threads_get_what_one_gets(predictor, images):
    """While another one changes the stitch and the threshold in effect all the time."""
    expected = one_by_one(predictor, images)
    work = [key for key in expected for _ in range(3)]
    random.Random(0).shuffle(work)
    done = threading.Event()

    def disturb():
        while not done.is_set():
            for stitch in predictor.stitches:
                predictor.set_stitch(stitch.id)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            found = list(pool.map(lambda key: predictor(images[key[1]], stitch=key[0]), work))
    finally:
        done.set()
        disturber.join()
        predictor.set_stitch("L")
    for key, each in zip(work, found, strict=True):
        assert_same(each, expected[key])


def _detect(predictor, image, stitch):
    return predictor(image, stitch=stitch), predictor.stitch.name


@pytest.mark.slow
def test_a_spawned_process_gets_the_predictor(predictor, images):
    expected = one_by_one(predictor, images[:1])
    torch.multiprocessing.set_sharing_strategy("file_system")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for stitch in ("S", "FS-2"):
            found, in_effect = pool.apply(_detect, (predictor, images[0], stitch))
            assert_same(found, expected[stitch, 0])
            assert in_effect == "L"
    assert_same(predictor(images[0]), expected["L", 0])

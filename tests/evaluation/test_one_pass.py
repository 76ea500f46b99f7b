"""All stitches in one pass over the images, as train_net.py --eval-only runs it."""

import csv
import functools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import train_net
from detection_arrays import records_of
from detectron2.config import instantiate
from detectron2.engine import default_argument_parser
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNN

from snnet_vitdet.engine import StrictCheckpointer, launch_here
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import CocoScorer, one_pass
from snnet_vitdet.evaluation.detections import DetectionStore
from snnet_vitdet.evaluation.one_pass import batches_from, detect, fixed_subset
from snnet_vitdet.evaluation.results import METRICS
from snnet_vitdet.modeling import anchor_alone, find_stitched_vit
from snnet_vitdet.stitching import PrefixTree

NUM_IMAGES, NUM_STITCHES = 8, 14
FILES = ("stitches.csv", "stitches.json")


def run(config, *flags):
    """A sweep inside this process."""
    train_net.main(default_argument_parser().parse_args(["--eval-only", *flags]), config)


def rows_of(output, folder="sweep"):
    return json.loads((output / folder / "stitches.json").read_text())


def files_of(output, folder="sweep"):
    return [(output / folder / name).read_bytes() for name in FILES]


def assert_same_rows(first, second, tolerance=1e-9):
    """The same to rounding far below what can be read from an AP."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if key in METRICS and value is not None:
                assert value == pytest.approx(other[key], rel=0, abs=tolerance), key
            else:
                assert value == other[key], key


def assert_worth_comparing(rows):
    assert sum(row["bbox_AP"] > 1 for row in rows) >= 7
    assert len({row["bbox_AP"] for row in rows}) >= 7
    assert len({row["segm_AP"] for row in rows}) >= 4


@pytest.fixture
def make_config(trained_tiny, tmp_path, restored_logging):
    """The config of a sweep into the test's folder, scored in the process that `watch` sees."""
    return functools.partial(trained_tiny, tmp_path, "sweep.scoring_workers=1")


@pytest.fixture(scope="module")
def uninterrupted(trained_tiny, tmp_path_factory, restored_logging):
    """The folder of a sweep of all stitches on all images."""
    output = tmp_path_factory.mktemp("uninterrupted")
    run(trained_tiny(output))
    return output


@pytest.fixture
def small_files(monkeypatch):
    """Has detections written after every second image instead of every fiftieth."""
    store = functools.partial(DetectionStore, images_per_file=2)
    monkeypatch.setattr(one_pass, "DetectionStore", store)


@pytest.fixture
def watch(monkeypatch):
    """Counts images that are detected in and stitches that are scored; fails at one of them."""

    class Watch:
        image_ids, scored, stop_at_image, stop_at_score = [], 0, None, None

        def restart(self):
            self.image_ids, self.scored = [], 0
            self.stop_at_image = self.stop_at_score = None

    watch, score = Watch(), CocoScorer.score

    def detect_and_count(model, batch, tree, counts):
        watch.image_ids = [*watch.image_ids, *(sample["image_id"] for sample in batch)]
        for count, found in enumerate(detect(model, batch, tree, counts)):
            # In the middle of an image: a stitch has seen it, and of two at least one is to come.
            if len(watch.image_ids) == watch.stop_at_image and count == 1:
                raise RuntimeError("stopped")
            yield found

    def score_and_count(*args):
        watch.scored += 1
        if watch.scored == watch.stop_at_score:
            raise RuntimeError("stopped")
        return score(*args)

    monkeypatch.setattr(one_pass, "detect", detect_and_count)
    monkeypatch.setattr(CocoScorer, "score", score_and_count)
    return watch


# -------------------------------------------------------------------------- one pass and separate


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["sweep.batch_size=3"]], ids=["one image", "batches"])
def test_rows_are_those_of_separate_evaluations(
    overrides, make_config, trained_tiny, tmp_path, small_files
):
    run(make_config(*overrides))
    run(trained_tiny(tmp_path / "separate", *overrides, "sweep.mode=separate"))
    rows = rows_of(tmp_path)
    assert_same_rows(rows, rows_of(tmp_path / "separate"))
    assert_worth_comparing(rows)
    assert [row["stitch_id"] for row in rows] == list(range(NUM_STITCHES))
    assert {(row["iteration"], row["num_images"]) for row in rows} == {(400, NUM_IMAGES)}
    assert {"pareto.png", "stitches.csv", "stitches.json", "sweep.json"} <= set(
        os.listdir(tmp_path / "sweep")
    )
    assert not list(tmp_path.rglob("detections"))


@pytest.mark.slow
def test_the_log_says_how_far_it_is_and_what_bounds_it(uninterrupted):
    log = (uninterrupted / "sweep" / "log.txt").read_text()
    parts = r"the detector \d+ %(, (reading images|writing detections) \d+ %){2}"
    assert re.search(rf"8 of 8 images, [\d.]+ s an image for all, ETA 0:00:00; {parts}\n", log)


def load(config):
    model = instantiate(config.model).eval()
    StrictCheckpointer(model).load(config.train.init_checkpoint)
    return model


@pytest.mark.slow
@torch.no_grad()
def test_detections_are_bitwise_those_of_the_model_with_the_stitch_alone(make_config):
    config = make_config("model.roi_heads.box_predictor.test_score_thresh=0.01")
    model = load(config)
    samples = [sample for batch in instantiate(config.dataloader.test) for sample in batch]
    # The images have several sizes, and are resized back to them.
    batch = samples[:3]
    batch[1] = {**batch[1], "image": batch[1]["image"][:, :48, :40], "height": 77, "width": 91}
    stitches = list(model.backbone.net.space)
    counts = set()
    for images in (batch, batch[1:2]):
        found = {
            stitch.id: instances
            for stitch, instances in detect(model, images, PrefixTree(stitches))
        }
        for stitch in stitches:
            with model.backbone.net.using_stitch(stitch.id):
                alone = [output["instances"] for output in model(images)]
            for one, other in zip(found[stitch.id], alone, strict=True):
                assert one.image_size == other.image_size
                # Numbers and masks, without loss: see the tests of RLE.
                assert records_of(one, 7) == instances_to_coco_json(other, 7)
                fields, expected = one.get_fields(), other.get_fields()
                assert fields.pop("places").tolist() == [[row] for row in range(len(one))]
                assert torch.equal(fields.pop("pred_boxes").tensor, expected["pred_boxes"].tensor)
                assert len(fields.pop("mask_runs")) == len(expected["pred_masks"])
                assert fields.keys() == {"scores", "pred_classes"}
                for name, value in fields.items():
                    assert torch.equal(value, expected[name]), name
            counts.add(tuple(map(len, alone)))
    assert len(counts) > 5 and max(map(max, counts)) > 10


@pytest.mark.slow
def test_models_that_cannot_be_taken_apart_are_refused(make_config):
    class Detector(GeneralizedRCNN):
        """It might infer in another way."""

    config = make_config()
    config.model._target_ = Detector
    model = instantiate(config.model).eval()
    tree = PrefixTree(find_stitched_vit(model).space)
    with pytest.raises(InputError, match="not for Detector: set sweep.mode=separate"):
        next(detect(model, [], tree))


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(make_config, trained_tiny, tmp_path, monkeypatch):
    """A subset first, which two processes share unevenly; each scores in two of its own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    changes = ("sweep.subset=5", "sweep.stitch_ids='anchors,FS,SF-2'")
    run(trained_tiny(tmp_path / "one", *changes))
    args = default_argument_parser().parse_args(["--eval-only", "--num-gpus", "2"])
    config = trained_tiny(tmp_path / "two", *changes, "sweep.scoring_workers=2")
    launch_here(run_one_of_two, 2, args, config)
    rows = rows_of(tmp_path / "one")
    assert {row["num_images"] for row in rows} == {5, NUM_IMAGES}
    assert_same_rows(rows, rows_of(tmp_path / "two"))
    assert_same_rows(
        rows_of(tmp_path / "one", "sweep/subset"), rows_of(tmp_path / "two", "sweep/subset")
    )
    assert len({row["bbox_AP"] for row in rows}) > 3
    assert not list(tmp_path.rglob("detections"))


def run_one_of_two(args, config):
    torch.set_num_threads(1)
    train_net.main(args, config)


@pytest.mark.slow
def test_lower_precision_runs_and_stays_near(make_config, uninterrupted, tmp_path):
    run(make_config("sweep.precision=bfloat16"))
    rows, exact = rows_of(tmp_path), rows_of(uninterrupted)
    differences = [
        abs(one["bbox_AP"] - other["bbox_AP"]) for one, other in zip(rows, exact, strict=True)
    ]
    # In another precision, indeed.
    assert max(differences) > 0
    best = max(row["bbox_AP"] for row in exact)
    assert sum(differences) / len(differences) < 0.2 * best


@pytest.mark.slow
def test_detector_without_stitches_is_evaluated_alone(make_config, tmp_path):
    config = make_config()
    config.model = anchor_alone(config.model, "large")
    # Its learning rates are those of two anchors.
    del config.optimizer
    model = instantiate(config.model)
    torch.save({"model": model.state_dict()}, tmp_path / "single.pth")
    config.train.init_checkpoint = str(tmp_path / "single.pth")
    run(config)
    (row,) = rows_of(tmp_path)
    assert (row["name"], row["num_images"], row["on_pareto"]) == ("baseline", NUM_IMAGES, True)


# --------------------------------------------------------------------------- interrupted, resumed


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3])
def test_interrupted_while_detecting_it_goes_on_from_what_is_there(
    batch_size, make_config, uninterrupted, tmp_path, small_files, watch
):
    config = make_config(f"sweep.batch_size={batch_size}")
    watch.stop_at_image = 6
    with pytest.raises(RuntimeError, match="stopped"):
        run(config)
    assert rows_of(tmp_path) == []
    files = list((tmp_path / "sweep" / "detections").glob("*.npz"))
    done, num_files = {1: (4, 2), 3: (3, 1)}[batch_size]
    assert len(files) == num_files
    first = watch.image_ids[:done]
    watch.restart()
    run(config, "--resume")
    assert len(watch.image_ids) == NUM_IMAGES - done
    assert len({*first, *watch.image_ids}) == NUM_IMAGES
    assert watch.scored == NUM_STITCHES
    if batch_size == 1:
        assert files_of(tmp_path) == files_of(uninterrupted)
    else:
        assert_same_rows(rows_of(tmp_path), rows_of(uninterrupted), tolerance=1e-4)
    assert not (tmp_path / "sweep" / "detections").exists()


@pytest.mark.slow
def test_interrupted_while_scoring_only_the_other_stitches_are_scored(
    make_config, uninterrupted, tmp_path, watch
):
    watch.stop_at_score = 5
    with pytest.raises(RuntimeError, match="stopped"):
        run(make_config())
    assert [row["stitch_id"] for row in rows_of(tmp_path)] == [0, 1, 2, 3]
    watch.restart()
    run(make_config(), "--resume")
    assert (watch.image_ids, watch.scored) == ([], NUM_STITCHES - 4)
    assert files_of(tmp_path) == files_of(uninterrupted)
    assert not (tmp_path / "sweep" / "detections").exists()


@pytest.mark.slow
def test_resumed_with_fewer_stitches_only_those_are_scored_and_with_more_all_is_detected(
    make_config, tmp_path, watch
):
    watch.stop_at_score = 1
    with pytest.raises(RuntimeError):
        run(make_config("sweep.stitch_ids=0-3"))
    watch.restart()
    watch.stop_at_score = 2
    with pytest.raises(RuntimeError):
        run(make_config("sweep.stitch_ids=[1,2]"), "--resume")
    assert watch.image_ids == []
    assert [row["stitch_id"] for row in rows_of(tmp_path)] == [1]
    watch.restart()
    run(make_config("sweep.stitch_ids=0-4"), "--resume")
    assert (len(watch.image_ids), watch.scored) == (NUM_IMAGES, 4)
    assert [row["stitch_id"] for row in rows_of(tmp_path)] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_resumed_with_other_weights_it_is_refused(make_config, tmp_path, watch):
    weights = tmp_path / "weights.pth"
    shutil.copy(make_config().train.init_checkpoint, weights)
    change = f"train.init_checkpoint={weights}"
    watch.stop_at_image = 3
    with pytest.raises(RuntimeError):
        run(make_config(change))
    with pytest.raises(InputError, match="precision: float32 then, bfloat16 now"):
        run(make_config(change, "sweep.precision=bfloat16"), "--resume")
    state = torch.load(weights)
    state["model"]["backbone.net.small.patch_embed.proj.bias"] += 1
    torch.save(state, weights)
    with pytest.raises(InputError, match="checkpoint_sha256: .* then, .* now"):
        run(make_config(change), "--resume")


@pytest.mark.slow
def test_detections_that_other_machines_keep_to_themselves_are_missed(make_config, monkeypatch):
    images = lambda _, rank=None: [] if rank == 0 else list(range(NUM_IMAGES - 1))  # noqa: E731
    monkeypatch.setattr(DetectionStore, "image_ids", images)
    with pytest.raises(InputError, match="7 of 8 images: all machines have to share this folder"):
        run(make_config("sweep.stitch_ids=[1]"))


# -------------------------------------------------------------------------------------- two stages


@pytest.mark.slow
def test_two_stages_score_the_frontier_of_a_subset_on_all_images(
    make_config, uninterrupted, tmp_path, watch
):
    run(make_config("sweep.subset=3"))
    first, rows = rows_of(tmp_path, "sweep/subset"), rows_of(tmp_path)
    ids = watch.image_ids
    assert (len(ids), len(set(ids[:3])), sorted(ids[:3]) == ids[:3]) == (3 + NUM_IMAGES, 3, True)
    assert {row["num_images"] for row in first} == {3}
    assert [row["stitch_id"] for row in first] == list(range(NUM_STITCHES))
    chosen = {row["stitch_id"] for row in rows if row["num_images"] == NUM_IMAGES}
    on_front = {row["stitch_id"] for row in first if row["on_pareto"]}
    assert {0, 1} | on_front <= chosen and len(chosen) < NUM_STITCHES
    assert watch.scored == NUM_STITCHES + len(chosen)
    # What is of all images is what a sweep of all images gives; the rest is of the subset.
    scores = ("num_images", *METRICS)
    for row, of_first, of_all in zip(rows, first, rows_of(uninterrupted), strict=True):
        expected = of_all if row["stitch_id"] in chosen else of_first
        assert [row[key] for key in scores] == [expected[key] for key in scores]
        assert not row["on_pareto"] or row["stitch_id"] in chosen
    with open(tmp_path / "sweep" / "stitches.csv", newline="") as file:
        numbers = [int(row["num_images"]) for row in csv.DictReader(file)]
    assert numbers == [row["num_images"] for row in rows]
    assert any(row["on_pareto"] for row in rows)
    assert not list(tmp_path.rglob("detections"))

    # Finished, it has nothing to do; resumed on all images, what is of the subset alone.
    before = files_of(tmp_path)
    watch.restart()
    run(make_config("sweep.subset=3"), "--resume")
    assert (watch.image_ids, watch.scored) == ([], 0)
    assert files_of(tmp_path) == before
    run(make_config(), "--resume")
    assert (len(watch.image_ids), watch.scored) == (NUM_IMAGES, NUM_STITCHES - len(chosen))
    assert files_of(tmp_path) == files_of(uninterrupted)
    # And back: all is there but the first stage on another subset.
    watch.restart()
    run(make_config("sweep.subset=4"), "--resume")
    assert (len(watch.image_ids), watch.scored) == (4, NUM_STITCHES)
    assert files_of(tmp_path) == files_of(uninterrupted)


@pytest.mark.slow
def test_a_subset_is_scored_as_if_there_were_no_other_images(
    make_config, trained_tiny, tmp_path, watch
):
    config = make_config("sweep.subset=3", "sweep.stitch_ids=anchors")
    run(config)
    data = json.loads(Path(config.data.test_json).read_text())
    chosen = watch.image_ids[:3]
    data["images"] = [image for image in data["images"] if image["id"] in chosen]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in chosen]
    (tmp_path / "chosen.json").write_text(json.dumps(data))
    change = f"data.test_json={tmp_path / 'chosen.json'}"
    run(trained_tiny(tmp_path / "chosen", change, "sweep.stitch_ids=anchors"))
    rows = rows_of(tmp_path / "chosen")
    assert_same_rows(rows, rows_of(tmp_path, "sweep/subset"))
    assert rows[0]["bbox_AP"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("subset", [NUM_IMAGES, 1000])
def test_a_subset_of_all_images_is_one_sweep(subset, make_config, tmp_path, watch):
    run(make_config(f"sweep.subset={subset}", "sweep.stitch_ids=[1]"))
    assert (len(watch.image_ids), watch.scored) == (NUM_IMAGES, 1)
    assert not (tmp_path / "sweep" / "subset").exists()


def test_the_subset_is_always_the_same_and_in_order():
    subset = fixed_subset(5000, 500)
    assert subset == fixed_subset(5000, 500) == sorted(set(subset))
    assert len(subset) == 500 and subset[0] >= 0 and subset[-1] < 5000
    # Not those at the start: files are often sorted by what is in them.
    assert subset[250] > 2000
    assert fixed_subset(3, 10) == [0, 1, 2]


# ---------------------------------------------------------------------------------------- batches


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, index):
        return index


@pytest.fixture(params=[1, 3])
def loader(request):
    return torch.utils.data.DataLoader(Images(), batch_size=request.param, collate_fn=list)


@pytest.mark.parametrize("images", [None, [1, 2, 4, 6]])
@pytest.mark.parametrize("first", [0, 2, 4, 7])
def test_batches_of_some_images(images, first, loader):
    batches = list(batches_from(loader, images, first))
    assert [i for batch in batches for i in batch] == (images or list(range(7)))[first:]
    assert all(len(batch) == loader.batch_size for batch in batches[:-1])

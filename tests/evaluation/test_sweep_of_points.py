"""Sweeps over image sizes and numbers of proposals."""

import csv
import functools
import json
from pathlib import Path

import cv2
import pytest
import train_net
from detectron2.engine import default_argument_parser

from snnet_vitdet import StitchTable
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import one_pass
from snnet_vitdet.evaluation.detections import DetectionStore
from snnet_vitdet.evaluation.one_pass import detect
from snnet_vitdet.evaluation.results import METRICS
from snnet_vitdet.modeling import point_costs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("restored_logging")]

LOW = "model.roi_heads.box_predictor.test_score_thresh=0.01"
POINTS = ("sweep.image_sizes=[48,64]", "sweep.proposals=[20,5]")
STITCHES = "sweep.stitch_ids=[S,FS-2,SF-1]"


def run(config, *flags):
    args = default_argument_parser().parse_args(["--eval-only", *flags])
    train_net.main(args, config)


def rows_of(folder):
    return json.loads((folder / "sweep" / "stitches.json").read_text())


@pytest.fixture(scope="module")
def swept_points(trained_tiny, tmp_path_factory):
    """The config of a sweep of three stitches at two sizes with two numbers of proposals."""
    config = trained_tiny(tmp_path_factory.mktemp("points"), LOW, STITCHES, *POINTS)
    run(config)
    return config


def rows_of_config(config):
    return StitchTable.read(config.train.output_dir).rows()


def test_every_stitch_has_a_row_for_every_size_and_number(swept_points):
    rows = rows_of_config(swept_points)
    # 20 proposals of images of 64 pixels are the training's own.
    assert [row["name"] for row in rows] == [
        *("S", "S@48/5", "S@48/20", "S@64/5"),
        *("FS-2", "FS-2@48/5", "FS-2@48/20", "FS-2@64/5"),
        *("SF-1", "SF-1@48/5", "SF-1@48/20", "SF-1@64/5"),
    ]
    assert {(row["image_size"], row["num_proposals"]) for row in rows} == {
        (size, count) for size in (48, 64) for count in (5, 20)
    }
    tables = point_costs(swept_points.model, [48, 64], [5, 20])
    for row in rows:
        cost = tables[row["image_size"], row["num_proposals"]][row["stitch_id"]]
        assert row["gflops"] == cost.gflops
    assert len({row["bbox_AP"] for row in rows}) > 6
    with open(f"{swept_points.train.output_dir}/sweep/stitches.csv", encoding="utf-8") as file:
        assert [line["name"] for line in csv.DictReader(file)] == [row["name"] for row in rows]


def test_each_point_has_the_ap_that_it_has_alone(swept_points, trained_tiny, tmp_path):
    rows = {row["name"]: row for row in rows_of_config(swept_points)}
    separate = trained_tiny(tmp_path / "separate", LOW, STITCHES, *POINTS, "sweep.mode=separate")
    run(separate)
    alone = trained_tiny(
        tmp_path / "alone",
        *(LOW, STITCHES, "data.image_size=48"),
        "model.proposal_generator.post_nms_topk=[40,5]",
    )
    run(alone)
    assert len(rows_of_config(separate)) == len(rows)
    # A checkpoint is loaded whatever the size: its relative positions belong to the training's.
    renamed = [{**row, "name": f"{row['name']}@48/5"} for row in rows_of_config(alone)]
    assert len(renamed) == 3
    for row in [*rows_of_config(separate), *renamed]:
        for metric in METRICS:
            assert row[metric] == pytest.approx(rows[row["name"]][metric], abs=1e-6, nan_ok=True)
        assert row["gflops"] == rows[row["name"]]["gflops"]


def test_a_sweep_goes_on_with_more_sizes_and_keeps_its_rows(trained_tiny, tmp_path):
    config = trained_tiny(tmp_path, LOW, "sweep.stitch_ids=[S]")
    run(config)
    (first,) = rows_of(tmp_path)
    more = trained_tiny(tmp_path, LOW, "sweep.stitch_ids=[S]", "sweep.image_sizes=[64,32]")
    run(more, "--resume")
    same, other = rows_of(tmp_path)
    assert (same["name"], other["name"]) == ("S", "S@32/20")
    assert {**same, "on_pareto": True} == {**first, "on_pareto": True}


def test_an_interrupted_pass_of_any_size_is_continued(trained_tiny, tmp_path, monkeypatch):
    config = trained_tiny(tmp_path, LOW, "sweep.stitch_ids=[S]", "sweep.image_sizes=[64,32]")
    seen, stop = [], 13
    store = functools.partial(DetectionStore, images_per_file=2)
    monkeypatch.setattr(one_pass, "DetectionStore", store)

    def watched(model, batch, *arguments):
        seen.extend(sample["image_id"] for sample in batch)
        if len(seen) == stop:
            raise RuntimeError("stopped")
        yield from detect(model, batch, *arguments)

    monkeypatch.setattr(one_pass, "detect", watched)
    with pytest.raises(RuntimeError, match="stopped"):
        run(config)
    # Eight images at 64 pixels, then four of eight at 32.
    stop = None
    seen.clear()
    more = "sweep.image_sizes=[96,64,32]"
    run(trained_tiny(tmp_path, LOW, "sweep.stitch_ids=[S]", more), "--resume")
    assert len(seen) == 8 + 4
    assert not list((tmp_path / "sweep").glob("detections*"))


def test_the_best_point_within_a_budget_is_found_and_has_a_threshold(swept_points):
    table = StitchTable.read(swept_points.train.output_dir)
    cheapest = min(table, key=lambda entry: entry.gflops)
    assert cheapest.name == "S@48/5" and cheapest.curve.name == "S@48/5"
    assert table.best(max_gflops=cheapest.gflops) is not None
    assert table.best(max_gflops=cheapest.gflops).name == "S@48/5"
    assert table["S@48/5"].curve != table["S"].curve
    assert table["S"] == table[0] == table["S@64/20"] == table["0@64/20"]
    assert table["0@48/5"] == table["S@48/5"] and "S@48" not in table and "S@48/6" not in table


def test_a_subset_finds_the_points_that_are_scored_on_all_images(trained_tiny, tmp_path):
    config = trained_tiny(tmp_path, LOW, STITCHES, *POINTS, "sweep.subset=3")
    run(config)
    rows = rows_of_config(config)
    assert len(rows) == 12
    on_all = {row["name"] for row in rows if row["num_images"] == 8}
    # The trained ViT alone, and never all of the points.
    assert "S" in on_all and len(on_all) < 12


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.image_sizes=[40]", "40 is not a multiple of the patch size 16"),
        ("sweep.image_sizes=[]", "sweep.image_sizes=.* must be a list of different values"),
        ("sweep.image_sizes=[64,64]", "must be a list of different values"),
        ("sweep.image_sizes=64", "must be a list of different values"),
        ("sweep.proposals=[0]", "each a whole number of at least 1"),
        ("sweep.proposals=[5,1000000]", "each a whole number of at most 100000"),
        ("sweep.proposals=[5,201]", "the RPN gives at most 200 proposals to S"),
    ],
)
def test_impossible_points_are_refused(trained_tiny, tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        run(trained_tiny(tmp_path, LOW, override))


def test_images_that_do_not_follow_the_size_are_refused(trained_tiny, tmp_path):
    fixed = "dataloader.test.mapper.augmentations.0.short_edge_length=64"
    fixed_too = "dataloader.test.mapper.augmentations.0.max_size=64"
    config = trained_tiny(tmp_path, LOW, fixed, fixed_too, "sweep.image_sizes=[64]")
    config.sweep.image_sizes = [48]
    with pytest.raises(InputError, match="mapper.augmentations does not follow data.image_size"):
        run(config)


@pytest.fixture(scope="module")
def oblong(trained_tiny, tmp_path_factory):
    """Overrides for test images that are the upper halves of the others."""
    config = trained_tiny(tmp_path_factory.mktemp("unused"))
    folder = tmp_path_factory.mktemp("oblong")
    data = json.loads(Path(config.data.test_json).read_text())
    for record in data["images"]:
        image = cv2.imread(f"{config.data.test_images}/{record['file_name']}")
        record["height"] //= 2
        cv2.imwrite(str(folder / record["file_name"]), image[: record["height"]])
    heights = {record["id"]: record["height"] for record in data["images"]}
    data["annotations"] = [
        each
        for each in data["annotations"]
        if each["bbox"][1] + each["bbox"][3] < heights[each["image_id"]]
    ]
    # Masks belong to the whole images.
    for each in data["annotations"]:
        x, y, width, height = each["bbox"]
        each["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    (folder / "test.json").write_text(json.dumps(data))
    return (f"data.test_json={folder / 'test.json'}", f"data.test_images={folder}")


def test_tight_padding_scores_alike_in_one_pass_and_separately(trained_tiny, tmp_path, oblong):
    tight = (*oblong, LOW, STITCHES, *POINTS, "sweep.padding=tight", "sweep.aspect_ratio=2")
    one_pass = trained_tiny(tmp_path / "one", *tight)
    run(one_pass)
    separate = trained_tiny(tmp_path / "separate", *tight, "sweep.mode=separate")
    run(separate)
    square = trained_tiny(tmp_path / "square", *oblong, LOW, STITCHES, *POINTS)
    run(square)
    rows, alone, squares = map(rows_of_config, (one_pass, separate, square))
    costs = point_costs(one_pass.model, [48, 64], [5, 20], aspect_ratio=2)
    for row, other in zip(rows, alone, strict=True):
        assert row["aspect_ratio"] == other["aspect_ratio"] == 2
        assert (
            row["gflops"] == costs[row["image_size"], row["num_proposals"]][row["stitch_id"]].gflops
        )
        for metric in METRICS:
            assert row[metric] == pytest.approx(other[metric], abs=1e-6, nan_ok=True)
    assert max(row["bbox_AP"] for row in rows) > 5
    assert {row["aspect_ratio"] for row in squares} == {None}
    assert [row["name"] for row in rows] == [row["name"] for row in squares]
    assert any(a["bbox_AP"] != b["bbox_AP"] for a, b in zip(rows, squares, strict=True))
    assert all(a["gflops"] < b["gflops"] for a, b in zip(rows, squares, strict=True))


def test_square_images_score_the_same_with_tight_padding_but_rows_are_not_mixed(
    swept_points, trained_tiny, tmp_path
):
    overrides = (LOW, STITCHES, *POINTS)
    run(config := trained_tiny(tmp_path, *overrides, "sweep.padding=tight"))
    for row, other in zip(rows_of_config(config), rows_of_config(swept_points), strict=True):
        assert {m: row[m] for m in METRICS} == pytest.approx(
            {m: other[m] for m in METRICS}, abs=1e-6, nan_ok=True
        )
    for other in ((), ("sweep.padding=tight", "sweep.aspect_ratio=1.5")):
        with pytest.raises(InputError, match="other weights, data or settings"):
            run(trained_tiny(tmp_path, *overrides, *other), "--resume")

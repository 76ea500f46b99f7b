import json
import math

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import (
    BASELINE,
    ScoreCurve,
    StitchResult,
    StitchTable,
    evaluate_stitch,
    sweep,
    two_stage_sweep,
)
from snnet_vitdet.evaluation.results import COLUMNS
from snnet_vitdet.evaluation.sweep import frontier_candidates
from snnet_vitdet.modeling import AnchorViT, StitchedViT
from snnet_vitdet.stitching import Cost, OperatingPoint, Stitch, StitchingLayer

COSTS = [Cost(flops=(100 - i) * 1e9, params=(i + 1) * 1e6) for i in range(14)]


SIZE = 32


def trained(stitch):
    return OperatingPoint(stitch, SIZE, 100, is_trained=True)


def cost_of(point):
    return COSTS[point.stitch.id]


class StubDetector(nn.Module):
    """Gives a number for each image: another one with every stitch."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, batch):
        assert not self.training
        images = torch.stack([sample["image"] for sample in batch])
        return [{"score": row.abs().mean()} for row in self.backbone(images)["last_feat"]]


class MeanScore(DatasetEvaluator):
    """The mean of the numbers, squeezed into 0 to 100, as box AP."""

    def reset(self):
        self.scores = []

    def process(self, inputs, outputs):
        self.scores += [output["score"].item() for output in outputs]

    def evaluate(self):
        ap = 100 / (1 + math.exp(-sum(self.scores) / len(self.scores)))
        # As detectron2 gives them, with a per-class entry that is no column.
        return {"bbox": {"AP": ap, "APl": math.nan, "AP-nut": 1.0}, "segm": {"AP50": ap / 2}}


class Loader(list):
    """Batches of one, with the data set behind them."""

    dataset = property(lambda self: range(len(self)))


def make_anchor(width, depth):
    return AnchorViT(32, 16, width, depth, 2, layer_scale_init=None, pretrain_img_size=32)


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(0)
    return Loader([{"image": torch.randn(3, 32, 32, generator=generator)}] for _ in range(3))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = StubDetector(StitchedViT(make_anchor(8, 4), make_anchor(16, 8), lora_rank=2))
    for layer in model.modules():
        if isinstance(layer, StitchingLayer):
            nn.init.normal_(layer.lora_a)  # or merging would change nothing
    return model.train()


@pytest.fixture
def run(model, loader, tmp_path):
    """Sweeps the stub detector over some stitches into the test's folder."""

    def run(ids, make_evaluator=MeanScore, **kwargs):
        points = [trained(model.backbone.space[i]) for i in ids]
        loader_of = {SIZE: loader}.__getitem__
        return sweep(model, points, cost_of, loader_of, make_evaluator, str(tmp_path), **kwargs)

    return run


def stop_at(count):
    """Evaluators of which the one of that number, from 1 on, raises."""
    made = []

    def make():
        made.append(1)
        if len(made) == count:
            raise RuntimeError("stopped")
        return MeanScore()

    return make


def read_json(folder):
    return json.loads((folder / "stitches.json").read_text())


def score_alone(model, loader, stitch):
    """The stub's box AP with one stitch, from its features directly, LoRA not merged."""
    model.eval()
    with torch.no_grad(), model.backbone.using_stitch(stitch):
        scores = [model(batch)[0]["score"].item() for batch in loader]
    return 100 / (1 + math.exp(-sum(scores) / len(scores)))


def test_each_row_is_the_score_of_its_own_stitch(run, model, loader, tmp_path):
    ids = [0, 3, 5, 9, 13]
    table = run(ids)
    scores = {row["stitch_id"]: row["bbox_AP"] for row in table.rows()}
    assert list(scores) == ids
    assert len(set(scores.values())) == len(ids)
    for i in ids:
        # Merging changes outputs by rounding only.
        assert scores[i] == pytest.approx(score_alone(model, loader, i), rel=1e-5)


def test_lora_updates_are_merged_while_stitches_are_scored(run, model):
    layers = [module for module in model.modules() if isinstance(module, StitchingLayer)]
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(9, layer.in_features, generator=generator) for layer in layers]
    during = []

    class Look(MeanScore):
        def evaluate(self):
            during.append([layer(x) for layer, x in zip(layers, tokens, strict=True)])
            return super().evaluate()

    run([0, 5], Look)
    assert len(during) == 2
    for outputs in during:
        for layer, x, output in zip(layers, tokens, outputs, strict=True):
            # Bitwise one product with the merged matrix, which differs from two by rounding.
            expected = nn.functional.linear(x, layer.merged_weight(), layer.bias)
            assert torch.equal(output, expected)
    assert any(
        not torch.equal(layer(x), output)
        for layer, x, output in zip(layers, tokens, during[0], strict=True)
    )


def test_rows_hold_the_stitch_its_cost_and_what_the_evaluator_gave(run, model, tmp_path):
    run([9])
    (row,) = read_json(tmp_path)
    stitch = model.backbone.space[9]
    assert tuple(row) == COLUMNS
    assert (row["stitch_id"], row["name"], row["kind"]) == (9, stitch.name, stitch.kind)
    assert row["cuts"] == list(stitch.cuts)
    assert (row["gflops"], row["params_m"]) == (91.0, 10.0)
    assert row["segm_AP50"] == row["bbox_AP"] / 2
    assert row["bbox_APl"] is None
    assert row["segm_AP"] is None


def test_one_row_is_on_disk_for_every_finished_stitch(run, tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        run([1, 2, 3, 4], stop_at(3))
    assert [row["stitch_id"] for row in read_json(tmp_path)] == [1, 2]
    assert (tmp_path / "stitches.csv").read_text().count("\n") == 1 + 2


def test_resume_computes_only_what_is_missing_and_gives_the_same_files(run, model, tmp_path):
    run([1, 2, 3, 4])
    whole = [(tmp_path / f"stitches.{end}").read_bytes() for end in ("csv", "json")]
    with pytest.raises(RuntimeError):
        run([1, 2, 3, 4], stop_at(3))
    made = []
    run([1, 2, 3, 4], lambda: made.append(1) or MeanScore(), resume=True)
    assert len(made) == 2
    assert [(tmp_path / f"stitches.{end}").read_bytes() for end in ("csv", "json")] == whole


@pytest.mark.parametrize("content", ["", "stitch_id,na", None], ids=["empty", "cut", "missing"])
def test_resume_makes_the_csv_anew_that_a_kill_has_kept_from_its_last_row(content, run, tmp_path):
    run([1, 2])
    path = tmp_path / "stitches.csv"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_text(content)
    run([1, 2], resume=True)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [None, "{"])
def test_a_sweep_killed_between_its_first_two_files_is_resumed(content, run, tmp_path):
    run([1], provenance={"checkpoint": "a.pth"})
    whole = (tmp_path / "stitches.json").read_bytes()
    (tmp_path / "stitches.json").write_text("[\n\n]\n")
    (tmp_path / "sweep.json").unlink()
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    run([1], provenance={"checkpoint": "a.pth"}, resume=True)
    assert (tmp_path / "stitches.json").read_bytes() == whole


def test_resume_of_a_finished_sweep_adds_other_stitches_to_it(run, tmp_path):
    run([5])
    assert len(run([2, 5, 8], resume=True)) == 3
    assert [row["stitch_id"] for row in read_json(tmp_path)] == [2, 5, 8]


def test_without_resume_the_rows_of_an_earlier_sweep_go(run, tmp_path):
    run([1, 2], provenance={"checkpoint": "a.pth"})
    # Stopped before its own first row: a resume must not take the old ones for its own.
    with pytest.raises(RuntimeError):
        run([1, 3], stop_at(1), provenance={"checkpoint": "b.pth"})
    assert read_json(tmp_path) == []
    run([3], provenance={"checkpoint": "b.pth"}, resume=True)
    assert [row["stitch_id"] for row in read_json(tmp_path)] == [3]


def test_resume_with_other_weights_is_refused_and_says_what_differs(run):
    run([1], provenance={"checkpoint": "a.pth", "image_size": 64})
    with pytest.raises(
        InputError,
        match=r"checkpoint: a.pth then, b.pth now\): sweep anew with sweep.overwrite=True",
    ):
        run([2], provenance={"checkpoint": "b.pth", "image_size": 64}, resume=True)


@pytest.mark.parametrize("content", [None, "{"])
def test_resume_of_results_of_unknown_origin_is_refused(content, run, tmp_path):
    run([1])
    (tmp_path / "sweep.json").unlink()
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(InputError, match="sweep.json is missing or damaged"):
        run([2], resume=True)


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_it_was(interrupted, training, run, model):
    model.train(training)
    model.backbone.set_stitch("FS-2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.ones(1, 3, 32, 32)
    features = model.backbone(images)["last_feat"]
    if interrupted:
        with pytest.raises(RuntimeError, match="stopped"):
            run([0, 1, 2], stop_at(2))
    else:
        run([0, 1, 2])
    assert model.training == training
    assert model.backbone.stitch.name == "FS-2"
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    # LoRA is not merged any more: the same products in the same order, and it learns.
    again = model.backbone(images)["last_feat"]
    assert torch.equal(again, features)
    again.sum().backward()
    layer = model.backbone.stitching_layers[model.backbone.stitch.transitions[0]]
    assert layer.lora_a.grad is not None


def test_detector_without_stitches_gives_one_row(loader, tmp_path):
    torch.manual_seed(0)
    model = StubDetector(make_anchor(8, 4))
    given = ([trained(BASELINE)], lambda _: Cost(5e9, 2e6), lambda _: loader)
    table = sweep(model, *given, MeanScore, str(tmp_path))
    (row,) = table.rows()
    assert (row["stitch_id"], row["kind"], row["cuts"]) == (0, "baseline", ())
    assert (row["gflops"], row["params_m"], row["on_pareto"]) == (5.0, 2.0, True)
    results = evaluate_stitch(model, BASELINE, loader, MeanScore())
    assert results["bbox_AP"] == row["bbox_AP"]


# Two stages

NUM_IMAGES = 100
KINDS = ["S", "L", "FS", "FS", "SF", "SF"]
STITCHES = [Stitch(i, kind, () if kind in "SL" else (i,), (), ()) for i, kind in enumerate(KINDS)]


def scored(stitch_id, box, mask=math.nan, gflops=None, num_images=10):
    kind = KINDS[stitch_id]
    cuts = () if kind in "SL" else (stitch_id,)
    gflops = float(stitch_id) if gflops is None else gflops
    metrics = {"bbox_AP": box, "segm_AP": mask}
    name = "-".join([kind, *map(str, cuts)])
    return StitchResult(stitch_id, name, kind, cuts, gflops, 1.0, metrics, None, num_images)


def test_candidates_are_the_anchors_and_both_frontiers():
    results = [
        scored(0, 10, 10, gflops=5.0),  # an anchor that is beaten
        scored(1, math.nan),  # one without a score
        scored(2, 20, 5, gflops=1.0),  # the best box AP at its cost
        scored(3, 19, 6, gflops=2.0),  # the best mask AP at its cost
        scored(4, 19, 6, gflops=3.0),  # beaten in both
        scored(5, math.nan, math.nan, gflops=0.5),
    ]
    assert frontier_candidates(StitchTable(results)) == ["FS-2", "FS-3", "L", "S"]
    assert frontier_candidates(StitchTable(results[4:5])) == ["SF-4"]
    assert frontier_candidates(StitchTable(results[5:])) == []


@pytest.fixture
def run_stages(tmp_path):
    """Two stages with scores by stitch in place of a sweep's, and rows that were there before."""

    def run_stages(scores, stitch_ids, earlier=(), earlier_in_subset=()):
        calls = []

        def sweep(points, folder, subset):
            ids = [point.stitch.id for point in points]
            calls.append((ids, folder, subset))
            table = StitchTable()
            for row in earlier_in_subset if subset else earlier:
                table.put(row)
            for i in ids:
                result = scored(i, scores[i], num_images=subset or NUM_IMAGES)
                table.put(result, ScoreCurve(f"{result.num_images}", 1, (1,) * 101, (1,) * 101))
            return table

        points = [trained(STITCHES[i]) for i in stitch_ids]
        table = two_stage_sweep(sweep, points, str(tmp_path), 10)
        assert calls[0] == (list(stitch_ids), str(tmp_path / "subset"), 10)
        assert calls[1][1:] == (str(tmp_path), 0)
        assert list(StitchTable.read_results(tmp_path)) == list(table)
        # Each stitch has the curve of the images that its scores are of.
        curves = [(entry.curve.name, entry.result.num_images) for entry in table if entry.curve]
        assert curves and all(name == str(num_images) for name, num_images in curves)
        return calls[1][0], {entry.id: entry.result.num_images for entry in table}

    return run_stages


def test_the_best_of_a_subset_go_on_to_all_images(run_stages):
    chosen, num_images = run_stages([10, 11, 30, 29, 31, 28], range(6))
    assert chosen == [0, 1, 2, 4]
    assert num_images == {0: 100, 1: 100, 2: 100, 3: 10, 4: 100, 5: 10}


def test_stitches_of_an_earlier_sweep_are_not_asked_for_again(run_stages):
    """Its rows, of which one is better than all, stand in the files that are gone on with."""
    earlier = [scored(2, 99), scored(4, 50)]
    chosen, num_images = run_stages([10, 11, 0, 29, 0, 28], [0, 1, 3, 5], earlier, earlier)
    assert chosen == [0, 1, 3]
    assert num_images == {0: 100, 1: 100, 2: 10, 3: 100, 4: 10, 5: 10}


def test_what_was_scored_on_more_images_stays(run_stages):
    earlier = [scored(3, 5, num_images=NUM_IMAGES), scored(5, 5, num_images=8)]
    _, num_images = run_stages([10, 11, 30, 29, 31, 28], range(6), earlier)
    assert num_images == {0: 100, 1: 100, 2: 100, 3: 100, 4: 100, 5: 10}


def test_without_a_candidate_the_subset_is_all_there_is(run_stages):
    chosen, num_images = run_stages([0, 0, math.nan, math.nan, 0, 0], [2, 3])
    assert (chosen, num_images) == ([], {2: 10, 3: 10})

import math

import pytest

from snnet_vitdet.evaluation import ResultsTable, StitchResult, two_stage_sweep
from snnet_vitdet.evaluation.two_stage import frontier_candidates

NUM_IMAGES = 100
KINDS = ["S", "L", "FS", "FS", "SF", "SF"]


def result(stitch_id, box, mask=math.nan, gflops=None, num_images=10):
    kind = KINDS[stitch_id]
    cuts = () if kind in "SL" else (stitch_id,)
    gflops = float(stitch_id) if gflops is None else gflops
    metrics = {"bbox_AP": box, "segm_AP": mask}
    return StitchResult(stitch_id, kind, kind, cuts, gflops, 1.0, metrics, None, num_images)


def test_candidates_are_the_anchors_and_both_frontiers():
    results = [
        result(0, 10, 10, gflops=5.0),  # an anchor that is beaten
        result(1, math.nan),  # one without a score
        result(2, 20, 5, gflops=1.0),  # the best box AP at its cost
        result(3, 19, 6, gflops=2.0),  # the best mask AP at its cost
        result(4, 19, 6, gflops=3.0),  # beaten in both
        result(5, math.nan, math.nan, gflops=0.5),
    ]
    assert frontier_candidates(results) == [0, 1, 2, 3]
    assert frontier_candidates(results[4:5]) == [4]
    assert frontier_candidates(iter(results[5:])) == []


@pytest.fixture
def run(tmp_path):
    """Two stages with scores by stitch in place of a sweep's, and rows that were there before."""

    def run(scores, stitch_ids, earlier=(), earlier_in_subset=()):
        calls = []

        def sweep(ids, folder, subset):
            calls.append((list(ids), folder, subset))
            table = ResultsTable()
            for row in earlier_in_subset if subset else earlier:
                table.put(row)
            for i in ids:
                table.put(result(i, scores[i], num_images=subset or NUM_IMAGES))
            return table

        table = two_stage_sweep(sweep, stitch_ids, str(tmp_path), 10)
        assert calls[0] == (list(stitch_ids), str(tmp_path / "subset"), 10)
        assert calls[1][1:] == (str(tmp_path), 0)
        assert list(ResultsTable.read(tmp_path)) == list(table)
        return calls[1][0], {row.stitch_id: row.num_images for row in table}

    return run


def test_the_best_of_a_subset_go_on_to_all_images(run):
    chosen, num_images = run([10, 11, 30, 29, 31, 28], range(6))
    assert chosen == [0, 1, 2, 4]
    assert num_images == {0: 100, 1: 100, 2: 100, 3: 10, 4: 100, 5: 10}


def test_stitches_of_an_earlier_sweep_are_not_asked_for_again(run):
    """Its rows, of which one is better than all, stand in the files that are gone on with."""
    earlier = [result(2, 99), result(4, 50)]
    chosen, num_images = run([10, 11, 0, 29, 0, 28], [0, 1, 3, 5], earlier, earlier)
    assert chosen == [0, 1, 3]
    assert num_images == {0: 100, 1: 100, 2: 10, 3: 100, 4: 10, 5: 10}


def test_what_was_scored_on_more_images_stays(run):
    earlier = [result(3, 5, num_images=NUM_IMAGES), result(5, 5, num_images=8)]
    _, num_images = run([10, 11, 30, 29, 31, 28], range(6), earlier)
    assert num_images == {0: 100, 1: 100, 2: 100, 3: 100, 4: 100, 5: 10}


def test_without_a_candidate_the_subset_is_all_there_is(run):
    chosen, num_images = run([0, 0, math.nan, math.nan, 0, 0], [2, 3])
    assert (chosen, num_images) == ([], {2: 10, 3: 10})

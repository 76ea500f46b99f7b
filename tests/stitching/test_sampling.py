import math
from collections import Counter

import pytest
import torch
from two_processes import run_in_two_processes

from snnet_vitdet.stitching import ResourceConstrainedSampler, StitchSpace, UniformSampler

# 134 costs between those of the anchors of S/L, with crowded and lonely budgets; none halfway.
GFLOPS = [round(475.13 + 1332.4 * (i / 133) ** 2, 3) for i in range(134)]
SAMPLERS = [ResourceConstrainedSampler, UniformSampler]

# Drawn by version 0.1.0, whose groups were rounded.
ROS_STREAM = [130, 15, 79, 86, 56, 99, 83, 104, 69, 107, 25, 121, 91, 87, 92, 55]
ROS_STREAM_OF_SLOT_1 = [35, 88, 114, 94, 35, 126, 59, 92]
ROS_FAR_OUT = 121
UNIFORM_STREAM = [116, 39, 19, 71, 58, 133, 10, 119, 13, 130, 34, 21, 101, 31, 64, 81]


def imagenet_gflops(depths=(12, 24), widths=(384, 1024), tokens=197):
    """Cost of every stitch of DeiT3-S and L as classifiers at 224 pixels, by a ViT's formulas."""
    space = StitchSpace(depths)
    block = [tokens * 12 * width**2 + 2 * tokens**2 * width for width in widths]
    embedding = [(tokens - 1) * 16 * 16 * 3 * width for width in widths]
    costs = []
    for stitch in space:
        first, last = stitch.segments[0].anchor, stitch.segments[-1].anchor
        cost = embedding[first] + 1000 * widths[last]
        cost += sum((stop - start) * block[anchor] for anchor, start, stop in stitch.segments)
        # Each anchor has a classifier of its own: there is no exit projection.
        crossed = (t for t in stitch.transitions if t != space.exit_transition)
        cost += sum(tokens * widths[t.source] * widths[t.target] for t in crossed)
        costs.append(cost / 1e9)
    return costs


def draws(sampler, count=200, slot=0, start=0):
    return [sampler(iteration, slot) for iteration in range(start, start + count)]


def test_a_gap_is_measured_from_the_first_member_of_a_group():
    # Neighbours are 6 apart, so a distance to the last member would never exceed 10.
    costs = [10.0, 16.0, 22.0, 28.0, 34.0]
    assert ResourceConstrainedSampler(costs, step=10.0).groups == ((0, 1), (2, 3), (4,))
    # A distance of exactly the step does not exceed it.
    assert ResourceConstrainedSampler([20.0, 10.0, 20.5], step=10.0).groups == ((0, 1), (2,))


def test_a_cost_halfway_between_two_multiples_goes_up():
    sampler = ResourceConstrainedSampler([5.0, 14.9, 15.0, 25.0, 34.9], grouping="round")
    assert sampler.groups == ((0, 1), (2,), (3, 4))


def test_gap_gives_the_intervals_and_the_shares_of_section_4_2():
    """13 FLOPs intervals and 2/13 for the anchors, for S and L on ImageNet with a step of 1."""
    gflops = imagenet_gflops()
    assert gflops[:2] == pytest.approx([4.6, 61.6], abs=0.05)  # the two ViTs as they are known
    sampler = ResourceConstrainedSampler(gflops, step=1.0)
    assert [len(members) for members in sampler.groups] == [1, *[12] * 11, 1]
    probabilities = sampler.probabilities()
    assert probabilities[0] + probabilities[1] == pytest.approx(2 / 13)
    assert len(ResourceConstrainedSampler(gflops, step=1.0, grouping="round").groups) > 13


def test_known_probabilities_of_a_small_space():
    # Three groups, {0, 1}, {2} and {3, 4, 5}: the budgets between, of no stitch, are none.
    sampler = ResourceConstrainedSampler([9.0, 11.0, 20.0, 48.0, 50.0, 54.0])
    assert sampler.probabilities() == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 9, 1 / 9, 1 / 9])


@pytest.mark.parametrize("sampler_type", SAMPLERS)
def test_frequencies_of_20000_draws_are_those_of_the_probabilities(sampler_type):
    sampler, count = sampler_type(GFLOPS, seed=3), 20_000
    seen = Counter(draws(sampler, count))
    chi_squared = 0.0
    for stitch_id, p in enumerate(sampler.probabilities()):
        deviation = seen[stitch_id] - count * p
        # 5 standard deviations of a binomial count: one fair stream in 10,000 has one such stitch.
        assert abs(deviation) <= 5 * math.sqrt(count * p * (1 - p))
        chi_squared += deviation**2 / (count * p)
    # Mean 133 and variance 266 for a fair stream.
    assert abs(chi_squared - 133) <= 4 * math.sqrt(266)


@pytest.mark.parametrize("sampler_type", SAMPLERS)
def test_successive_draws_do_not_depend_on_each_other(sampler_type):
    sampler, count = sampler_type([10.0, 20.0, 30.0, 40.0]), 20_000
    ids = draws(sampler, count + 1)
    pairs = Counter(zip(ids[:-1], ids[1:], strict=True))
    # 16 pairs of probability 1/16 each; 5 standard deviations.
    bound = 5 * math.sqrt(count * (1 / 16) * (15 / 16))
    assert len(pairs) == 16
    assert all(abs(seen - count / 16) <= bound for seen in pairs.values())


@pytest.mark.parametrize("sampler_type", SAMPLERS)
def test_other_seeds_and_slots_give_other_sequences(sampler_type):
    sequences = {tuple(draws(sampler_type(GFLOPS, seed=s), slot=k)) for s in (0, 1) for k in (0, 1)}
    assert len(sequences) == 4


def test_the_streams_are_the_ones_of_earlier_versions():
    # A change here makes every interrupted training go on with other stitches.
    ros = ResourceConstrainedSampler(GFLOPS, step=10.0, seed=0, grouping="round")
    assert draws(ros, 16) == ROS_STREAM
    assert draws(ros, 8, slot=1) == ROS_STREAM_OF_SLOT_1
    assert draws(UniformSampler(GFLOPS, seed=7), 16) == UNIFORM_STREAM
    assert ros(10**12, 10**6) == ROS_FAR_OUT


def _draws_of_a_process(rank):
    # What else runs in a process differs by its rank.
    torch.manual_seed(rank)
    torch.rand(rank + 1)
    sampler = ResourceConstrainedSampler(GFLOPS, seed=4)
    return draws(sampler), draws(sampler, slot=rank), draws(UniformSampler(GFLOPS, seed=4))


def test_two_gloo_processes_draw_the_same_stitches_and_others_by_slot(tmp_path):
    first, second = run_in_two_processes(_draws_of_a_process, tmp_path)
    assert first[0] == second[0] == draws(ResourceConstrainedSampler(GFLOPS, seed=4))
    assert first[2] == second[2]
    assert first[1] == first[0] != second[1]


@pytest.mark.parametrize("sampler_type", SAMPLERS)
def test_no_stitch_is_an_error(sampler_type):
    with pytest.raises(ValueError, match="gflops is empty: there is no stitch to sample"):
        sampler_type([])


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_cost_that_is_not_finite_and_positive_is_an_error(bad):
    with pytest.raises(ValueError, match=f"gflops must be finite and positive, got {bad}"):
        ResourceConstrainedSampler([10.0, bad])


@pytest.mark.parametrize("bad", [0, -10.0, math.nan, math.inf])
def test_a_step_that_is_not_finite_and_positive_is_an_error(bad):
    with pytest.raises(ValueError, match=f"step must be a positive number of GFLOPs, got {bad}"):
        ResourceConstrainedSampler([10.0], step=bad)


def test_an_unknown_grouping_is_an_error():
    with pytest.raises(ValueError, match="grouping must be one of .*gap.*round.*, got 'ceil'"):
        ResourceConstrainedSampler([10.0], grouping="ceil")

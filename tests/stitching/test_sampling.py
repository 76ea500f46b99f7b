"""Draws of stitches: known streams and groups, and properties of any costs, step and seed."""

import hashlib
import math
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from two_processes import run_in_two_processes

from snnet_vitdet.stitching import (
    ResourceConstrainedSampler,
    SamplerBySize,
    StitchSpace,
    SubsetSampler,
    UniformSampler,
)

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


costs = st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=60)
steps = st.floats(1e-3, 1e4)
words = st.integers(0, 2**64 - 1)  # any iteration, seed or slot
groupings = st.sampled_from(["gap", "round"])
sampler_types = st.sampled_from([ResourceConstrainedSampler, UniformSampler])


def global_states():
    numpy_state = np.random.get_state()  # noqa: NPY002
    torch_state = torch.get_rng_state()
    return random.getstate(), (numpy_state[1].tolist(), numpy_state[2:]), torch_state.tolist()


@given(costs, steps, groupings)
def test_groups_hold_every_stitch_once_in_the_order_of_their_costs(gflops, step, grouping):
    groups = ResourceConstrainedSampler(gflops, step, grouping=grouping).groups
    assert sorted(i for members in groups for i in members) == list(range(len(gflops)))
    for members, after in zip(groups, groups[1:], strict=False):
        assert max(gflops[i] for i in members) < min(gflops[i] for i in after)
    for members in groups:
        assert members == tuple(sorted(members))


@given(costs, steps)
def test_a_gap_group_is_as_wide_as_the_step_and_takes_all_that_it_can(gflops, step):
    groups = ResourceConstrainedSampler(gflops, step, grouping="gap").groups
    firsts = [min(gflops[i] for i in members) for members in groups]
    for members, first in zip(groups, firsts, strict=True):
        assert all(gflops[i] - first <= step for i in members)
    assert all(b - a > step for a, b in zip(firsts, firsts[1:], strict=False))


@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=60), st.integers(1, 100), st.integers(0)
)
def test_gap_groups_stay_when_all_costs_grow_by_a_constant(gflops, step, shift):
    # Whole numbers, whose differences are exact.
    shift %= 10_000
    shifted = [cost + shift for cost in gflops]
    of = ResourceConstrainedSampler
    assert of(gflops, step).groups == of(shifted, step).groups


@given(costs, steps)
def test_a_rounded_group_has_one_multiple_of_the_step_nearest_to_all(gflops, step):
    def is_nearest(multiple, cost):
        distance = abs(Fraction(cost) - multiple * Fraction(step))
        # Division and addition each round the quotient once, by 2^-53 of it.
        slack = (Fraction(cost) + Fraction(step)) * Fraction(2) ** -52
        return distance <= Fraction(step) / 2 + slack

    for members in ResourceConstrainedSampler(gflops, step, grouping="round").groups:
        about = round(gflops[members[0]] / step)
        assert any(
            all(is_nearest(multiple, gflops[i]) for i in members)
            for multiple in (about - 1, about, about + 1)
        )


@given(costs, steps, groupings)
def test_probabilities_are_one_over_groups_times_size_and_sum_to_1(gflops, step, grouping):
    sampler = ResourceConstrainedSampler(gflops, step, grouping=grouping)
    probabilities = sampler.probabilities()
    assert len(probabilities) == len(gflops)
    for members in sampler.groups:
        for stitch_id in members:
            expected = 1 / (len(sampler.groups) * len(members))
            assert probabilities[stitch_id] == pytest.approx(expected, rel=1e-15)
    for found in (probabilities, UniformSampler(gflops).probabilities()):
        # Each addition of at most 60 rounds by 2^-53.
        assert sum(found) == pytest.approx(1.0, abs=60 * 2**-52)


@given(sampler_types, costs, words, st.lists(st.tuples(words, words), max_size=8))
def test_a_draw_depends_on_seed_iteration_and_slot_alone(sampler_type, gflops, seed, places):
    sampler = sampler_type(gflops, seed=seed)
    first = {place: sampler(*place) for place in places}
    anew = sampler_type(list(gflops), seed=seed)
    for place in reversed(places):
        assert sampler(*place) == anew(*place) == first[place]
        assert 0 <= first[place] < len(gflops)


@given(sampler_types, costs, words, words, words)
def test_no_global_generator_is_read_or_moved(sampler_type, gflops, seed, iteration, slot):
    sampler = sampler_type(gflops, seed=seed)
    states, stitches = [], []
    for other in (1, 2):
        random.seed(other)
        np.random.seed(other)  # noqa: NPY002
        torch.manual_seed(other)
        before = global_states()
        stitches.append(sampler(iteration, slot))
        assert global_states() == before
        states.append(before)
    assert all(a != b for a, b in zip(*states, strict=True))
    assert stitches[0] == stitches[1]


@given(words, words, words, st.integers(1, 1000))
@example(seed=0, iteration=2**53 + 1, slot=0, count=1000)
@example(seed=2**64 - 1, iteration=2**64 - 1, slot=2**64 - 1, count=134)
def test_draws_are_exact_up_to_64_bits(seed, iteration, slot, count):
    """By whole numbers alone, as the streams of earlier versions are: nothing passes a float."""
    data = b"".join(value.to_bytes(8, "little") for value in (seed, iteration, slot))
    digest = hashlib.blake2b(data, digest_size=16).digest()
    first, second = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8))
    assert UniformSampler([1.0] * count, seed=seed)(iteration, slot) == first % count
    # Two groups: one stitch at 10 GFLOPs, all others at 21.
    ros = ResourceConstrainedSampler([10.0] + [21.0] * count, seed=seed)
    expected = 1 + second % count if first % 2 else 0
    assert ros(iteration, slot) == expected


@given(sampler_types, st.sampled_from([0, 1, 2]), st.integers(max_value=-1) | st.integers(2**64))
@example(ResourceConstrainedSampler, 1, 2**64)
def test_numbers_outside_64_bits_are_a_value_error(sampler_type, position, value):
    seed, iteration, slot = (value if i == position else 0 for i in range(3))
    name = ("seed", "iteration", "slot")[position]
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        sampler_type([1.0, 2.0], seed=seed)(iteration, slot)


@given(st.lists(st.floats(), max_size=5), st.floats())
@example([1e300], 1e-300)
@example([1.0], 5e-324)
def test_any_costs_and_step_give_a_sampler_or_a_value_error(gflops, step):
    try:
        sampler = ResourceConstrainedSampler(gflops, step)
    except ValueError as error:
        assert str(error)
    else:
        assert step > 0 and all(math.isfinite(g) and g > 0 for g in gflops)
        assert sum(sampler.probabilities()) == pytest.approx(1.0)


def test_a_sampler_by_size_draws_from_that_of_the_iterations_size():
    samplers = {
        512: SubsetSampler(UniformSampler([1.0] * 2, seed=0), [0, 1], 3),
        1024: SubsetSampler(UniformSampler([1.0], seed=0), [2], 3),
    }
    by_size = SamplerBySize(samplers, lambda iteration: 1024 if iteration % 2 else 512)
    assert [by_size(i, 1) for i in range(20)] == [
        samplers[1024 if i % 2 else 512](i, 1) for i in range(20)
    ]
    assert {by_size(i) for i in range(1, 20, 2)} == {2}

"""What holds of the draws of stitches, whatever the costs, the step and the seed."""

import hashlib
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from snnet_vitdet.stitching import ResourceConstrainedSampler, UniformSampler

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

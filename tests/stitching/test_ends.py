"""Stitches that take turns with those of a sampler."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snnet_vitdet.stitching import EndsSampler, ResourceConstrainedSampler, UniformSampler

GFLOPS = [20.0, 31.0, *(21.0 + i / 2 for i in range(12))]
SAMPLERS = [ResourceConstrainedSampler, UniformSampler]
WORDS = st.integers(0, 2**63)


class Always:
    """A sampler of four stitches that knows one, and notes what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, iteration, slot=0):
        self.asked.append((iteration, slot))
        return 3

    def probabilities(self):
        return (0.0, 0.0, 0.0, 1.0)


def draws(sampler, num_slots, num_iterations, start=0):
    """Stitch ids, a row an iteration."""
    return [
        [sampler(iteration, slot) for slot in range(num_slots)]
        for iteration in range(start, start + num_iterations)
    ]


def test_as_many_slots_as_roles_train_both_ends_and_two_others_in_every_step():
    of = UniformSampler(GFLOPS)
    for iteration, step in enumerate(draws(EndsSampler(of, (0, 1), period=4), 4, 8)):
        # The images of a step are shared out alike, but not always in the same way.
        shift = iteration % 4
        small, large, *others = [step[(role - shift) % 4] for role in range(4)]
        assert (small, large) == (0, 1)
        assert others == [of(iteration, (role - shift) % 4) for role in (2, 3)]


def test_one_slot_trains_each_end_once_in_a_period():
    of = Always()
    ids = [step for (step,) in draws(EndsSampler(of, (2, 0, 1), period=5), 1, 12)]
    assert ids == [2, 0, 1, 3, 3, 2, 0, 1, 3, 3, 2, 0]
    assert of.asked == [(3, 0), (4, 0), (8, 0), (9, 0)]


@pytest.mark.parametrize("num_slots", [1, 2, 4, 8])
@pytest.mark.parametrize(("ends", "period"), [((0, 1), 2), ((0, 1), 4), ((0, 1), 3), ((2,), 5)])
def test_shares_of_the_draws_are_exactly_the_probabilities(ends, period, num_slots):
    sampler = EndsSampler(Always(), ends, period=period)
    counts = Counter(sum(draws(sampler, num_slots, period, start=7), []))
    expected = [probability * period * num_slots for probability in sampler.probabilities()]
    assert [counts[i] for i in range(4)] == pytest.approx(expected, rel=1e-12)
    assert all(counts[end] == num_slots for end in ends)


def test_first_iterations_are_the_ends_alone_in_turn():
    of = UniformSampler(GFLOPS)
    sampler = EndsSampler(of, (0, 1), first=3)
    assert draws(sampler, 3, 3) == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert draws(sampler, 3, 5, start=3) == draws(of, 3, 5, start=3)
    both = EndsSampler(of, (0, 1), period=4, first=3)
    assert draws(both, 3, 3) == draws(sampler, 3, 3)
    assert draws(both, 3, 8, start=3) == draws(EndsSampler(of, (0, 1), period=4), 3, 8, start=3)


def test_shares_of_a_training_have_its_first_iterations_in_them():
    sampler = EndsSampler(Always(), (0, 1), period=4, first=40)
    assert sampler.shares(200) == pytest.approx(
        [0.2 / 2 + 0.8 / 4, 0.2 / 2 + 0.8 / 4, 0.0, 0.8 / 2]
    )
    counts = Counter(sum(draws(sampler, 1, 200), []))
    assert [counts[i] / 200 for i in range(4)] == pytest.approx(sampler.shares(200))
    assert sampler.shares(40) == sampler.shares(10) == pytest.approx([0.5, 0.5, 0, 0])


@given(
    st.sampled_from(SAMPLERS),
    st.lists(st.integers(0, 13), min_size=1, max_size=4, unique=True),
    st.integers(0, 6),
    st.integers(0, 9),
    WORDS,
    st.lists(st.tuples(WORDS | st.integers(0, 20), WORDS), max_size=8),
)
def test_a_draw_depends_on_seed_iteration_and_slot_alone(
    sampler_type, ends, more, first, seed, places
):
    def make():
        period = len(ends) + more - 1 if more else 0
        return EndsSampler(sampler_type(GFLOPS, seed=seed), tuple(ends), period, first)

    sampler = make()
    found = {place: sampler(*place) for place in places}
    anew = make()
    for place in reversed(places):
        assert anew(*place) == sampler(*place) == found[place]
        assert 0 <= found[place] < len(GFLOPS)
    for shares in (sampler.probabilities(), sampler.shares(100)):
        assert sum(shares) == pytest.approx(1.0)
        assert min(shares) >= 0


@given(st.integers(1, 3), st.integers(0, 5), st.integers(1, 9), WORDS)
def test_every_slot_has_every_role_once_in_a_period(num_ends, more, num_slots, start):
    of, period = Always(), num_ends + more
    sampler = EndsSampler(of, tuple(range(num_ends)), period=period)
    rows = draws(sampler, num_slots, period, start)
    for slot in range(num_slots):
        assert sorted(row[slot] for row in rows) == [*range(num_ends), *[3] * more]
    assert len(set(of.asked)) == len(of.asked) == more * num_slots


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ends": ()}, "ends is empty: there is no stitch to take turns"),
        ({"ends": (0, 14)}, "ends must be stitch ids from 0 to 13, got 14"),
        ({"ends": (-1,)}, "ends must be stitch ids from 0 to 13, got -1"),
        ({"period": 1}, "period=1 must be 0 or at least 2, a turn for each of the ends"),
        ({"period": -4}, "period=-4 must be 0 or at least 2"),
        ({"first": -1}, "first=-1 must be >= 0"),
    ],
)
def test_turns_that_cannot_be_are_an_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        EndsSampler(UniformSampler(GFLOPS), **{"ends": (0, 1), **kwargs})

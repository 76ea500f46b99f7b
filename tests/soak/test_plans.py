from collections import Counter

import pytest

from snnet_vitdet.soak import PHASES, plan_round
from snnet_vitdet.soak.faults import blows_of_sweep, blows_of_training
from snnet_vitdet.soak.phases import EVALUATION, FINAL


def plans_of_a_cycle(processes):
    """As many plans as it takes until all faults have had their turn."""
    wanted = sum(len(blows_of_training(n)) + len(blows_of_sweep(n)) for n in processes)
    plans = []
    while sum(len(plan.training) + len(plan.sweep) for plan in plans) < wanted:
        plans.append(plan_round(5, len(plans), processes))
    return plans


@pytest.mark.parametrize("processes", [[1], [1, 2]])
def test_every_fault_of_every_phase_comes_once_before_any_comes_again(processes):
    plans = plans_of_a_cycle(processes)
    dealt = Counter((p.num_processes, blow) for p in plans for blow in (*p.training, *p.sweep))
    expected = Counter(
        (n, blow) for n in processes for blow in (*blows_of_training(n), *blows_of_sweep(n))
    )
    assert dealt == expected
    assert set(dealt.values()) == {1}
    assert {blow.phase for _, blow in dealt} == set(PHASES)


def test_plans_depend_on_seed_and_number_alone_and_go_on_in_another_order():
    number = len(plans_of_a_cycle([1]))
    assert plan_round(5, number, [1]) == plan_round(5, number, [1])
    first, second, other = (
        [plan_round(seed, start + i, [1]) for i in range(number)]
        for seed, start in ((5, 0), (5, number), (6, 0))
    )
    assert first != second
    assert first != other


def test_within_a_round_phases_follow_each_other_and_one_ends_the_training():
    for plan in plans_of_a_cycle([1, 2]):
        places = [PHASES.index(blow.phase) for blow in plan.training if "between" not in blow.phase]
        assert places == sorted(places)
        assert sum(blow.phase in (FINAL, EVALUATION) for blow in plan.training) <= 1

"""Which faults a round has: drawn from the seed and the number of the round alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from random import Random

from .faults import BETWEEN, BETWEEN_SWEEPS, Blow, blows_of_sweep, blows_of_training
from .phases import EVALUATION, FINAL, SWEEP_PHASES, TRAINING, TRAINING_PHASES

__all__ = ["PHASES", "Plan", "plan_round"]

PHASES = [*TRAINING_PHASES, BETWEEN, *SWEEP_PHASES, BETWEEN_SWEEPS]
"""All of them, in the order of tables."""

_TRAINING_BLOWS = 4
_SWEEP_BLOWS = 3


@dataclass(frozen=True)
class Plan:
    """What happens in a round.

    Attributes:
        num_processes: How many processes train and sweep.
        training: What happens to the training, one after another.
        sweep: What then happens to the sweep.
    """

    num_processes: int
    training: tuple[Blow, ...]
    sweep: tuple[Blow, ...]


def plan_round(seed: int, number: int, processes: Sequence[int] = (1, 2)) -> Plan:
    """The plan of a round. All faults of all phases have their turn before one comes again.

    Args:
        seed: Of the soak.
        number: Of the round, from 0.
        processes: Which numbers of processes to train with.
    """
    cycle, index = 0, number
    while index >= len(plans := _cycle(seed, cycle, processes)):
        index -= len(plans)
        cycle += 1
    return plans[index]


def _cycle(seed: int, cycle: int, processes: Sequence[int]) -> list[Plan]:
    rng = Random(f"{seed} {cycle}")
    plans = []
    for num_processes in processes:
        blows = blows_of_training(num_processes)
        # What ends a training comes once in a round.
        last = [blow for blow in blows if blow.phase in (FINAL, EVALUATION)]
        others = [blow for blow in blows if blow.phase not in (FINAL, EVALUATION)]
        sweeps = blows_of_sweep(num_processes)
        for part in (last, others, sweeps):
            rng.shuffle(part)
        rounds = zip_longest(
            _parts(others, _TRAINING_BLOWS - 1),
            _parts(last, 1),
            _parts(sweeps, _SWEEP_BLOWS),
            fillvalue=[],
        )
        for training, ending, sweep in rounds:
            plans.append(
                Plan(num_processes, tuple(_in_order([*training, *ending])), tuple(_in_order(sweep)))
            )
    rng.shuffle(plans)
    return plans


def _parts(blows: Sequence[Blow], size: int) -> list[Sequence[Blow]]:
    return [blows[start : start + size] for start in range(0, len(blows), size)]


def _in_order(blows: Sequence[Blow]) -> list[Blow]:
    """Earlier phases first: a training that has got to its end is not in its beginning again."""
    order = [*TRAINING_PHASES, *SWEEP_PHASES]
    # Damage needs something to damage.
    places = {BETWEEN: order.index(TRAINING), BETWEEN_SWEEPS: len(order)}
    places |= {phase: order.index(phase) for phase in order}
    return sorted(blows, key=lambda blow: places[blow.phase])

"""Processes that start again do not meet those from before."""

import random
import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from snnet_vitdet.engine.rendezvous import store_of_attempt

NUM_PROCESSES = 4


def attempt(store, seed, ranks=range(NUM_PROCESSES), timeout=60.0):
    """What each process finds in the store of an attempt that each writes its rank to."""
    found, errors = {}, []
    delays = random.Random(seed)

    def process(rank, delay):
        time.sleep(delay)
        try:
            own = store_of_attempt(store, rank, NUM_PROCESSES, timedelta(seconds=timeout))
        except TimeoutError as error:
            errors.append(error)
            return
        own.set(f"address/{rank}", f"{seed} {rank}")
        found[rank] = [own.get(f"address/{other}").decode() for other in range(NUM_PROCESSES)]

    threads = [
        threading.Thread(target=process, args=(rank, delays.uniform(0, 0.3))) for rank in ranks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, errors


def test_all_of_an_attempt_meet_and_nobody_from_before():
    store = HashStore()
    # The order in which they come differs from attempt to attempt.
    for seed in range(8):
        found, errors = attempt(store, seed)
        assert not errors
        expected = [f"{seed} {rank}" for rank in range(NUM_PROCESSES)]
        assert found == dict.fromkeys(range(NUM_PROCESSES), expected)


def test_an_attempt_that_was_broken_off_leaves_nothing_behind():
    store = HashStore()
    attempt(store, 0)
    # The first one does not come.
    found, errors = attempt(store, 1, [1, 2, 3], timeout=0.5)
    assert not found and len(errors) == 3
    found, errors = attempt(store, 2)
    assert not errors
    assert found[3] == [f"2 {rank}" for rank in range(NUM_PROCESSES)]


def test_who_does_not_come_is_not_waited_for_forever():
    with pytest.raises(TimeoutError, match="not all processes"):
        store_of_attempt(HashStore(), 1, 2, timedelta(seconds=0.1))

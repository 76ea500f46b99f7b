import time

import torch

from snnet_vitdet.deploy.latency import measure

CPU = torch.device("cpu")


def test_functions_take_turns_and_warm_up_does_not_count():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    results = measure(functions, CPU, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(result.seconds) for name, result in results.items()} == {"a": 3, "b": 3}
    assert all(result.peak_bytes is None for result in results.values())


def test_the_median_is_of_the_time_that_a_call_takes(monkeypatch):
    clock = iter([0, 10, 13, 20, 21, 30, 32])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    (result,) = measure({"a": lambda: None}, CPU, repeats=3, warmup=1).values()
    assert result.seconds == (3, 1, 2) and result.median == 2

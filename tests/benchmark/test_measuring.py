import time

import pytest
import torch
from torch import nn

from snnet_vitdet.benchmark import measure
from snnet_vitdet.benchmark.measuring import bytes_kept_for_backward

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


def test_what_a_forward_pass_keeps_is_counted_once_and_without_the_weights():
    layer = nn.Linear(6, 4)
    x = torch.randn(5, 6, requires_grad=True)
    parameters = (*layer.parameters(), x)
    # A linear layer keeps its input and weight, the square its own input, twice used.
    assert bytes_kept_for_backward(lambda: layer(x), parameters) == 0
    assert bytes_kept_for_backward(lambda: layer(x).square(), parameters) == 4 * 5 * 4
    hidden = bytes_kept_for_backward(lambda: layer(x * 2).square(), parameters)
    assert hidden == 4 * (5 * 4 + 5 * 6)
    with torch.no_grad():
        assert bytes_kept_for_backward(lambda: layer(x).square()) == 0


@pytest.mark.parametrize("number", [1, 4])
def test_what_is_kept_grows_with_the_depth(number):
    net = nn.Sequential(*[nn.GELU() for _ in range(number)])
    x = torch.randn(10, 10, requires_grad=True)
    assert bytes_kept_for_backward(lambda: net(x), (x,)) == 4 * 100 * (number - 1)

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from snnet_vitdet.memory import bytes_kept_for_backward, peak_of_live_storages


def test_what_a_forward_pass_keeps_is_counted_once_and_without_what_was_there():
    layer = nn.Linear(6, 4)
    x = torch.randn(5, 6, requires_grad=True)
    # A linear layer keeps its input and weight, the square its own input, twice used.
    assert bytes_kept_for_backward(lambda: layer(x)) == 0
    assert bytes_kept_for_backward(lambda: layer(x).square()) == 4 * 5 * 4
    assert bytes_kept_for_backward(lambda: layer(x * 2).square()) == 4 * (5 * 4 + 5 * 6)
    with torch.no_grad():
        assert bytes_kept_for_backward(lambda: layer(x).square()) == 0


def test_a_view_counts_as_the_whole_that_it_keeps():
    x = torch.randn(5, 6, requires_grad=True)
    assert bytes_kept_for_backward(lambda: (x * 2)[0].square()) == 4 * 5 * 6


def test_what_checkpointing_keeps_is_seen():
    x = torch.randn(10, 10, requires_grad=True)
    gelu = nn.GELU()

    def chain(x):
        return gelu(gelu(gelu(x * 2)))

    assert bytes_kept_for_backward(lambda: chain(x)) == 3 * 400
    assert bytes_kept_for_backward(lambda: checkpoint(chain, x, use_reentrant=False)) == 0
    # Selective checkpointing keeps outputs where saved_tensors_hooks do not see them.
    keep = partial(create_selective_checkpoint_contexts, [torch.ops.aten.mul.Tensor])
    selective = partial(checkpoint, chain, x, use_reentrant=False, context_fn=keep)
    assert bytes_kept_for_backward(selective) == 400


@torch.no_grad()
def test_the_peak_is_of_what_is_alive_at_a_time():
    x = torch.randn(10, 10)

    def chain():
        y = x * 2  # 400 bytes, and then 800 with what follows, until y is gone
        y = y * 3
        z = y.new_zeros(300)  # 1200 beside y
        return y.sum() + z.sum()

    assert peak_of_live_storages(chain) == pytest.approx(1600, abs=16)
    assert peak_of_live_storages(lambda: x[0].view(2, 5)) == 0

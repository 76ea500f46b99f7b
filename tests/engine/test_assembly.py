"""How gradients travel between processes, by what they are on arrival."""

from itertools import product

import pytest
import torch
from detectron2.utils import comm
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import run_in_two_processes

from snnet_vitdet.engine.assembly import wrap_for_processes

# Some that float16 makes zero, some that it makes infinite, and some of 12 significant bits.
GRADIENTS = torch.tensor([1e-9, -3e-8, 0.4, 1.0 + 2**-11, 7e4, 3e6])


CASES = list(product((torch.float32, torch.bfloat16, torch.float16), (True, False)))


class Weighted(nn.Module):
    """A loss whose gradient is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(GRADIENTS)))

    def forward(self, share):
        return (self.weight * GRADIENTS * share).sum()


def _exchanged(rank):
    """The gradients that a process has after the exchange, by precision and compression."""
    comm.create_local_process_group(2)
    arrived = {}
    for precision, compressed in CASES:
        ddp = {"fp16_compression": compressed}
        config = OmegaConf.create({"train": {"device": "cpu", "ddp": ddp}})
        model = wrap_for_processes(config, Weighted(), precision)
        assert isinstance(model, DistributedDataParallel)
        # The mean of both processes' gradients is GRADIENTS.
        model(0.5 + rank).backward()
        arrived[precision, compressed] = model.module.weight.grad
    return arrived


@pytest.mark.slow
def test_gradients_arrive_whatever_their_size_where_no_loss_scale_brings_them_into_range(tmp_path):
    first, second = run_in_two_processes(_exchanged, tmp_path)
    for precision, compressed in CASES:
        gradients = first[precision, compressed]
        assert torch.equal(gradients, second[precision, compressed])
        if precision != torch.float16:
            # bfloat16 has 8 significant bits: two roundings and a sum that is rounded, too.
            tolerance = 2**-7 if compressed and precision == torch.bfloat16 else 1e-6
            torch.testing.assert_close(gradients, GRADIENTS, rtol=tolerance, atol=0)
    scaled = first[torch.float16, True]
    assert scaled[2] == pytest.approx(0.4, rel=2**-10)
    # Which is what the others must not pass through.
    assert scaled[0] == 0 and torch.isinf(scaled[-1])


def test_one_process_needs_no_wrapper():
    config = OmegaConf.create({"train": {"device": "cpu", "ddp": {"fp16_compression": True}}})
    model = Weighted()
    assert wrap_for_processes(config, model, torch.bfloat16) is model

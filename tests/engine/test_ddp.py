"""Gradients between processes: their types, their order, and where they lie."""

from itertools import product

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import run_in_two_processes

from snnet_vitdet.engine import TrainSettings, as_config, ddp, synthetic_batch
from snnet_vitdet.engine.ddp import wrap_for_processes
from snnet_vitdet.modeling import compile_blocks, find_stitched_vit

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


def config_with(stitch_scope="shared", accumulation=None, **ddp):
    settings = TrainSettings(device="cpu", stitch_scope=stitch_scope)
    config = OmegaConf.create({"train": as_config(settings)})
    config.train.ddp.update(ddp)
    config.train.accumulation.update(accumulation or {})
    return config


def _exchanged(rank):
    """The gradients that a process has after the exchange, by precision and compression."""
    comm.create_local_process_group(2)
    arrived = {}
    for precision, compressed in CASES:
        model = wrap_for_processes(config_with(fp16_compression=compressed), Weighted(), precision)
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
    model = Weighted()
    assert wrap_for_processes(config_with(), model, torch.bfloat16) is model


def _sent(rank, config, compiled):
    """Names of the parameters in the order in which their gradients are sent, and some facts."""
    comm.create_local_process_group(2)
    torch.manual_seed(0)
    model = instantiate(config.model)
    names = [name for name, _ in model.named_parameters()]
    find_stitched_vit(model).set_stitch("FS-1")
    if compiled:
        compile_blocks(model, backend="eager")
    wrapped = wrap_for_processes(config, model, torch.float32)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    sent = []

    def send(_, bucket):
        sent.extend(name_of[parameter] for parameter in reversed(bucket.parameters()))
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped.register_comm_hook(None, send)
    with EventStorage():
        sum(wrapped(synthetic_batch(1, 64, 3)).values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    storages = {gradient.untyped_storage().data_ptr() for gradient in gradients}
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    same_order = names == [name for name, _ in model.named_parameters()]
    return sent, same_order, len(gradients), len(storages), unused


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_sent_about_in_the_order_in_which_they_arise(compiled, tiny_config, tmp_path):
    config = tiny_config("model.roi_heads.num_classes=3", "+train.ddp.bucket_cap_mb=0.01")
    (sent, same_order, num_gradients, num_storages, unused), _ = run_in_two_processes(
        _sent, tmp_path, config, compiled
    )
    # Nothing is sent of a block of S, and of one of L, that did not run.
    assert not any(name.startswith("backbone.net.small.blocks.3.mlp.") for name in sent)
    assert not any(name.startswith("backbone.net.large.blocks.0.mlp.") for name in sent)
    parts = ("roi_heads.", "proposal_generator.", "backbone.simfp_", "backbone.net.large.blocks.7.")
    parts += ("backbone.net.large.blocks.2.", "backbone.net.small.", "backbone.net.stitching_")
    places = [[i for i, name in enumerate(sent) if name.startswith(part)] for part in parts]
    assert all(places)
    for before, after in zip(places, places[1:], strict=False):
        assert max(before) < min(after)
    # The optimizer's state in a checkpoint depends on the order of the model.
    assert same_order
    # They lie in the buckets that are sent.
    assert num_storages < num_gradients / 2
    # What did not run has no gradient, so the optimizer leaves it alone.
    assert any(name.startswith("backbone.net.small.blocks.3.") for name in unused)
    assert any(name.startswith("backbone.net.large.blocks.0.") for name in unused)
    assert not any(name.startswith("backbone.net.small.blocks.0.") for name in unused)


@pytest.mark.parametrize(
    ("scope", "accumulation", "skips"),
    [
        ("shared", {}, True),
        ("shared", {"steps": 2, "stitch": "same"}, True),
        # The last micro-batch does not have all gradients of the iteration.
        ("shared", {"steps": 2, "stitch": "own"}, False),
        ("process", {}, False),
    ],
)
@pytest.mark.parametrize("wanted", [True, False])
def test_gradients_are_left_out_only_if_all_run_the_same_stitch(
    wanted, scope, accumulation, skips, monkeypatch
):
    given = {}
    monkeypatch.setattr(ddp, "create_ddp_model", lambda model, **kwargs: given.update(kwargs))
    config = config_with(scope, accumulation, skip_all_reduce_unused_params=wanted)
    wrap_for_processes(config, Weighted(), torch.float32)
    assert given["skip_all_reduce_unused_params"] == (wanted and skips)
    assert given["gradient_as_bucket_view"] and given["find_unused_parameters"]

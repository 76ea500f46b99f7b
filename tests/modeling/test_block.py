"""Compiled blocks: what they compute, and how many graphs they need."""

import copy
import shutil

import pytest
import torch
from torch._dynamo.utils import counters
from vits import images, large_anchor, small_anchor

from snnet_vitdet.modeling import StitchedViT, compile_blocks


@pytest.fixture
def graphs():
    """Returns the number of graphs compiled so far; fails if a frame could not be compiled."""
    torch._dynamo.reset()
    counters.clear()

    def count():
        assert counters["frames"]["total"] == counters["frames"]["ok"]
        assert not counters["graph_break"]
        return counters["stats"]["unique_graphs"]

    yield count
    torch._dynamo.reset()
    counters.clear()


def trained(net, x, stitches):
    """Losses of some stitches, and the gradients of all of them together."""
    losses = []
    for stitch in stitches:
        torch.manual_seed(stitch)
        net.set_stitch(stitch)
        loss = net(x)["last_feat"].square().mean()
        loss.backward()
        losses.append(loss.item())
    gradients = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    return losses, gradients


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_train_what_the_others_do_in_few_graphs(checkpointing, graphs):
    """Blocks with other probabilities of stochastic depth are no other graphs."""
    changes = dict(drop_path_rate=0.3, activation_checkpointing=checkpointing)
    net = StitchedViT(small_anchor(**changes), large_anchor(**changes), lora_rank=3).train()
    names = list(net.state_dict())
    stitches = [stitch.id for stitch in net.space]
    losses, gradients = trained(net, images(), stitches)
    compile_blocks(net, backend="aot_eager")
    compiled_losses, compiled_gradients = trained(net, images(), stitches)
    assert compiled_losses == pytest.approx(losses, rel=1e-5)
    assert compiled_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[name], gradient, rtol=1e-4, atol=1e-6)
    # For each ViT: with windows and without; and its first block, which is never dropped.
    assert graphs() == 6
    assert list(net.state_dict()) == names
    # A copy is not compiled, such as the average of the weights.
    trained(copy.deepcopy(net), images(96, 96), [1])
    assert graphs() == 6


def test_no_block_runs_uncompiled_because_a_training_has_several_image_sizes(graphs):
    net = StitchedViT(*(make(drop_path_rate=0.3) for make in (small_anchor, large_anchor)))
    net.train()
    compile_blocks(net, backend="eager")
    for number, side in enumerate((64, 96, 80), start=1):
        trained(net, images(side, side), [0, 1])
        assert graphs() == 6 * number


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_blocks_are_compiled_to_machine_code(graphs):
    anchor, x = small_anchor(depth=1, global_block_indexes=(0,)).train(), images(batch=1)
    expected = anchor(x)["last_feat"]
    (gradient,) = torch.autograd.grad(expected.square().mean(), anchor.pos_embed)
    compile_blocks(anchor)
    out = anchor(x)["last_feat"]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    (compiled,) = torch.autograd.grad(out.square().mean(), anchor.pos_embed)
    torch.testing.assert_close(compiled, gradient, rtol=1e-4, atol=1e-6)
    assert graphs() == 1

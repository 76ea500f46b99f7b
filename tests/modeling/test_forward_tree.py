"""The stitched backbone run along a prefix tree: all stitches at once."""

import gc
import weakref
from collections import Counter

import pytest
import torch
from vits import images, large_anchor, small_anchor, stitched_vit

from snnet_vitdet.modeling import StitchedViT
from snnet_vitdet.stitching import BlockStep, EmbeddingStep, PrefixTree

SPACES = {
    "two cuts": {},
    "one cut": dict(max_cuts=1),
    "three cuts": dict(max_cuts=3),
    "no cut": dict(max_cuts=0),
    "SN-Netv1": dict(kinds=("S", "L", "FS")),
    "inner kinds": dict(kinds=("SFS", "FSF")),
    "one kind": dict(kinds=("SF",)),
    "full rank": dict(lora_rank=0),
}
in_every_space = pytest.mark.parametrize("changes", SPACES.values(), ids=SPACES)


def module_of(net, step):
    """The module that runs a step; the patch embedding stands for the whole embedding."""
    if isinstance(step, EmbeddingStep):
        return net.anchors[step.anchor].patch_embed
    if isinstance(step, BlockStep):
        return net.anchors[step.anchor].blocks[step.index]
    return net.stitching_layers[step]


def assert_each_is_bitwise_what_it_is_alone(net, x, stitches=None):
    stitches = list(net.space if stitches is None else stitches)
    seen = {}
    for stitch, features in net.forward_tree(x, PrefixTree(stitches)):
        assert stitch.id not in seen
        seen[stitch.id] = features
    assert seen.keys() == {stitch.id for stitch in stitches}
    for stitch in stitches:
        with net.using_stitch(stitch.id):
            alone = net(x)
        assert seen[stitch.id].keys() == alone.keys()
        for name, value in alone.items():
            assert seen[stitch.id][name].shape == value.shape
            assert torch.equal(seen[stitch.id][name], value), stitch.name
    return seen


@in_every_space
@torch.no_grad()
def test_features_of_every_stitch_are_bitwise_what_it_gives_alone(changes):
    net = stitched_vit(**changes)
    features = assert_each_is_bitwise_what_it_is_alone(net, images())
    different = [f["last_feat"] for f in features.values()]
    for i, first in enumerate(different):
        assert all(not torch.allclose(first, second) for second in different[:i])


@pytest.mark.parametrize("size", [(96, 48), (32, 80)])
@torch.no_grad()
def test_also_at_other_sizes_and_depths_of_no_integer_ratio(size):
    large = large_anchor(depth=6, global_block_indexes=(5,))
    net = StitchedViT(small_anchor(), large, lora_rank=2).eval()
    assert_each_is_bitwise_what_it_is_alone(net, images(*size, batch=1))


@torch.no_grad()
def test_some_stitches_alone():
    net = stitched_vit()
    chosen = [net.space[name] for name in ("FS-3", "S", "SFS-1-2", "SFS-1-3")]
    assert_each_is_bitwise_what_it_is_alone(net, images(), chosen)
    assert list(net.forward_tree(images(), PrefixTree([]))) == []


@torch.no_grad()
def test_the_stitch_in_effect_is_neither_used_nor_changed():
    net, x = stitched_vit(), images()
    net.set_stitch("SF-1")
    for stitch, _ in net.forward_tree(x, PrefixTree(net.space)):
        assert net.stitch.name == "SF-1"
        if stitch.name == "S":
            with net.using_stitch("FS-2"):
                net(x)
    assert net.stitch.name == "SF-1"


@in_every_space
@torch.no_grad()
def test_every_module_runs_once_for_each_beginning_of_walks_that_ends_with_it(changes):
    net = stitched_vit(**changes)
    beginnings = set()
    for stitch in net.space:
        steps = stitch.steps
        beginnings |= {steps[: i + 1] for i in range(len(steps))}
    expected = Counter(id(module_of(net, beginning[-1])) for beginning in beginnings)
    runs = Counter()
    # A block is one module, before and after a cut.
    for module in {module_of(net, beginning[-1]) for beginning in beginnings}:
        module.register_forward_hook(lambda module, *_: runs.update([id(module)]))
    for _ in net.forward_tree(images(), PrefixTree(net.space)):
        pass
    assert runs == expected


@pytest.mark.parametrize("max_cuts", [0, 1, 2, 3])
@torch.no_grad()
def test_at_most_two_more_sets_of_tokens_than_cuts_are_alive(max_cuts, monkeypatch):
    """The memory of a sweep does not grow with the number of stitches."""
    net = stitched_vit(max_cuts=max_cuts)
    alive, counts = weakref.WeakSet(), []

    def count(tokens):
        # By storage: a view of tokens costs nothing.
        alive.add(tokens.untyped_storage())
        counts.append(len(alive))
        return tokens

    for anchor in net.anchors:
        embed = anchor.embed
        monkeypatch.setattr(anchor, "embed", lambda x, embed=embed: count(embed(x)))
    steps = [step for stitch in net.space for step in stitch.steps]
    for module in {module_of(net, s) for s in steps if not isinstance(s, EmbeddingStep)}:
        module.register_forward_hook(lambda *args: count(args[2]))
    gc.disable()  # what only the collector would free counts
    try:
        for item in net.forward_tree(images(), PrefixTree(net.space)):
            del item
    finally:
        gc.enable()
    assert len(counts) == len(PrefixTree(net.space))
    assert max(counts) == max_cuts + 2

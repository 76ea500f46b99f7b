"""A stitch as a chain of its own gives what the supernet gives."""

from itertools import pairwise

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn
from vits import images, large_anchor, randomise, small_anchor, stitched_vit

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import ExtractedViT, StitchedViT, extracted_state
from snnet_vitdet.modeling.extracted import merged_state
from snnet_vitdet.stitching import SMALL, LowRankLinear

# float64, up to 8 blocks: a merged matrix rounds otherwise than two products.
ROUNDING = dict(rtol=1e-9, atol=1e-9)


def extracted(net: StitchedViT, stitch, **changes) -> ExtractedViT:
    """The chain of a stitch with the weights of its supernet."""
    projects = stitch.exit == SMALL and net.space.exit_projection
    projects_to = net.large.embed_dim if projects else None
    anchors = [small_anchor(**changes), large_anchor(**changes)]
    chain = ExtractedViT(anchors, stitch.segments, projects_to).double()
    # Nothing may be right by chance.
    randomise(chain, seed=9)
    chain.load_state_dict(extracted_state(net, stitch))
    return chain.eval()


def pixels(*size: int) -> torch.Tensor:
    return images(*size).double()


@pytest.mark.parametrize(
    ("changes", "exit_projection"),
    [
        ({}, True),
        ({}, False),
        (dict(abs_pos="win", rel_pos_table=True), True),
        (dict(pre_norm=True, abs_pos=None), True),
    ],
    ids=["deit3", "no exit projection", "tables", "clip"],
)
@torch.no_grad()
def test_every_stitch_extracted_gives_the_features_of_the_supernet(changes, exit_projection):
    anchors = small_anchor(**changes), large_anchor(**changes)
    net = StitchedViT(*anchors, lora_rank=3, exit_projection=exit_projection)
    randomise(net.stitching_layers, seed=3)
    net.double().eval()
    outputs = []
    for stitch in net.space:
        chain = extracted(net, stitch, **changes)
        width = net.exit_widths[stitch.exit]
        assert chain.output_shape() == {"last_feat": ShapeSpec(channels=width, stride=16)}
        for size in ((64, 64), (96, 48)):
            net.set_stitch(stitch.id)
            expected = net(pixels(*size))["last_feat"]
            torch.testing.assert_close(chain(pixels(*size))["last_feat"], expected, **ROUNDING)
        outputs.append(expected)
    # Not one network fourteen times.
    assert not any(
        a.shape == b.shape and torch.allclose(a, b, **ROUNDING) for a, b in pairwise(outputs)
    )


def test_a_chain_has_the_weights_of_its_walk_alone():
    net = stitched_vit().double()
    for stitch in net.space:
        chain = extracted(net, stitch)
        kinds = {type(module) for module in chain.modules()}
        assert not kinds & {StitchedViT, LowRankLinear}
        blocks = sum(stop - start for _, start, stop in stitch.segments)
        assert len(chain.layers) == blocks + len(stitch.transitions)
        linear = [layer for layer in chain.layers if isinstance(layer, nn.Linear)]
        assert len(linear) == len(stitch.transitions)
        assert not list(chain.embedding.blocks.parameters())


@torch.no_grad()
def test_low_rank_updates_of_anchors_are_merged():
    tuned = dict(lora_rank=2, lora_alpha=5)
    net = StitchedViT(small_anchor(**tuned), large_anchor(**tuned), lora_rank=3).double().eval()
    randomise(net, seed=7)
    for name in ("S", "L", "FSF-1-3"):
        stitch = net.set_stitch(name)
        chain = extracted(net, stitch)
        expected = net(pixels())["last_feat"]
        torch.testing.assert_close(chain(pixels())["last_feat"], expected, **ROUNDING)


@torch.no_grad()
def test_an_anchor_alone_is_extracted_as_well():
    anchor = large_anchor(lora_rank=2).double().eval()
    chain = randomise(ExtractedViT([large_anchor()], [(0, 0, 8)]).double().eval(), seed=9)
    chain.load_state_dict(extracted_state(anchor))
    expected = anchor(pixels())["last_feat"]
    torch.testing.assert_close(chain(pixels())["last_feat"], expected, **ROUNDING)


def test_merging_leaves_the_module_as_it_was():
    net = stitched_vit()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    merged = merged_state(net)
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not [key for key in merged if "lora" in key]
    layer = net.stitching_layers.exit
    assert torch.equal(merged["stitching_layers.exit.weight"], layer.merged_weight())
    assert not torch.equal(merged["stitching_layers.exit.weight"], layer.weight)


@pytest.mark.parametrize(
    "segments", [[(2, 0, 1)], [(0, 0, 5)], [(0, 2, 2)], [(0, -1, 2)], [(-1, 0, 2)]]
)
def test_blocks_that_are_not_there_are_refused(segments):
    with pytest.raises(InputError, match="has no blocks of its 2 anchors"):
        ExtractedViT([small_anchor(), large_anchor()], segments)


def test_a_walk_needs_a_segment():
    with pytest.raises(InputError, match="a walk without segments runs nothing"):
        ExtractedViT([small_anchor()], [])

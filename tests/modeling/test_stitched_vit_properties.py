"""What holds of every stitch of random small anchors: what it gives, learns and costs."""

from dataclasses import dataclass

import pytest
import torch
from detectors import nano_config
from detectron2.config import instantiate
from detectron2.utils.analysis import FlopCountAnalysis
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from vits import images, randomise

from snnet_vitdet.modeling import attention_implementation, stitch_costs
from snnet_vitdet.stitching import merged

pytestmark = pytest.mark.slow

PATCH = 16
# fvcore rounds its count of einsum.
AGREEMENT = 1e-6


@st.composite
def anchors(draw, depth):
    """Arguments of an anchor of this depth; all that a config can set, in small."""
    heads = draw(st.integers(1, 3))
    window = draw(st.integers(0, 3))
    use_rel_pos = draw(st.sampled_from([True, False, "global"]))
    every = st.sets(st.integers(0, depth - 1)).map(sorted)
    return dict(
        depth=depth,
        num_heads=heads,
        embed_dim=heads * draw(st.sampled_from([4, 6, 12])),
        mlp_ratio=draw(st.sampled_from([1.0, 2.5])),
        window_size=window,
        global_block_indexes=draw(st.none() | every),
        use_rel_pos=use_rel_pos,
        rel_pos_table=bool(use_rel_pos) and draw(st.booleans()),
        abs_pos=draw(
            st.sampled_from(["interpolated", "win", None] if window else ["interpolated", None])
        ),
        pretrain_img_size=PATCH * draw(st.integers(1, 4)),
        pre_norm=draw(st.booleans()),
        layer_scale_init=draw(st.sampled_from([None, 1e-6])),
        act_layer=draw(st.sampled_from(["gelu", "quick_gelu"])),
        attention=draw(st.sampled_from(["fused", "reference"])),
        activation_checkpointing=draw(st.booleans()),
        lora_rank=draw(st.sampled_from([0, 0, 2])),
    )


@dataclass
class Case:
    """Arguments of two anchors and of what joins them, and the grid of the images in tokens."""

    small: dict
    large: dict
    joined: dict
    grid: tuple[int, int]

    def config(self):
        """Of a whole detector whose image has as many pixels a side as the grid is high."""
        model = nano_config(image_size=self.grid[0] * PATCH)
        for name in ("small", "large"):
            model.backbone.net[name].update(patch_size=PATCH, **getattr(self, name))
        model.backbone.net.update(**self.joined)
        return model

    def net(self, config=None):
        return randomise(instantiate((config or self.config()).backbone.net))


@st.composite
def cases(draw):
    small = draw(st.sampled_from([3, 4, 2, 1]))
    large = draw(st.integers(small, 2 * small + 1))
    most_cuts = draw(st.sampled_from([2, 3, 1, 0]))
    kinds = ["S", "L", "FS", "SF", "SFS", "FSF"][: 2 + 2 * min(most_cuts, small - 1, 2)]
    return Case(
        draw(anchors(small)),
        draw(anchors(large)),
        dict(
            max_cuts=most_cuts,
            kinds=draw(st.sampled_from([None, None, kinds[::2], kinds[-2:], kinds[:1]])),
            lora_rank=draw(st.integers(0, 4)),
            lora_alpha=draw(st.none() | st.just(2.0)),
        ),
        (draw(st.integers(2, 4)), draw(st.integers(1, 5))),
    )


# All 16 walks of depths of no whole ratio; windows that do and do not fill the grid.
UNEVEN = Case(
    dict(depth=4, embed_dim=12, num_heads=2, window_size=3, global_block_indexes=[3]),
    dict(depth=7, embed_dim=24, num_heads=3, window_size=2, global_block_indexes=[1, 6]),
    dict(max_cuts=3, lora_rank=3),
    (4, 3),
)


def for_random_anchors(max_examples):
    """Each example is a dozen networks: to make a failing one smaller would take minutes."""
    chosen = settings(max_examples=max_examples, phases=[Phase.explicit, Phase.generate])
    return lambda test: chosen(given(cases())(example(UNEVEN)(test)))


def pictures(case):
    return images(case.grid[0] * PATCH, case.grid[1] * PATCH, batch=2)


def path_of(net, stitch):
    """The anchor whose embedding a stitch runs and its modules after it, by DESIGN and its name."""
    kind, *cuts = stitch.name.split("-")
    letters = {"S": "F", "L": "S"}.get(kind, kind)
    d1, d2 = len(net.small.blocks), len(net.large.blocks)
    edges = [0, *map(int, cuts), d1]
    layers, modules = net.stitching_layers, []
    for i, letter in enumerate(letters):
        first, last = edges[i : i + 2]
        if i:
            directed = layers.large_to_small if letter == "F" else layers.small_to_large
            modules.append(directed[str(first)])
        if letter == "F":
            modules.extend(net.small.blocks[first:last])
        else:
            modules.extend(net.large.blocks[round(first * d2 / d1) : round(last * d2 / d1)])
    if letters[-1] == "F":
        modules.append(layers.exit)
    return (net.small if letters[0] == "F" else net.large), modules


@for_random_anchors(8)
def test_every_stitch_gives_finite_features_of_the_large_width_by_its_path_alone(case):
    net, x = case.net().eval(), pictures(case)
    with torch.no_grad():
        for stitch in net.space:
            net.set_stitch(stitch.id)
            features = net(x)
            assert features.keys() == {"last_feat"}
            assert features["last_feat"].shape == (2, case.large["embed_dim"], *case.grid)
            assert features["last_feat"].isfinite().all()
            anchor, modules = path_of(net, stitch)
            tokens = anchor.embed(x)
            for module in modules:
                tokens = module(tokens)
            assert torch.equal(features["last_feat"], tokens.permute(0, 3, 1, 2)), stitch.name


@for_random_anchors(4)
def test_the_cost_of_every_stitch_is_the_one_traced(case):
    config = case.config()
    side = case.grid[0] * PATCH
    table = stitch_costs(config, image_size=side)
    net, x = case.net(config).eval(), images(side, side, batch=1)
    assert len(table) == len(net.space)
    with torch.no_grad(), merged(net), attention_implementation(net, "reference"):
        for stitch in net.space:
            with net.using_stitch(stitch.id):
                traced = FlopCountAnalysis(net, x)
                traced.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
                expected = pytest.approx(traced.total(), rel=AGREEMENT)
            after = sum(cost.flops for cost in table.parts.after(stitch))
            assert table[stitch.id].flops - after == expected, stitch.name

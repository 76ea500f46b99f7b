from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.modeling import ViT
from vits import images, randomise, small_anchor

from snnet_vitdet.errors import InputError
from snnet_vitdet.memory import bytes_kept_for_backward
from snnet_vitdet.modeling import AnchorViT
from snnet_vitdet.modeling.anchor import last_of_each_quarter
from snnet_vitdet.modeling.conversion import convert_timm_state_dict

# float32 with activations of order 1 to 10: rounding of some 1e-6 a block, and 12 of them.
ROUNDING = dict(rtol=1e-4, atol=1e-4)


def plain_anchor(**arguments):
    """An anchor as timm runs it: no windows, no relative positions."""
    return AnchorViT(window_size=0, use_rel_pos=False, **arguments)


def block_outputs(anchor, x):
    """Tokens after every block, (B, H*W, C)."""
    tokens, outputs = anchor.embed(x), []
    for block in anchor.blocks:
        tokens = block(tokens)
        outputs.append(tokens.flatten(1, 2))
    return outputs


@torch.no_grad()
def assert_every_block_equals_timm(anchor, model, x):
    # A class token would take part in timm's attention; detection has none.
    anchor.load_state_dict(convert_timm_state_dict(model.state_dict(), anchor))
    expected = model.eval().forward_intermediates(
        x, norm=False, output_fmt="NLC", intermediates_only=True
    )
    outputs = block_outputs(anchor.eval(), x)
    assert len(outputs) == len(expected) == anchor.depth
    for index, (ours, theirs) in enumerate(zip(outputs, expected, strict=True)):
        torch.testing.assert_close(
            ours, theirs, **ROUNDING, msg=lambda m, i=index: f"block {i}: {m}"
        )
    last = expected[-1].transpose(1, 2).reshape(anchor(x)["last_feat"].shape)
    torch.testing.assert_close(anchor(x)["last_feat"], last, **ROUNDING)


def test_deit3_small_equals_timm_after_every_block():
    model = timm.create_model("deit3_small_patch16_224", class_token=False, global_pool="avg")
    anchor = plain_anchor(embed_dim=384, depth=12, num_heads=6)
    assert_every_block_equals_timm(anchor, randomise(model), images(224, 224, batch=1))


@pytest.mark.parametrize("layer_scale_init", [None, 1.0])
@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_windows_and_relative_positions_equal_those_of_detectron2(layer_scale_init, size):
    # Windows of 3 on 4 x 4 and 6 x 3 tokens: with and without padding, and positions of 4 x 4 or
    # 3 x 3 tokens interpolated to 6 x 3.
    anchor = small_anchor(layer_scale_init=layer_scale_init).eval()
    theirs = ViT(
        img_size=64,
        embed_dim=24,
        depth=4,
        num_heads=2,
        window_size=3,
        window_block_indexes=(0, 2),
        use_rel_pos=True,
        pretrain_img_size=48,
        pretrain_use_cls_token=False,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    ).eval()
    if layer_scale_init is not None:
        for block in anchor.blocks:
            torch.nn.init.ones_(block.ls1.gamma)
            torch.nn.init.ones_(block.ls2.gamma)
    state = {k: v for k, v in anchor.state_dict().items() if "gamma" not in k}
    theirs.load_state_dict(state)
    x = images(*size)
    with torch.no_grad():
        ours, expected = anchor(x), theirs(x)
    assert ours.keys() == expected.keys() == {"last_feat"}
    torch.testing.assert_close(ours["last_feat"], expected["last_feat"], **ROUNDING)


@pytest.mark.parametrize(
    ("depth", "indexes"),
    [
        (12, (2, 5, 8, 11)),
        (24, (5, 11, 17, 23)),
        (32, (7, 15, 23, 31)),
        (8, (1, 3, 5, 7)),
        (4, (0, 1, 2, 3)),
        (2, (0, 1)),
        (1, (0,)),
    ],
)
def test_the_last_block_of_each_quarter_attends_globally(depth, indexes):
    assert last_of_each_quarter(depth) == indexes
    anchor = AnchorViT(img_size=64, embed_dim=8, num_heads=1, depth=depth, window_size=3)
    windows = [block.window_size for block in anchor.blocks]
    assert windows == [0 if i in indexes else 3 for i in range(depth)]


def test_relative_positions_have_the_size_of_the_window_or_of_the_whole_grid():
    sizes = [tuple(b.attn.rel_pos_h.shape) for b in small_anchor().blocks]
    assert sizes == [(5, 12), (7, 12), (5, 12), (7, 12)]
    state = small_anchor(use_rel_pos=False).state_dict()
    assert not any("rel_pos" in key for key in state)


def drop_path_rates(anchor):
    return [getattr(block.drop_path, "drop_prob", 0.0) for block in anchor.blocks]


def test_drop_path_rates_rise_linearly_from_zero_to_the_rate():
    rates = drop_path_rates(small_anchor(depth=6, drop_path_rate=0.4))
    assert rates == pytest.approx([0.4 * i / 5 for i in range(6)], rel=1e-6)
    assert drop_path_rates(small_anchor()) == [0.0] * 4


def test_drop_path_acts_in_training_only():
    dropping, plain, x = small_anchor(drop_path_rate=0.9), small_anchor(), images(batch=4)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = plain.eval()(x)["last_feat"]
        assert torch.equal(dropping.eval()(x)["last_feat"], expected)
        assert not torch.equal(dropping.train()(x)["last_feat"], expected)


def test_output_is_one_map_of_the_width_at_the_stride_of_a_patch():
    anchor = small_anchor(out_feature="tokens")
    shape = anchor.output_shape()
    assert shape.keys() == {"tokens"}
    assert (shape["tokens"].channels, shape["tokens"].stride) == (24, 16)
    out = anchor(images(96, 64))
    assert {name: tuple(value.shape) for name, value in out.items()} == {"tokens": (2, 24, 6, 4)}


def test_a_block_index_outside_the_anchor_is_an_error():
    for bad in (4, -1):
        message = (
            rf"global_block_indexes holds {bad}, but the anchor of width 24 has blocks 0 … 3: set "
            "it to null for the last of each quarter"
        )
        with pytest.raises(InputError, match=message):
            small_anchor(global_block_indexes=(1, bad))


def test_a_pretraining_size_below_a_patch_is_an_error():
    message = r"pretrain_img_size=50 is smaller than a patch of the pretraining \(64\)"
    with pytest.raises(InputError, match=message):
        small_anchor(pretrain_img_size=50, pretrain_patch_size=64)


def windows_only(**arguments):
    return small_anchor(global_block_indexes=(), use_rel_pos=False, **arguments).eval()


@torch.no_grad()
def test_with_absolute_win_every_window_sees_what_the_pretraining_saw():
    # A grid of the pretraining's 3 x 3 tokens is one window; nine of them are nine such images.
    whole, win = windows_only(), windows_only(abs_pos="win")
    win.load_state_dict(whole.state_dict() | {"pos_embed_global": torch.zeros(1, 9, 24)})
    x = images(144, 144, batch=1)
    crops = x.unfold(2, 48, 48).unfold(3, 48, 48).permute(0, 2, 3, 1, 4, 5).reshape(9, 3, 48, 48)
    expected = whole(crops)["last_feat"].reshape(3, 3, 24, 3, 3).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(win(x)["last_feat"][0], expected.reshape(24, 9, 9), **ROUNDING)
    # Interpolated positions give every window its piece of them.
    assert (whole(x)["last_feat"][0] - expected.reshape(24, 9, 9)).abs().max() > 0.1


@torch.no_grad()
def test_the_global_part_of_absolute_win_is_stretched_over_a_grid_that_windows_do_not_divide():
    anchor = windows_only(abs_pos="win")
    tokens = anchor.embed(torch.zeros(1, 3, 80, 64))
    assert tokens.shape == (1, 5, 4, 24)
    own = anchor.pos_embed.reshape(3, 3, 24)
    stretched = F.interpolate(
        anchor.pos_embed_global.reshape(1, 3, 3, 24).permute(0, 3, 1, 2), (5, 4), mode="bicubic"
    )[0]
    for row, column in ((0, 0), (2, 2), (3, 3), (4, 1)):
        expected = anchor.patch_embed.proj.bias + own[row % 3, column % 3]
        expected = expected + stretched[:, row, column]
        torch.testing.assert_close(tokens[0, row, column], expected, **ROUNDING)


def test_absolute_win_starts_without_a_global_part_and_needs_windows():
    anchor = AnchorViT(embed_dim=24, depth=2, num_heads=2, abs_pos="win")
    assert anchor.pos_embed_global.shape == anchor.pos_embed.shape == (1, 196, 24)
    assert anchor.pos_embed.any() and not anchor.pos_embed_global.any()
    with pytest.raises(InputError, match="abs_pos='win' repeats positions in every window: set a"):
        small_anchor(abs_pos="win", window_size=0)


def test_relative_positions_can_be_left_to_global_blocks():
    anchor = small_anchor(use_rel_pos="global")
    kinds = [block.attn.rel_pos for block in anchor.blocks]
    assert kinds == [None, "decomposed", None, "decomposed"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(abs_pos="none"), r"abs_pos=none must be one of \['interpolated', 'win', None"),
        (
            dict(use_rel_pos="all"),
            r"use_rel_pos=all must be one of \[True, False, 'gl",
        ),
        (
            dict(act_layer="quickgelu"),
            r"act_layer=quickgelu must be one of \['gelu', ",
        ),
        (dict(norm_eps="1e5x"), "norm_eps=1e5x must be a number above 0"),
        (
            dict(pretrain_pixel_mean=[0.5, 0.5]),
            r"pretrain_pixel_mean=\[0.5, 0.5\] must be three numbers, red, green",
        ),
        (
            dict(pretrain_pixel_std=[0.5] * 3),
            "three numbers, red, green and blue, of pixels",
        ),
        (
            dict(rel_pos_table=True, use_rel_pos=False),
            "rel_pos_table=True needs use_rel_pos=True",
        ),
    ],
)
def test_arguments_that_cannot_be_meant_are_errors(changes, message):
    with pytest.raises(InputError, match=message):
        small_anchor(**changes)


def test_activation_checkpointing_changes_memory_and_nothing_else():
    x = images()
    outputs, gradients, saved = [], [], []
    for checkpointing in (False, True):
        anchor = small_anchor(activation_checkpointing=checkpointing, drop_path_rate=0.5).train()
        torch.manual_seed(1)  # stochastic depth is not drawn again in the backward pass
        out = anchor(x)["last_feat"]
        saved.append(bytes_kept_for_backward(lambda anchor=anchor: anchor(x)["last_feat"]))
        out.square().mean().backward()
        outputs.append(out.detach())
        gradients.append({name: p.grad for name, p in anchor.named_parameters()})
    assert torch.equal(*outputs)
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
    assert saved[1] < 0.3 * saved[0]
    # Not in inference, where there is nothing to keep.
    anchor.eval()
    with torch.no_grad():
        torch.testing.assert_close(anchor(x)["last_feat"], small_anchor().eval()(x)["last_feat"])


@pytest.mark.parametrize("abs_pos", ["interpolated", "win"])
def test_absolute_positions_of_a_square_are_cropped_to_an_image(abs_pos):
    torch.manual_seed(0)
    anchor = AnchorViT(depth=1, abs_pos=abs_pos, window_size=4)
    for positions in (anchor.pos_embed, anchor.pos_embed_global):
        if positions is not None:
            torch.nn.init.normal_(positions)
    square = torch.randn(1, 3, 96, 96)
    expected = anchor.embed(square)
    image = square[..., :48, :]
    assert not torch.allclose(anchor.embed(image), expected[:, :3], atol=1e-3)
    anchor.position_side = 6
    torch.testing.assert_close(anchor.embed(image), expected[:, :3], atol=1e-6, rtol=0)
    torch.testing.assert_close(anchor.embed(square), expected, atol=0, rtol=0)


def test_tokens_are_contiguous_from_the_embedding_on():
    anchor = plain_anchor(depth=1)
    tokens = anchor.embed(torch.randn(2, 3, 64, 48))
    assert tokens.is_contiguous() and anchor.run_block(0, tokens).is_contiguous()


def test_an_image_that_patches_do_not_divide_is_padded_at_its_end():
    torch.manual_seed(0)
    anchor = plain_anchor()
    image = torch.randn(1, 3, 90, 77)
    padded = torch.zeros(1, 3, 96, 80)
    padded[..., :90, :77] = image
    assert torch.equal(anchor.embed(image), anchor.embed(padded))

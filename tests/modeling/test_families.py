"""Every plain ViT that timm knows: refused with a reason, or equal to timm's own blocks."""

from collections import Counter
from dataclasses import asdict
from functools import cache

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer_sam import VisionTransformerSAM
from vits import images, randomise

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import AnchorViT
from snnet_vitdet.modeling.conversion import convert_timm_state_dict
from snnet_vitdet.modeling.families import anchor_arguments, check_pretraining, plain_vit_names

# float32 after two blocks of activations of order 1 to 10.
ROUNDING = dict(rtol=1e-4, atol=1e-4)
FAMILIES = {
    "DeiT3": "deit3_base_patch16_224.fb_in22k_ft_in1k",
    "MAE": "vit_base_patch16_224.mae",
    "AugReg": "vit_base_patch16_224.augreg_in21k",
    "SAM": "samvit_base_patch16.sa1b",
    "BEiTv2": "beitv2_base_patch16_224.in1k_ft_in22k",
    "DINOv2": "vit_base_patch14_dinov2.lvd142m",
    "CLIP": "vit_base_patch16_clip_quickgelu_224.openai",
    "SigLIP": "vit_so400m_patch14_siglip_384.webli",
    "EVA": "eva_giant_patch14_224.clip_ft_in1k",
    "distilled DeiT": "deit_small_distilled_patch16_224.fb_in1k",
}


@cache
def decide(name):
    """The arguments of a model's anchor and None, or None and the reason against it."""
    try:
        return anchor_arguments(name), None
    except InputError as error:
        return None, str(error).removeprefix(f"{name} cannot be an anchor: ")


def test_a_model_that_is_no_plain_vit_is_refused():
    with pytest.raises(InputError, match="it is a SwinTransformer, no plain ViT"):
        anchor_arguments("swin_tiny_patch4_window7_224")
    with pytest.raises(InputError, match="timm cannot build 'vit_unheard_of'"):
        anchor_arguments("vit_unheard_of")


def small_pair(name):
    """A model of timm's with random weights, two blocks and little width, and its anchor."""
    arguments = dict(decide(name)[0])
    patch = arguments["pretrain_patch_size"]
    # Windows of 14 tokens on a grid of 16: SAM's are padded.
    size = patch * (16 if "window_size" in arguments else 4)
    changes = dict(depth=2, embed_dim=32, num_heads=2)
    more = {}
    if "window_size" in arguments:
        more = dict(global_attn_indexes=(1,))
        arguments["global_block_indexes"] = (1,)
    model = randomise(timm.create_model(name, img_size=size, num_classes=0, **changes, **more))
    arguments.update(changes, pretrain_img_size=size)
    arguments["mlp_ratio"] = model.blocks[0].mlp.fc1.out_features / 32
    arguments.setdefault("use_rel_pos", False)
    arguments.setdefault("window_size", 0)
    anchor = randomise(AnchorViT(img_size=size, patch_size=patch, **arguments), seed=1)
    return model.eval(), anchor.eval()


def timm_tokens(model, x):
    """timm's patch tokens before the first and after every block, as if there were no others.

    The class token takes part in timm's attention; detection has none. Where the blocks need one,
    nobody may look at it.
    """
    tokens = model.patch_embed(x)
    if isinstance(model, VisionTransformerSAM):
        yield (tokens := tokens if model.pos_embed is None else tokens + model.pos_embed)
        for block in model.blocks:
            yield (tokens := block(tokens))
        return
    tokens = tokens.reshape(len(tokens), -1, tokens.shape[-1])
    if model.pos_embed is not None:
        tokens = tokens + model.pos_embed[:, -tokens.shape[1] :]
    tokens = getattr(model, "norm_pre", torch.nn.Identity())(tokens)
    yield tokens
    options = {}
    if isinstance(model, Beit):
        tokens = torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1)
        options["shared_rel_pos_bias"] = torch.zeros(1, 1, tokens.shape[1], tokens.shape[1])
        options["shared_rel_pos_bias"][..., 1:, 0] = -torch.inf
    for block in model.blocks:
        tokens = block(tokens, **options)
        yield tokens[:, 1:] if isinstance(model, Beit) else tokens


@pytest.mark.parametrize("name", plain_vit_names())
@torch.no_grad()
def test_a_model_is_refused_or_equals_timm_after_every_block(name):
    arguments, reason = decide(name)
    if arguments is None:
        assert len(reason.split()) > 5
        return
    model, anchor = small_pair(name)
    anchor.load_state_dict(convert_timm_state_dict(model.state_dict(), anchor))
    size = anchor.pretraining.pretrain_img_size
    x = images(size, size)
    ours = anchor.embed(x)
    for index, theirs in enumerate(timm_tokens(model, x)):
        if index:
            ours = anchor.blocks[index - 1](ours)
        torch.testing.assert_close(ours.flatten(1, 2), theirs.reshape(2, -1, 32), **ROUNDING)
    assert index == 2


def test_list_of_accepted_and_refused(capsys):
    decisions = {name: decide(name) for name in plain_vit_names()}
    accepted = [name for name, (arguments, _) in decisions.items() if arguments]
    refused = {name: reason for name, (_, reason) in decisions.items() if reason}
    with capsys.disabled():
        print(f"\n{len(accepted)} of timm's plain ViTs can be anchors: {', '.join(accepted)}.")
        for reason, number in Counter(refused.values()).most_common():
            names = [name for name in refused if refused[name] == reason]
            print(f"{number} cannot, because {reason}: {', '.join(names)}.")
    assert {name.split(".")[0] for name in FAMILIES.values()} <= set(accepted)
    # As many as at least in the oldest timm that is taken.
    assert len(accepted) >= 100
    for name, words in (
        ("vit_base_patch14_reg4_dinov2", "register tokens"),
        ("vit_base_patch16_dinov3", "register tokens"),
        ("eva02_base_patch14_224", "rotary positions"),
        ("vit_giant_patch14_dinov2", "MLP is gated (GluMlp)"),
        ("aimv2_large_patch14_224", "MLP is gated (SwiGLU)"),
        ("beit3_base_patch16_224", "norms inside attention or MLP"),
        ("vit_base_patch16_rpn_224", "ResPostBlock"),
        ("vit_base_patch16_xp_224", "ParallelScalingBlock"),
    ):
        assert words in refused[name]
    # Nothing is refused for a reason that is not one of ours.
    assert not [reason for reason in refused.values() if reason.startswith("timm cannot build")]


@torch.no_grad()
def test_pixels_normalised_as_the_detector_does_give_what_timm_gives_for_its_own():
    model, anchor = small_pair("vit_base_patch16_224.augreg_in21k")
    detector_mean, detector_std = (torch.tensor(v) for v in ((124.0, 116.0, 104.0), (58.0, 57, 60)))
    state = convert_timm_state_dict(
        model.state_dict(),
        anchor,
        pixel_mean=detector_mean.tolist(),
        pixel_std=detector_std.tolist(),
    )
    anchor.load_state_dict(state)
    pixels = 255 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    first = next(timm_tokens(model, pixels / 127.5 - 1))
    normalised = (pixels - detector_mean[:, None, None]) / detector_std[:, None, None]
    torch.testing.assert_close(anchor.embed(normalised).flatten(1, 2), first, **ROUNDING)


@torch.no_grad()
def test_patches_of_14_pixels_see_in_16_what_they_saw_before_the_image_was_stretched():
    model, narrow = small_pair(FAMILIES["DINOv2"])
    wide = AnchorViT(**{**asdict(narrow.pretraining), "window_size": 0, "patch_size": 16}).eval()
    wide.load_state_dict(convert_timm_state_dict(model.state_dict(), wide), strict=False)
    narrow.load_state_dict(convert_timm_state_dict(model.state_dict(), narrow))
    x = images(56, 56)
    # Patch by patch, as FlexiViT's resampling is defined.
    patches = x.unfold(2, 14, 14).unfold(3, 14, 14).reshape(-1, 1, 14, 14)
    patches = torch.nn.functional.interpolate(patches, (16, 16), mode="bicubic", antialias=True)
    stretched = patches.reshape(2, 3, 4, 4, 16, 16).transpose(3, 4).reshape(2, 3, 64, 64)
    torch.testing.assert_close(wide.embed(stretched), narrow.embed(x), **ROUNDING)


def test_tables_of_beit_are_stretched_to_global_blocks_and_kept_in_windows():
    model, anchor = small_pair("beitv2_base_patch16_224")
    changes = {"img_size": 160, "window_size": 4, "global_block_indexes": (1,)}
    large = AnchorViT(**asdict(anchor.pretraining) | changes)
    state = convert_timm_state_dict(model.state_dict(), large)
    table = model.blocks[0].attn.relative_position_bias_table[:-3].T.reshape(2, 7, 7)
    assert torch.equal(state["blocks.0.attn.rel_pos_table"], table)
    stretched = state["blocks.1.attn.rel_pos_table"]
    assert stretched.shape == (2, 19, 19)
    # No offset stays no offset, the farthest the farthest.
    own = model.blocks[1].attn.relative_position_bias_table[:-3].T.reshape(2, 7, 7)
    torch.testing.assert_close(stretched[:, 9, 9], own[:, 3, 3], **ROUNDING)
    torch.testing.assert_close(stretched[:, ::18, ::18], own[:, ::6, ::6], **ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_anchor_made_of_its_arguments_fits_and_others_are_told_what_to_change(family):
    name = FAMILIES[family]
    arguments = anchor_arguments(name)
    with torch.device("meta"):
        anchor = AnchorViT(img_size=512, patch_size=16, **arguments)
        other = AnchorViT(img_size=512, patch_size=16, **arguments | {"norm_eps": 0.5})
    check_pretraining(anchor, name)
    message = rf"{name} needs an anchor with norm_eps=1e-0\d instead of 0.5; tools/list_anchors.py"
    with pytest.raises(InputError, match=message):
        check_pretraining(other, name)

"""Anchors of other families, trained and swept from files as timm would give them."""

import csv

import pytest
import timm
import torch
from in_process import run_main

from snnet_vitdet.modeling.families import anchor_arguments

pytestmark = pytest.mark.slow

NET = "model.backbone.net"


@pytest.fixture
def weights_of(tmp_path):
    """Writes the weights of a small timm model; gives the overrides that make an anchor of them."""

    def weights_of(anchor, name, width, depth, **changes):
        torch.manual_seed(width)
        arguments = anchor_arguments(name)
        patch = arguments["pretrain_patch_size"]
        model = timm.create_model(
            name, img_size=4 * patch, embed_dim=width, depth=depth, num_heads=2, num_classes=3
        )
        path = tmp_path / f"{anchor}.pth"
        torch.save(model.state_dict(), path)
        hidden = model.blocks[0].mlp.fc1.out_features
        arguments.update(embed_dim=width, depth=depth, num_heads=2, mlp_ratio=hidden / width)
        arguments.update(pretrain_img_size=4 * patch, **changes)
        arguments.pop("global_block_indexes", None)
        written = {key: "null" if v is None else v for key, v in arguments.items()}
        return model.state_dict(), [
            f"init.weights.{anchor}={path}",
            *(
                f"{NET}.{anchor}.{key}={str(v).replace('(', '[').replace(')', ']')}"
                for key, v in written.items()
            ),
        ]

    return weights_of


@pytest.mark.parametrize(
    ("small", "large"),
    [
        # Patches of 14 pixels beside 16, LayerScale beside none, and pixels normalised otherwise.
        ("vit_small_patch14_dinov2", "deit3_large_patch16_224"),
        ("vit_base_patch16_clip_quickgelu_224", "vit_large_patch14_clip_quickgelu_224"),
        ("beitv2_base_patch16_224", "beitv2_large_patch16_224"),
        ("vit_base_patch16_224", "samvit_large_patch16"),
    ],
    ids=["DINOv2 with DeiT3", "CLIP", "BEiTv2", "AugReg with SAM"],
)
def test_a_pair_is_fitted_trained_and_swept(
    small, large, tiny_config, weights_of, tmp_path, restored_logging
):
    # SAM's windows of 14 tokens do not fit into 4; BEiT's table is for the whole image.
    window = {"window_size": 2}
    small_state, small_overrides = weights_of("small", small, 32, 4, **window)
    _, large_overrides = weights_of("large", large, 48, 8, **window)
    overrides = [
        *small_overrides,
        *large_overrides,
        f"train.output_dir={tmp_path / 'output'}",
        "train.max_iter=2",
        "train.eval_period=0",
        "train.eval_stitches=[0]",
        "init.num_images=4",
    ]
    run_main(tiny_config(*overrides))
    start = torch.load(tmp_path / "output/model_init.pth")["model"]
    end = torch.load(tmp_path / "output/model_final.pth")["model"]
    key = "blocks.2.mlp.fc1.weight"
    assert torch.equal(start[f"backbone.net.small.{key}"], small_state[key])
    assert all(value.isfinite().all() for value in end.values())
    assert any(not torch.equal(start[name], end[name]) for name in start if ".small.blocks" in name)
    sweep = [*overrides, "sweep.stitch_ids='S,L,SFS-1-2'"]
    run_main(tiny_config(*sweep), "--eval-only")
    with open(tmp_path / "output/sweep/stitches.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["S", "L", "SFS-1-2"]


@pytest.mark.parametrize(
    "changes",
    [
        dict(abs_pos="win", use_rel_pos="global"),
        dict(window_size=4),
        dict(abs_pos="null", rel_pos_table=True),
    ],
    ids=["absolute-win", "windows of another size", "tables"],
)
def test_positions_of_every_kind_are_trained(changes, tiny_config, tmp_path, restored_logging):
    overrides = [
        f"{NET}.{anchor}.{key}={value}"
        for anchor in ("small", "large")
        for key, value in changes.items()
    ]
    run_main(
        tiny_config(
            *overrides,
            f"train.output_dir={tmp_path}",
            "train.max_iter=3",
            "train.eval_period=0",
            "train.eval_stitches=[0]",
            "init.num_images=2",
        )
    )
    start, end = (torch.load(tmp_path / f"model_{when}.pth")["model"] for when in ("init", "final"))
    assert start.keys() == end.keys()
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    positions = {name for name in start if "pos" in name.rpartition(".")[2]}
    assert positions & moved
    if "window_size" in changes:
        assert {len(start[name]) for name in positions if "rel_pos" in name} == {7}
    if changes.get("abs_pos") == "win":
        added = {name for name in positions if name.endswith("pos_embed_global")}
        assert len(added) == 2 and not any(start[name].any() for name in added)
        assert added & moved

"""Small ViTs; no parameter has its start value."""

import torch
from torch import nn

from snnet_vitdet.modeling import AnchorViT, StitchedViT


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draws every parameter at random and keeps activations O(1)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            mean, std = 0.0, 0.3
            if parameter.ndim > 1:
                std = parameter[0].numel() ** -0.5
            elif name.endswith("weight"):
                mean = 1.0
            elif name.endswith("gamma"):
                mean = 0.5
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(mean + std * noise)
    return module


def small_anchor(**changes) -> AnchorViT:
    """4 blocks, 24 wide; windows of 3 tokens, so that a grid of 4 is padded."""
    arguments = dict(
        img_size=64,
        embed_dim=24,
        depth=4,
        num_heads=2,
        window_size=3,
        global_block_indexes=(1, 3),
        pretrain_img_size=48,
    )
    return randomise(AnchorViT(**arguments | changes), seed=1)


def large_anchor(**changes) -> AnchorViT:
    """8 blocks, 40 wide."""
    arguments = dict(embed_dim=40, depth=8, num_heads=4, global_block_indexes=(1, 3, 5, 7))
    return randomise(small_anchor(**arguments | changes), seed=2)


def stitched_vit(**changes) -> StitchedViT:
    """The two anchors with all 14 stitches, in evaluation mode."""
    net = StitchedViT(small_anchor(), large_anchor(), **dict(lora_rank=3) | changes)
    randomise(net.stitching_layers, seed=3)
    return net.eval()


def images(height: int = 64, width: int = 64, batch: int = 2, seed: int = 4) -> torch.Tensor:
    """(batch, 3, height, width), as if normalised."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))

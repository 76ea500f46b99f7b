"""What a training of the supernet costs."""

from collections.abc import Sequence

from detectron2.config import instantiate
from omegaconf import DictConfig

__all__ = ["training_cost"]


def training_cost(config: DictConfig, gflops: Sequence[float]) -> float:
    """Mean arithmetic of an image in training, relative to training the large ViT alone.

    Args:
        config: Of the training.
        gflops: Cost of every stitch, by id; the dearest is the large ViT.
    """
    sampler = config.sampler.copy()
    sampler.gflops = list(gflops)
    probabilities = instantiate(sampler).probabilities()
    mean = sum(p * cost for p, cost in zip(probabilities, gflops, strict=True))
    return mean / max(gflops)

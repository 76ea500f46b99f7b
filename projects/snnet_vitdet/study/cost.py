"""What a training of the supernet costs."""

from omegaconf import DictConfig

from snnet_vitdet.engine.distillation import distillation_cost
from snnet_vitdet.engine.samplers import build_sampler, mean_gflops, training_shares
from snnet_vitdet.stitching import CostTable

__all__ = ["training_cost"]


def training_cost(config: DictConfig, costs: CostTable) -> float:
    """Mean arithmetic of an image in training, relative to training the large ViT alone.

    Args:
        config: Of the training.
        costs: Of the stitches of its model; the dearest is the large ViT.
    """
    sampler = build_sampler(config, costs)
    mean = mean_gflops(training_shares(sampler, config.train.max_iter), costs)
    mean += distillation_cost(config.train, costs, sampler)
    return mean / max(costs.gflops)

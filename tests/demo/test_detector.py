"""The detector of the page, whatever the number of objects."""

import numpy as np
import pytest
import torch
from detectron2.config import instantiate

from snnet_vitdet import Predictor
from snnet_vitdet.demo.detector import SharedDetector


@pytest.mark.parametrize("count", [0, 1, 2])
def test_so_many_objects_are_drawn_and_listed(tiny_config, count):
    torch.manual_seed(0)
    config = tiny_config("model.roi_heads.num_classes=3")
    mapper = config.dataloader.test.mapper
    predictor = Predictor.of_model(instantiate(config.model), ["a", "b", "c"], mapper, device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    scores = predictor(image, stitch=3).scores.sort(descending=True).values
    min_score = [1.0, *scores.tolist()][count]
    found = SharedDetector(predictor).detect(image, 3, min_score)
    assert len(found.objects) == count and found.picture.shape[2] == 3
    assert all(score >= min_score for _, score in found.objects)

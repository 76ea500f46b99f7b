"""COCO-format data by path; a recipe sets the paths, the image size and the augmentations."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.evaluation import COCOEvaluator
from omegaconf import OmegaConf

from snnet_vitdet.data import (
    CheckedMapper,
    build_evaluation_loader,
    build_train_loader,
    coco_dicts,
    dataset_name,
)
from snnet_vitdet.engine import DataSettings, as_config

data = as_config(DataSettings(masks="auto"))

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(coco_dicts)(
        json_file="${data.train_json}", image_root="${data.train_images}", filter_empty=True
    ),
    mapper=L(CheckedMapper)(
        is_train=True,
        # Large-scale jitter (https://arxiv.org/abs/2012.07177), as ViTDet trains.
        augmentations=[
            L(T.RandomFlip)(horizontal=True),
            L(T.ResizeScale)(
                min_scale=0.1,
                max_scale=2.0,
                target_height="${data.image_size}",
                target_width="${data.image_size}",
            ),
            L(T.FixedSizeCrop)(crop_size=["${data.image_size}", "${data.image_size}"], pad=False),
        ],
        image_format="RGB",
        use_instance_mask=True,
        # Boxes of objects that the crop has cut.
        recompute_boxes=True,
    ),
    total_batch_size=8,
    num_workers=4,
    seed="${train.seed}",
)

dataloader.test = L(build_evaluation_loader)(
    dataset=L(coco_dicts)(
        json_file="${data.test_json}", image_root="${data.test_images}", filter_empty=False
    ),
    mapper=L(CheckedMapper)(
        is_train=False,
        augmentations=[
            L(T.ResizeShortestEdge)(
                short_edge_length="${data.image_size}", max_size="${data.image_size}"
            ),
        ],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(COCOEvaluator)(
    dataset_name=L(dataset_name)(json_file="${data.test_json}", image_root="${data.test_images}"),
    # Needs detectron2's compiled operators, and is not the official scorer.
    use_fast_impl=False,
)

"""What all tests share: one thread, quick tests before slow ones, small detectors."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import pytest
import torch
import train_net
from browser import browser  # noqa: F401  (a fixture)
from detectron2.engine import default_argument_parser
from detectron2.utils.logger import setup_logger
from hypothesis import HealthCheck, settings
from omegaconf import DictConfig

from snnet_vitdet.data import ShapesPaths, generate_shapes
from snnet_vitdet.engine import load_config

# Several pytest processes, data workers or gloo processes on two cores stall in OpenMP's barriers
# otherwise; nothing here is large enough to need more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# Property tests: the same examples in every run, and no failure for a slow machine.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Runs what is marked slow last, in the order it was found; nightly tests if asked for."""
    if "nightly" not in config.getoption("markexpr"):
        nightly = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


ROOT = Path(__file__).parent.parent
NANO = "configs/shapes/mask_rcnn_snnet_nano.py"


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> ShapesPaths:
    """Eight training and two test images of 64 pixels."""
    return generate_shapes(str(tmp_path_factory.mktemp("scenes") / "tiny"), 8, 2, 64)


@pytest.fixture(scope="session")
def tiny_overrides(tiny_scenes: ShapesPaths) -> list[str]:
    """Overrides of the embedded default: 14 stitches of 32 and 48 wide anchors, on a CPU."""
    net, heads = "model.backbone.net", "model.roi_heads"
    return [
        "data.image_size=64",
        f"data.prepare.root={Path(tiny_scenes.train_json).parent}",
        "data.prepare.num_train=8",
        "data.prepare.num_test=2",
        f"{net}.small.window_size=2",
        f"{net}.large.window_size=2",
        f"{net}.small.pretrain_img_size=64",
        f"{net}.large.pretrain_img_size=64",
        f"{net}.small.embed_dim=32",
        f"{net}.small.num_heads=2",
        f"{net}.large.embed_dim=48",
        f"{net}.large.num_heads=3",
        f"{net}.lora_rank=4",
        # Other widths than those of the bundled weights.
        *(f"init.weights.{vit}=null" for vit in ("small", "large")),
        *(f"optimizer.params.lr_factor_func.rates.{vit}=1.0" for vit in ("small", "large")),
        "model.proposal_generator.pre_nms_topk=[60,40]",
        "model.proposal_generator.post_nms_topk=[40,20]",
        f"{heads}.batch_size_per_image=16",
        f"{heads}.box_head.fc_dims=[64]",
        f"{heads}.box_predictor.input_shape.channels=64",
        "sampler.step=0.002",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "train.device=cpu",
    ]


@pytest.fixture(scope="session")
def tiny_config(tiny_overrides: list[str]) -> Callable[..., DictConfig]:
    """Makes the config of the tiny detector with further overrides."""
    return lambda *overrides: load_config(str(ROOT / NANO), [*tiny_overrides, *overrides])


@pytest.fixture(scope="module")
def restored_logging() -> Iterator[None]:
    """Undoes what runs do to the loggers of the process, whose records other modules capture."""
    with _restored_logging():
        yield


@pytest.fixture(scope="session")
def trained_tiny(
    tiny_config: Callable[..., DictConfig],
    tiny_scenes: ShapesPaths,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., DictConfig]:
    """Makes the config, with further overrides, of a sweep of a tiny detector that finds objects.

    It is swept on its eight training images: APs then differ from stitch to stitch and from 0. It
    is trained until, whatever the machine's arithmetic, half of what it is surest of is right.
    """
    output = tmp_path_factory.mktemp("trained")
    on_training_images = (
        f"data.test_json={tiny_scenes.train_json}",
        f"data.test_images={tiny_scenes.train_images}",
    )
    config = tiny_config(
        *on_training_images,
        f"train.output_dir={output}",
        "train.max_iter=400",
        "train.eval_stitches=[0]",
        "optimizer.lr=1e-3",
        "dataloader.train.total_batch_size=4",
    )
    with _restored_logging():
        train_net.main(default_argument_parser().parse_args([]), config)
    checkpoint = output / "model_final.pth"

    def make(output_dir: Path, *overrides: str) -> DictConfig:
        return tiny_config(
            *on_training_images,
            f"train.output_dir={output_dir}",
            f"train.init_checkpoint={checkpoint}",
            *overrides,
        )

    return make


@pytest.fixture(scope="session")
def swept(
    trained_tiny: Callable[..., DictConfig], tmp_path_factory: pytest.TempPathFactory
) -> DictConfig:
    """The config of the tiny detector with a sweep of all its stitches beside it, to be read."""
    # So short a training is sure of little.
    low = "model.roi_heads.box_predictor.test_score_thresh=0.01"
    config = trained_tiny(tmp_path_factory.mktemp("swept"), low)
    with _restored_logging():
        train_net.main(default_argument_parser().parse_args(["--eval-only"]), config)
    return config


@contextmanager
def _restored_logging() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("", "detectron2", "fvcore", "snnet_vitdet")]
    before = [(log, log.level, log.propagate, list(log.handlers)) for log in loggers]
    setup_logger.cache_clear()
    try:
        yield
    finally:
        setup_logger.cache_clear()
        for log, level, propagate, handlers in before:
            log.setLevel(level)
            log.propagate = propagate
            log.handlers[:] = handlers

"""Training over several image sizes."""

import pytest
import train_net
from detectron2.engine import default_argument_parser
from in_process import run_main
from runs import assert_same_tensors, metrics_of, trained_iterations, weights

from snnet_vitdet.engine import build_sampler, costs_by_size, preflight
from snnet_vitdet.errors import InputError

SIZES = "train.image_sizes=[32,64,96]"


@pytest.fixture
def make(tiny_config):
    """Makes the config of a training of six iterations over three sizes."""
    return lambda output, *overrides: tiny_config(
        *(SIZES, f"train.output_dir={output}", "train.max_iter=6", "train.log_period=1"),
        *("train.eval_period=0", "train.eval_stitches=[0]", "init.num_images=2"),
        *("train.checkpointer.period=3", *overrides),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("restored_logging")
def test_a_resumed_training_goes_on_with_the_sizes_and_stitches_to_come(make, tmp_path):
    config = make(tmp_path / "whole", "train.accumulation.steps=2")
    train_net.main(default_argument_parser().parse_args([]), config)
    noted = [line for line in metrics_of(tmp_path / "whole") if "total_loss" in line]
    sizes = [line["image_size"] for line in noted]
    assert len(sizes) == 6 and len(set(sizes)) > 1 and set(sizes) <= {32, 64, 96}
    # Each size has its own costs, and so its own groups.
    samplers = {size: build_sampler(config, table) for size, table in costs_by_size(config).items()}
    assert [line["stitch_id"] for line in noted] == [
        samplers[size](iteration, 1) for iteration, size in enumerate(sizes)
    ]
    parts = make(tmp_path / "parts", "train.accumulation.steps=2")
    train_net.main(default_argument_parser().parse_args([]), parts)
    (tmp_path / "parts" / "model_final.pth").unlink()
    (tmp_path / "parts" / "model_0000005.pth").unlink()
    (tmp_path / "parts" / "last_checkpoint").write_text("model_0000002.pth")
    run_main(make(tmp_path / "parts", "train.accumulation.steps=2"), "--resume")
    assert_same_tensors(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.usefixtures("restored_logging")
def test_one_size_trains_what_a_training_of_that_size_trains(make, tmp_path):
    only = make(tmp_path / "only", "train.image_sizes=[64]")
    train_net.main(default_argument_parser().parse_args([]), only)
    # The step that is measured before the training changes nothing.
    assert "Most expensive step at 64 pixels" in (tmp_path / "only/log.txt").read_text()
    plain = make(tmp_path / "plain", "train.image_sizes=null")
    train_net.main(default_argument_parser().parse_args([]), plain)
    assert_same_tensors(weights(tmp_path / "only"), weights(tmp_path / "plain"))


@pytest.mark.slow
@pytest.mark.usefixtures("restored_logging")
def test_a_training_begun_from_another_size_is_resumed(tiny_config, tmp_path):
    first = tiny_config(
        *(f"train.output_dir={tmp_path / 'first'}", "train.max_iter=2", "train.eval_period=0"),
        *("train.eval_stitches=[0]", "init.num_images=2"),
    )
    train_net.main(default_argument_parser().parse_args([]), first)
    overrides = (
        *("data.image_size=96", "train.max_iter=2", "train.eval_stitches=[0]"),
        f"train.init_checkpoint={tmp_path / 'first' / 'model_final.pth'}",
    )
    own = tiny_config(*overrides, f"train.output_dir={tmp_path / 'second'}")
    train_net.main(default_argument_parser().parse_args([]), own)
    key = "backbone.net.small.blocks.1.attn.rel_pos_h"
    assert [len(weights(tmp_path / name)[key]) for name in ("first", "second")] == [7, 11]
    more = tiny_config(*overrides, f"train.output_dir={tmp_path / 'second'}", "train.max_iter=3")
    run_main(more, "--resume")
    assert trained_iterations(tmp_path / "second")[-1] == 2
    other = tiny_config(f"train.output_dir={tmp_path / 'second'}", "train.max_iter=4")
    with pytest.raises(InputError, match="has data.image_size=96.*but the config now has.*64"):
        run_main(other, "--resume")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.image_sizes=[64,72]", r"train.image_sizes=\[64, 72\]: image size 72 is not a mul"),
        ("train.image_sizes=[16]", "each a whole number of at least 32"),
        (
            "dataloader.train.mapper.augmentations=[]",
            "dataloader.train.mapper.augmentations does not follow data.image_size",
        ),
        (
            "dataloader.train._target_=detectron2.data.build_detection_train_loader",
            "train.image_sizes needs the loader of build_train_loader",
        ),
    ],
)
def test_sizes_that_cannot_be_trained_are_refused(make, tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        preflight(make(tmp_path, override), evaluation=False, resume=False, num_processes=1)

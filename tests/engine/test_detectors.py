"""Two trained detectors into a joined one, from every kind of file they come in."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.config import instantiate

from snnet_vitdet.deploy.export_file import export_stitch
from snnet_vitdet.engine import load_detectors
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import anchor_alone, join_configs
from snnet_vitdet.stitching import LARGE, SMALL

NAMES = ["circle", "triangle", "square", "star", "cross", "ring"]
EXITS = {"small": SMALL, "large": LARGE}


@pytest.fixture
def configs(tiny_config):
    """Of the two detectors, in the config of a run."""
    config = tiny_config()
    return {name: anchor_alone(config.model, name) for name in EXITS}


@pytest.fixture
def two(configs):
    torch.manual_seed(0)
    return {name: instantiate(config) for name, config in configs.items()}


@pytest.fixture
def joined(configs):
    torch.manual_seed(1)
    return instantiate(join_configs(configs["small"], configs["large"], lora_rank=4))


def saved(detector, path, names=NAMES):
    torch.save({"model": detector.state_dict(), "classes": {"thing_classes": names}}, path)
    return str(path)


def assert_loaded(joined, two):
    for name, detector in two.items():
        expected = detector.state_dict()
        found = joined.detector(EXITS[name]).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_checkpoints_of_trainings_are_taken_whole(two, joined, tmp_path):
    sources = {name: saved(detector, tmp_path / f"{name}.pth") for name, detector in two.items()}
    load_detectors(joined, sources, NAMES)
    assert_loaded(joined, two)


def test_detectron2_s_own_vitdet_is_taken(two, joined, tmp_path):
    """As its model zoo has them: arrays in a pickle, positions with the class token's place."""
    sources = {}
    for name, detector in two.items():
        state = {key: value.numpy() for key, value in detector.state_dict().items()}
        positions = state["backbone.net.pos_embed"]
        state["backbone.net.pos_embed"] = np.concatenate(
            [np.full_like(positions[:, :1], 7), positions], axis=1
        )
        sources[name] = str(tmp_path / f"{name}.pkl")
        with open(sources[name], "wb") as file:
            pickle.dump({"model": state, "__author__": "detectron2"}, file)
    load_detectors(joined, sources, NAMES)
    assert_loaded(joined, two)


def test_exported_files_are_taken(two, joined, tiny_config, tmp_path):
    sources = {}
    for name, detector in two.items():
        config = tiny_config(f"train.output_dir={tmp_path}")
        config.model = anchor_alone(config.model, name)
        sources[name] = str(tmp_path / f"{name}.safetensors")
        export_stitch(sources[name], detector.eval(), config, None, NAMES)
    load_detectors(joined, sources, NAMES)
    assert_loaded(joined, two)
    with pytest.raises(InputError, match="trained for the classes"):
        load_detectors(joined, sources, NAMES[::-1])


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda s: s.pop("small"), "init.detectors.small is not set: give the checkpoint"),
        (lambda s: s.update(large="nix.pth"), r"init\.detectors\.large=nix\.pth: .*not exist"),
        (lambda s: s.update(small=s["large"]), r"init\.detectors\.small=.*not one of this model"),
        (lambda s: s.update(large=s["other"]), r"init\.detectors\.large=.*trained for the classes"),
    ],
)
def test_what_does_not_fit_is_refused(change, refused, two, joined, tmp_path):
    sources = {name: saved(detector, tmp_path / f"{name}.pth") for name, detector in two.items()}
    sources["other"] = saved(two["large"], tmp_path / "other.pth", NAMES[::-1])
    change(sources)
    with pytest.raises(InputError, match=refused):
        load_detectors(joined, sources, NAMES)

"""No weight file runs code, whichever program reads it; wrong content is a sentence."""

import os
import pickle
import socket
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import train_net
from detectron2.config import instantiate
from detectron2.engine import default_argument_parser
from in_process import run_program

from snnet_vitdet.demo import __main__ as demo
from snnet_vitdet.deploy import Predictor
from snnet_vitdet.engine import (
    StrictCheckpointer,
    checkpoint_to_evaluate,
    checkpoint_to_resume,
    load_anchors,
    preflight,
    save_config,
    saved_facts,
)
from snnet_vitdet.errors import InputError
from snnet_vitdet.weight_files import check_state_dict, read_weight_file

NANO = "configs/shapes/mask_rcnn_snnet_nano.py"
SUFFIXES = ["", ".PKL", ".pth", ".safetensors"]


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def trap_in_a_zip(content, path):
    """Writes a file of torch.save with a pickle that torch would not write."""
    torch.save({"model": {}}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            is_pickle = name.endswith("data.pkl")
            archive.writestr(name, pickle.dumps(content, 2) if is_pickle else data)


FORMATS = {
    "text pickle": lambda content, path: path.write_bytes(pickle.dumps(content, 0)),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content, 2)),
    "framed pickle": lambda content, path: path.write_bytes(pickle.dumps(content, 4)),
    "torch": torch.save,
    "torch, by hand": trap_in_a_zip,
    "old torch": lambda content, path: torch.save(
        content, path, _use_new_zipfile_serialization=False
    ),
}


@pytest.fixture
def trapped(tmp_path):
    """Writes a file that makes a folder if its code runs; checks at the end that it did not."""
    trace = tmp_path / "sprung"

    def write(name, kind="pickle"):
        content = {"model": {"a": torch.ones(2)}, "__author__": Trap(trace)}
        FORMATS[kind](content, tmp_path / name)
        return tmp_path / name

    yield write
    assert not trace.exists()


def test_a_trap_is_one(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", FORMATS)
def test_code_is_refused_under_any_name_in_any_format(trapped, kind, suffix):
    path = trapped(f"w{suffix}", kind)
    for read in (
        read_weight_file,
        saved_facts,
        lambda path: StrictCheckpointer(torch.nn.Linear(1, 1)).load(path),
    ):
        with pytest.raises(InputError, match="cannot be read"):
            read(str(path))


@pytest.fixture
def by_way(
    tiny_config, tiny_overrides, tiny_scenes, tmp_path, monkeypatch, capsys, root, restored_logging
):
    """The programs and functions that read weights; each must end with an error message."""
    output = tmp_path / "output"
    own = [f"train.output_dir='{output}'", *tiny_overrides]
    config_file = ["--config-file", str(root / NANO)]

    def main(*flags, key="train.init_checkpoint"):
        def run(path):
            config = tiny_config(f"train.output_dir='{output}'", f"{key}='{path}'")
            with pytest.raises(InputError) as error:
                preflight(config, evaluation="--eval-only" in flags, resume=False, num_processes=1)
                train_net.main(default_argument_parser().parse_args([*flags]), config)
            return str(error.value)

        return run

    def program(name, *options):
        def run(path):
            given = [option.format(path=path) for option in options]
            finished = run_program(name, *given[:1], *config_file, *given[1:], *own)
            # 1, or what was raised, if it were not a sentence.
            assert finished.code == 2, finished.printed + finished.error
            return finished.printed + finished.error

        return run

    def page(path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        arguments = ["demo", *config_file, "--weights", str(path), "--port", port, *own]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as end:
            demo.main()
        assert end.value.code == 2
        return capsys.readouterr().err

    def predictor(path):
        with pytest.raises(InputError) as error:
            Predictor(tiny_config(f"train.output_dir='{output}'"), str(path))
        return str(error.value)

    def noted(path):
        output.mkdir()
        (output / path.name).write_bytes(path.read_bytes())
        (output / "last_checkpoint").write_text(path.name)
        save_config(tiny_config(f"train.output_dir='{output}'"), str(output / "config.yaml"))
        with pytest.raises(InputError) as resumed:
            checkpoint_to_resume(str(output))
        with pytest.raises(InputError) as predicted:
            Predictor(output)
        return f"{resumed.value} {predicted.value}"

    return {
        "training": main(),
        "sweep": main("--eval-only"),
        "anchor": main(key="init.weights.small"),
        "check_dataset": program(
            "tools/check_dataset.py", "--headers-only", "train.init_checkpoint='{path}'"
        ),
        "predict": program("tools/predict.py", tiny_scenes.test_images, "--weights", "{path}"),
        "export": program("tools/export_stitch.py", "--stitch=S", "--weights", "{path}"),
        "page": page,
        "predictor": predictor,
        "last_checkpoint": noted,
    }


WAYS = ["training", "sweep", "anchor", "check_dataset", "predict", "export", "page", "predictor"]
WAYS += ["last_checkpoint"]


@pytest.mark.parametrize("way", WAYS)
def test_no_way_in_runs_the_code_of_a_file(trapped, by_way, way):
    assert "cannot be read" in by_way[way](trapped("w.pth", "torch, by hand"))


NO_STATES = {
    "list": ([torch.ones(2)], "but a list"),
    "text": ("some text", "but a str"),
    "tensor": (torch.ones(2), "but a Tensor"),
    "nothing": ({}, "but nothing"),
    "list of weights": ({"model": [torch.ones(2)]}, "a list"),
    "text as weight": ({"model": {"a": "text"}}, "'a' is a str"),
    "list as weight": ({"model": {"a": [1.0, 2.0]}}, "'a' is a list"),
    "number as weight": ({"a": 3}, "'a' is a int"),
    "number as name": ({1: torch.ones(2)}, "1 is a int, not a name"),
    "sparse": ({"model": {"a": torch.eye(3).to_sparse()}}, "'a' is a sparse tensor"),
    "complex": ({"model": {"a": torch.ones(2, dtype=torch.cfloat)}}, "'a' is a tensor of torch.co"),
    "without values": ({"model": {"a": torch.ones(2, device="meta")}}, "'a' is a tensor without"),
    "spread": ({"model": {"a": torch.zeros(1).expand(10**12)}}, "of which the file holds a part"),
    "NaN": ({"model": {"a": torch.tensor([1.0, float("nan")])}}, "'a' holds NaN or infinite"),
    "infinite": ({"model": {"a": torch.tensor([float("inf")])}}, "'a' holds NaN or infinite"),
    "wide": ({"a": torch.tensor([1e300], dtype=torch.float64)}, "'a' holds NaN or infinite"),
    "nested": ({"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, "is a nested"),
}


@pytest.mark.parametrize("name", NO_STATES)
def test_what_is_no_state_dict_is_refused_where_it_is_loaded(tmp_path, tiny_config, name):
    content, expected = NO_STATES[name]
    path = tmp_path / "w.pth"
    torch.save(content, path)
    model = instantiate(tiny_config().model)
    for load in (
        lambda: StrictCheckpointer(model).load(str(path)),
        lambda: load_anchors(model, {"small": str(path)}),
    ):
        with pytest.raises(InputError) as error:
            load()
        assert "holds no state dict (names to tensors)" in str(error.value)
        assert expected in str(error.value)


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("classes", ["fig"]),
        ("classes", {"thing_classes": "fig"}),
        ("classes", {"thing_classes": [1, 2]}),
        ("trainer", "text"),
        ("trainer", {"iteration": "9"}),
        ("ema", torch.ones(2)),
        ("ema", {"weights": {"weight": torch.ones(1, 1)}}),
    ],
)
def test_other_parts_of_a_checkpoint_are_as_this_project_saves_them(tmp_path, part, content):
    path = str(tmp_path / "w.pth")
    state = torch.nn.Linear(1, 1).state_dict()
    torch.save({"model": state, part: content}, path)
    for read in (saved_facts, StrictCheckpointer(torch.nn.Linear(1, 1)).load):
        with pytest.raises(InputError, match=f"the part '{part}' of checkpoint .*w.pth is not as"):
            read(path)


def test_the_state_of_another_optimizer_is_a_sentence(tmp_path):
    model = torch.nn.Linear(1, 1)
    saved = StrictCheckpointer(model, str(tmp_path), rest=torch.optim.SGD(model.parameters()))
    saved.save("model_final")
    groups = [{"params": [parameter]} for parameter in model.parameters()]
    other = StrictCheckpointer(model, str(tmp_path), rest=torch.optim.SGD(groups))
    with pytest.raises(InputError, match=r"does not fit this training \(ValueError: loaded state"):
        other.load(str(tmp_path / "model_final.pth"))


ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.array(3),
    "empty": np.zeros((0, 3), np.float16),
    "other byte order": np.arange(3, dtype=">i4"),
    "bytes": np.arange(5, dtype=np.uint8)[::-1],
    "truths": np.array([True, False]),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_arrays_of_a_model_zoo_pickle_are_read_to_the_bit(tmp_path, protocol, core):
    content = {"model": OrderedDict(ARRAYS), "__author__": "zoo", "matching_heuristics": True}
    data = pickle.dumps(content, protocol)
    if protocol < 4:  # whose names are no part of a frame with a length
        data = data.replace(b"numpy._core.", f"{core}.".encode())
    (tmp_path / "w.pkl").write_bytes(data)
    read = read_weight_file(tmp_path / "w.pkl")
    assert read["__author__"] == "zoo"
    check_state_dict(read["model"], "the file")
    for name, array in ARRAYS.items():
        tensor = read["model"][name]
        assert torch.equal(tensor, torch.from_numpy(array.astype(array.dtype.newbyteorder("="))))


def test_a_model_zoo_pickle_of_a_model_loads_into_it(tmp_path):
    model, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    state = {name: value.numpy() for name, value in other.state_dict().items()}
    content = {"model": state, "__author__": "zoo"}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, 2))
    StrictCheckpointer(model).load(str(tmp_path / "w.pkl"))
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
        np.ma.masked_array([1.0]),
    ],
    ids=["objects", "texts", "records", "masked"],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"a": array}}, 2))
    with pytest.raises(InputError, match="cannot be read as plain tensors"):
        read_weight_file(tmp_path / "w.pkl")


def test_a_truncated_model_zoo_pickle_is_an_error_wherever_it_ends(tmp_path):
    data = pickle.dumps({"model": {"a": np.ones(3)}}, 2)
    for size in range(len(data)):
        (tmp_path / "w.pkl").write_bytes(data[:size])
        with pytest.raises(InputError, match="cannot be read"):
            read_weight_file(tmp_path / "w.pkl")


def test_a_name_that_says_another_format_than_the_content_is_refused(tmp_path):
    state = {"a": torch.ones(2)}
    writers = {
        ".pth": torch.save,
        ".safetensors": safetensors.torch.save_file,
        ".pkl": lambda state, path: Path(path).write_bytes(pickle.dumps({"a": np.ones(2)}, 2)),
    }
    for right, write in writers.items():
        for suffix in writers:
            path = tmp_path / f"w{suffix}"
            write(state, path)
            if suffix == right:
                assert torch.equal(read_weight_file(path)["a"], torch.ones(2).to(torch.float))
                continue
            with pytest.raises(InputError, match="give it the suffix of what it is"):
                read_weight_file(path)
        plain = tmp_path / "no_suffix"
        write(state, plain)
        assert torch.equal(read_weight_file(plain)["a"].float(), torch.ones(2))


@pytest.mark.parametrize("name", ["../w.pth", "{folder}/w.pth", "sub/w.pth", "..", "sub/../w.pth"])
def test_last_checkpoint_names_a_file_of_its_own_folder(tmp_path, name):
    torch.save({"model": torch.nn.Linear(1, 1).state_dict()}, tmp_path / "w.pth")
    output = tmp_path / "output"
    (output / "sub").mkdir(parents=True)
    (output / "last_checkpoint").write_text(name.format(folder=tmp_path))
    for choose in (checkpoint_to_resume, lambda folder: checkpoint_to_evaluate("", folder)):
        with pytest.raises(InputError, match="which is not a file of its own folder"):
            choose(str(output))
    (output / "last_checkpoint").write_text("w.pth\n")
    (output / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes())
    assert checkpoint_to_resume(str(output)) == str(output / "w.pth")


@pytest.mark.parametrize(
    "key", ["k" * 10**6, 2**40000, "\n" * 10**5], ids=["long", "number", "lines"]
)
def test_a_key_of_any_length_makes_a_short_sentence(tmp_path, key):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({key: 1}, 2))
    with pytest.raises(InputError) as error:
        check_state_dict(read_weight_file(tmp_path / "w.pkl"), "the file")
    assert len(str(error.value)) < 600

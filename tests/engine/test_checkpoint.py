import logging
import resource
import signal

import pytest
import torch
from fvcore.common.checkpoint import PeriodicCheckpointer
from torch import nn

from snnet_vitdet.engine import (
    ClassNames,
    StrictCheckpointer,
    checkpoint_to_evaluate,
    checkpoint_to_resume,
)
from snnet_vitdet.engine.checkpoint import check_resumed_optimizer, periodic_checkpoints
from snnet_vitdet.errors import InputError

NAMES = ["fig", "nut", "pea"]


def make_model(width=4, num_classes=3, extra=False):
    """A backbone and heads with detectron2's names of what depends on the number of classes."""
    torch.manual_seed(num_classes)
    model = nn.Module()
    model.backbone = nn.Linear(2, width)
    if extra:
        model.extra = nn.Linear(2, 2)
    heads = model.roi_heads = nn.Module()
    heads.box_head = nn.Linear(4, 4)
    heads.box_predictor = nn.Module()
    heads.box_predictor.cls_score = nn.Linear(4, num_classes + 1)
    heads.box_predictor.bbox_pred = nn.Linear(4, num_classes * 4)
    heads.mask_head = nn.Module()
    heads.mask_head.predictor = nn.Conv2d(4, num_classes, 1)
    return model


@pytest.fixture
def checkpoint(tmp_path):
    """The file of a three-class model."""
    checkpointer = StrictCheckpointer(
        make_model(), str(tmp_path / "saved"), classes=ClassNames(NAMES)
    )
    (tmp_path / "saved").mkdir()
    checkpointer.save("model_final")
    return tmp_path / "saved" / "model_final.pth"


def load(path, model, **kwargs):
    return StrictCheckpointer(model, **kwargs).load(str(path))


def test_checkpoint_of_the_model_loads_every_tensor(checkpoint):
    model = make_model()
    nn.init.zeros_(model.backbone.weight)
    load(checkpoint, model, classes=ClassNames(NAMES))
    for name, value in make_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_missing_keys_are_listed(checkpoint):
    with pytest.raises(InputError, match=r"2 missing \(extra.bias, extra.weight\)"):
        load(checkpoint, make_model(extra=True))


def test_unexpected_keys_are_listed(tmp_path):
    torch.save({"model": make_model(extra=True).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"2 unexpected \(extra.bias, extra.weight\)"):
        load(tmp_path / "other.pth", make_model())


def test_misshapen_keys_are_listed_with_both_shapes_and_the_remedy(checkpoint):
    with pytest.raises(InputError) as error:
        load(checkpoint, make_model(width=5))
    message = str(error.value)
    assert "2 misshapen" in message
    assert "backbone.weight (4, 2) instead of (5, 2)" in message
    assert "Give the config and overrides it was trained with" in message


def test_long_lists_of_keys_are_cut(tmp_path):
    state = make_model().state_dict() | {f"more.{i:02d}": torch.zeros(1) for i in range(40)}
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"40 unexpected \(more.00, .*more.04, …\)"):
        load(tmp_path / "other.pth", make_model())


def test_truncated_file_is_named_with_the_remedy(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-200])
    with pytest.raises(
        InputError, match=r"model_final\.pth cannot be read \(.*use an earlier checkpoint"
    ):
        load(checkpoint, make_model())


def test_new_classes_leave_the_class_layers_alone_and_load_everything_else(checkpoint, caplog):
    model = make_model(num_classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    saved = torch.load(checkpoint)["model"]
    with caplog.at_level(logging.WARNING, "snnet_vitdet.engine"):
        load(checkpoint, model, new_classes=True)
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert kept == {name for name in before if "predictor" in name}
    for name in before.keys() - kept:
        assert torch.equal(model.state_dict()[name], saved[name]), name
    assert "roi_heads.box_predictor.cls_score.weight" in caplog.text


def test_as_many_classes_of_other_names_start_anew_too(checkpoint):
    torch.manual_seed(1)
    model = make_model()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = StrictCheckpointer(model, new_classes=True, classes=ClassNames(["a", "b", "c"]))
    start.resume_or_load(str(checkpoint), resume=False)
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert kept == {name for name in before if "predictor" in name}


def test_a_mask_head_may_be_on_one_side_alone_where_new_classes_are_meant(
    checkpoint, tmp_path, caplog
):
    boxes = make_model()
    del boxes.roi_heads.mask_head
    boxes_file = tmp_path / "boxes.pth"
    torch.save({"model": boxes.state_dict()}, boxes_file)
    saved = torch.load(checkpoint)["model"]
    for path, model, message in (
        (checkpoint, boxes, "The checkpoint's mask head is left out"),
        (boxes_file, make_model(), "The checkpoint has no mask head: it starts anew"),
    ):
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        with pytest.raises(InputError, match=r"2 (missing|unexpected) \(roi_heads.mask_head"):
            load(path, model)
        with caplog.at_level(logging.INFO, "snnet_vitdet.engine"):
            load(path, model, new_classes=True)
        assert message in caplog.text and "Other classes" not in caplog.text
        for name, value in model.state_dict().items():
            new = path == boxes_file and "mask_head" in name
            assert torch.equal(value, torch.zeros_like(value) if new else saved[name]), name


def test_new_classes_do_not_excuse_another_backbone(checkpoint):
    with pytest.raises(InputError, match=r"2 misshapen \(backbone"):
        load(checkpoint, make_model(width=5, num_classes=5), new_classes=True)


@pytest.mark.parametrize("names", [["fig", "pea", "nut"], ["fig", "nut", "bean"]])
def test_checkpoint_of_other_classes_is_refused_by_name(names, checkpoint):
    with pytest.raises(InputError) as error:
        load(checkpoint, make_model(), classes=ClassNames(names))
    assert str(NAMES) in str(error.value)
    assert str(names) in str(error.value)


def test_other_number_of_classes_is_refused_by_name_where_both_are_known(checkpoint):
    model = make_model(num_classes=2)
    with pytest.raises(InputError, match=r"trained for the classes .*'pea'.* but the data has"):
        load(checkpoint, model, classes=ClassNames(["fig", "nut"]))


def test_start_from_other_classes_ignores_their_names_but_a_resume_does_not(checkpoint):
    folder = str(checkpoint.parent)
    start = StrictCheckpointer(make_model(), folder, classes=ClassNames(["a", "b", "c"]))
    start.resume_or_load(str(checkpoint), resume=False)
    with pytest.raises(InputError, match="trained for the classes"):
        start.resume_or_load("", resume=True)


@pytest.fixture
def averaged(tmp_path):
    """The file of a three-class model whose moving average is all zeros."""
    model = make_model()
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    average = {"weights": zeros, "num_steps": 7}
    content = {"model": model.state_dict(), "ema": average, "classes": {"thing_classes": NAMES}}
    torch.save(content, tmp_path / "averaged.pth")
    return tmp_path / "averaged.pth"


def test_moving_average_is_taken_where_it_is_wanted_and_there(averaged, checkpoint):
    model = make_model()
    rest = StrictCheckpointer(model).load(str(averaged), averaged=True)
    assert not any(value.any() for value in model.state_dict().values())
    assert rest["ema"]["num_steps"] == 7
    for path, wanted in ((averaged, False), (checkpoint, True)):
        rest = StrictCheckpointer(model).load(str(path), averaged=wanted)
        for name, value in make_model().state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
        assert ("ema" in rest) == (path == averaged)


def test_moving_average_of_another_model_is_refused_as_the_model_is(averaged):
    content = torch.load(averaged)
    content["ema"]["weights"]["backbone.weight"] = torch.zeros(5, 2)
    del content["ema"]["weights"]["backbone.bias"]
    torch.save(content, averaged)
    StrictCheckpointer(make_model()).load(str(averaged))
    with pytest.raises(InputError, match=r"1 missing \(backbone.bias\); 1 misshapen \(backbone.w"):
        StrictCheckpointer(make_model()).load(str(averaged), averaged=True)
    torch.save({**content, "ema": make_model().state_dict()}, averaged)
    with pytest.raises(InputError, match="the part 'ema' of checkpoint .* is not as"):
        StrictCheckpointer(make_model()).load(str(averaged), averaged=True)


def test_new_classes_start_anew_beside_a_moving_average(averaged):
    model = make_model(num_classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    StrictCheckpointer(model, new_classes=True).load(str(averaged), averaged=True)
    for name, value in model.state_dict().items():
        expected = before[name] if "predictor" in name else torch.zeros_like(value)
        assert torch.equal(value, expected), name


@pytest.fixture
def training(tmp_path):
    """The folder of a training with a first, three periodic and a final checkpoint."""
    checkpointer = StrictCheckpointer(make_model(), str(tmp_path))
    for name in ("model_init", "model_0000009", "model_0000019", "model_0000029", "model_final"):
        checkpointer.save(name)
    checkpointer.save("inspected", tag=False)
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_training_is_resumed_from_its_last_checkpoint(training):
    assert checkpoint_to_resume(str(training)) == str(training / "model_final.pth")
    # A name that a user writes into the file counts.
    (training / "last_checkpoint").write_text("model_0000019.pth")
    assert checkpoint_to_resume(str(training)) == str(training / "model_0000019.pth")


@pytest.mark.parametrize("content", ["", None], ids=["empty", "missing"])
def test_a_lost_note_of_the_last_checkpoint_does_not_let_a_training_begin_anew(
    content, training, caplog
):
    note = training / "last_checkpoint"
    note.unlink()
    if content is not None:
        note.write_text(content)
    for name in ("model_final", "model_0000029", "model_0000019", "model_0000009", "model_init"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "snnet_vitdet"):
            assert checkpoint_to_resume(str(training)) == str(training / f"{name}.pth")
        fault = "is gone" if content is None else "is empty"
        assert f"last_checkpoint {fault}: the latest counts, {name}.pth" in caplog.text
        assert checkpoint_to_evaluate("", str(training)) == str(training / f"{name}.pth")
        (training / f"{name}.pth").unlink()
    # A file for inspection is not a checkpoint of the training.
    assert (training / "inspected.pth").exists()
    assert checkpoint_to_resume(str(training)) == ""


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b"\0" * 15, b"model_final.pth\n\x07"])
def test_a_note_that_is_no_name_is_taken_for_a_lost_one(training, caplog, content):
    (training / "last_checkpoint").write_bytes(content)
    with caplog.at_level(logging.WARNING, "snnet_vitdet"):
        assert checkpoint_to_resume(str(training)) == str(training / "model_final.pth")
    assert "last_checkpoint holds no name" in caplog.text


def test_a_note_of_a_file_that_is_not_there_leads_to_the_latest_checkpoint(training, caplog):
    (training / "last_checkpoint").write_text("model_of_yesterday")
    with caplog.at_level(logging.WARNING, "snnet_vitdet"):
        assert checkpoint_to_resume(str(training)) == str(training / "model_final.pth")
    assert "Instead of model_of_yesterday, the training goes on from model_final.pth" in caplog.text


def test_a_copy_of_a_checkpoint_has_all_it_holds_and_is_the_last_one(training):
    checkpointer = StrictCheckpointer(make_model(width=8), str(training))
    last = training / "model_0000029.pth"
    checkpointer.save_copy(str(last), "model_final")
    assert (training / "model_final.pth").read_bytes() == last.read_bytes()
    assert (training / "last_checkpoint").read_text() == "model_final.pth"
    with pytest.raises(InputError, match="cannot write .*model_final.pth"):
        checkpointer.save_copy(str(training / "gone.pth"), "model_final")
    checkpointer.save_to_disk = False
    checkpointer.save_copy(str(last), "other")
    assert not (training / "other.pth").exists()


def test_half_a_checkpoint_of_a_killed_training_goes_with_the_next_one(training):
    half = training / ".tmp.model_0000033.pth"
    half.write_bytes(b"half")
    StrictCheckpointer(make_model(), str(training)).save("model_0000039")
    assert not half.exists()


def test_a_dead_data_worker_is_not_taken_for_a_full_disk(training, monkeypatch):
    def dies(*_):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(RuntimeError, match="^DataLoader worker"):
        StrictCheckpointer(make_model(), str(training)).save("model_0000039")
    assert not list(training.glob(".tmp.*"))


def test_instead_of_a_damaged_checkpoint_the_one_before_it_is_taken(training, caplog):
    chain = ["model_final", "model_0000029", "model_0000019", "model_0000009", "model_init"]
    for name, before in zip(chain, chain[1:], strict=False):
        truncate(training / f"{name}.pth")
        caplog.clear()
        with caplog.at_level(logging.WARNING, "snnet_vitdet"):
            assert checkpoint_to_resume(str(training)) == str(training / f"{before}.pth")
        assert f"{name}.pth cannot be read" in caplog.text
        what = "starts again" if before == "model_init" else "goes on"
        expected = f"Instead of model_final.pth, the training {what} from {before}.pth"
        assert expected in caplog.text
    (training / "model_init.pth").unlink()
    with pytest.raises(InputError, match="no checkpoint in .* can be read, model_final.pth being"):
        checkpoint_to_resume(str(training))


def test_what_comes_after_a_damaged_checkpoint_is_not_taken(training):
    (training / "last_checkpoint").write_text("model_0000019.pth")
    truncate(training / "model_0000019.pth")
    assert checkpoint_to_resume(str(training)) == str(training / "model_0000009.pth")


def test_a_full_disk_leaves_the_last_checkpoint_and_its_note(training):
    """A limit on the size of files stands for it: the same error from the same call."""
    checkpointer = StrictCheckpointer(make_model(width=4096), str(training))
    before = {path.name: path.read_bytes() for path in training.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        for name in ("model_0000039", "model_final"):
            with pytest.raises(InputError, match=f"cannot write .*{name}.pth: .* free space"):
                checkpointer.save(name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in training.iterdir()} == before


def test_of_the_checkpoints_to_keep_those_from_before_a_resume_are_a_part(tmp_path):
    def train(first, last):
        checkpointer = StrictCheckpointer(make_model(), str(tmp_path))
        keeper = PeriodicCheckpointer(checkpointer, period=1, max_iter=20, max_to_keep=2)
        keeper.recent_checkpoints = periodic_checkpoints(str(tmp_path))
        for iteration in range(first, last):
            keeper.step(iteration)
        checkpointer.save("model_init", tag=False)

    train(0, 10)
    # One that a training that was asked to stop has saved is one of them.
    train(10, 12)
    assert {path.name for path in tmp_path.glob("*.pth")} == {
        *("model_init.pth", "model_0000010.pth", "model_0000011.pth")
    }


@pytest.mark.parametrize("name", ["m.pth?v2", "m.pth?v=2", "run?1/m.pth", "a#b.pth", "a%20b.pth"])
def test_the_file_that_is_named_is_loaded_whatever_its_name_has(tmp_path, name):
    torch.save(make_model().state_dict(), tmp_path / "m.pth")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / name, make_model())
    zeros = {key: torch.zeros_like(value) for key, value in make_model().state_dict().items()}
    torch.save(zeros, tmp_path / name)
    # ".pth?v2" is no suffix, and says nothing.
    model = make_model()
    load(tmp_path / name, model)
    assert not any(value.any() for value in model.state_dict().values())


def test_whole_numbers_are_no_weights(tmp_path):
    state = make_model().state_dict()
    state["backbone.bias"] = torch.arange(4)
    torch.save({"model": state}, tmp_path / "m.pth")
    with pytest.raises(InputError, match=r"1 of another type \(backbone.bias torch.int64 instead"):
        load(tmp_path / "m.pth", make_model())


@pytest.mark.parametrize("iteration", [-7, 2**2000])
def test_an_impossible_iteration_is_a_sentence(checkpoint, iteration):
    content = torch.load(checkpoint) | {"trainer": {"iteration": iteration}}
    torch.save(content, checkpoint)
    with pytest.raises(InputError, match="the part 'trainer' of checkpoint"):
        load(checkpoint, make_model())


def test_the_names_of_many_classes_are_cut(checkpoint):
    content = torch.load(checkpoint) | {"classes": {"thing_classes": ["fig" * 99] * 60_000}}
    torch.save(content, checkpoint)
    with pytest.raises(InputError, match=r"\(60000 in all\)\], but") as error:
        load(checkpoint, make_model(), classes=ClassNames(NAMES))
    assert len(str(error.value)) < 3000


@pytest.mark.parametrize("value", [torch.ones(3, 2), torch.full((2, 3), float("nan"))])
def test_a_damaged_state_of_the_optimizer_is_refused(value):
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    check_resumed_optimizer(optimizer, state)
    state["state"][0]["exp_avg"] = value
    with pytest.raises(InputError, match=r"its exp_avg for a parameter of the shape \(2, 3\) has"):
        check_resumed_optimizer(optimizer, state)

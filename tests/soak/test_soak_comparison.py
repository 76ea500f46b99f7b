"""What a soak takes for a loss."""

import json
import math
import shutil

import pytest
import torch
from comparison import differences as differences_of


def differences(own, reference, lost=()):
    return list(differences_of(own, reference, lost))


def line(iteration, **changes):
    values = {"iteration": iteration, "total_loss": 1 / (iteration + 3), "stitch_id": iteration % 4}
    return json.dumps({**values, "time": 0.1 * iteration, **changes}) + "\n"


@pytest.fixture
def pair(tmp_path):
    """The same training and sweep twice: the reference, and the one that had faults."""
    reference = tmp_path / "reference"
    sweep = reference / "sweep"
    sweep.mkdir(parents=True)
    weights = {"head.weight": torch.tensor([[1.0, -0.0], [math.nan, 3.0]])}
    state = {"state": {0: {"exp_avg": torch.tensor([0.5])}}, "param_groups": [{"lr": 0.1}]}
    torch.save(
        {
            "model": weights,
            "trainer": {"iteration": 4, "optimizer": state},
            "classes": {"thing_classes": ["fig", "nut"]},
        },
        reference / "model_final.pth",
    )
    (reference / "metrics.json").write_text("".join(map(line, range(5))) + '{"bbox_AP": 1.0}\n')
    (sweep / "stitches.json").write_text('[\n{"stitch_id": 0, "bbox_AP": 41.5}\n]\n')
    (sweep / "stitches.csv").write_text("stitch_id,bbox_AP\n0,41.5000\n")
    (sweep / "score_curves.json").write_text('[{"stitch_id": 0, "detections": [3, 2]}]')
    for name in ("pareto.png", "report.html"):
        (sweep / name).write_text("x")
    own = tmp_path / "own"
    shutil.copytree(reference, own)
    return own, reference


def change(path, edit):
    saved = torch.load(path)
    edit(saved)
    torch.save(saved, path)


def test_what_is_equal_is_no_loss(pair):
    own, reference = pair
    # Times differ, and iterations may have been done twice.
    with open(own / "metrics.json", "a") as file:
        file.write(line(3, time=9.0))
    (own / "sweep" / "report.html").write_text("of another day")
    assert differences(own, reference) == []


def nudge_weight(saved):
    saved["model"]["head.weight"][1, 1] = 3.0000002


def turn_sign_of_zero(saved):
    saved["model"]["head.weight"][0, 1] = 0.0


def nudge_state(saved):
    saved["trainer"]["optimizer"]["state"][0]["exp_avg"][0] = 0.25


def change_rate(saved):
    saved["trainer"]["optimizer"]["param_groups"][0]["lr"] = 0.2


def rename_class(saved):
    saved["classes"]["thing_classes"][1] = "pea"


def drop_weight(saved):
    del saved["model"]["head.weight"]


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        (nudge_weight, "model.head.weight"),
        (turn_sign_of_zero, "model.head.weight"),
        (nudge_state, "trainer.optimizer.state.0.exp_avg"),
        (change_rate, "trainer.optimizer.param_groups.0.lr"),
        (rename_class, "classes.thing_classes.1"),
        (drop_weight, "model.head.weight"),
    ],
)
def test_a_changed_checkpoint_is_found(edit, place, pair):
    change(pair[0] / "model_final.pth", edit)
    assert differences(*pair) == [f"model_final.pth differs in {place}"]


def test_a_missing_final_checkpoint_is_found(pair):
    (pair[0] / "model_final.pth").unlink()
    assert differences(*pair) == ["model_final.pth is missing"]


def test_a_missing_iteration_is_found_unless_somebody_destroyed_its_line(pair):
    own, reference = pair
    (own / "metrics.json").write_text("".join(line(i) for i in (0, 1, 4)) + '{"iteration": 2, "to')
    assert differences(own, reference) == ["metrics.json has no line of iteration 2, 3"]
    assert differences(own, reference, lost={2}) == ["metrics.json has no line of iteration 3"]


@pytest.mark.parametrize("changes", [{"total_loss": 0.3}, {"stitch_id": 9}, {"loss_mask": 1.0}])
def test_another_loss_or_stitch_is_found_even_if_it_was_right_once(changes, pair):
    with open(pair[0] / "metrics.json", "a") as file:
        file.write(line(2, **changes))
    expected = "metrics.json has other losses or stitches of iteration 2"
    assert differences(*pair) == [expected]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("stitches.json", '[\n{"stitch_id": 0, "bbox_AP": 41.6}\n]\n', """41.6}\\n]\\n' instead"""),
        ("stitches.json", "[{", "'[{' instead of"),
        ("stitches.csv", "stitch_id,bbox_AP\n0,4\n", """bbox_AP\\n0,4\\n' instead of"""),
        ("score_curves.json", '[{"stitch_id": 0, "detections": [3, 1]}]', "[3, 1]}]' instead"),
    ],
)
def test_other_results_are_found(name, content, expected, pair):
    (pair[0] / "sweep" / name).write_text(content)
    (found,) = differences(*pair)
    assert found.startswith(f"sweep/{name} differs: ")
    assert expected in found


@pytest.mark.parametrize("name", ["stitches.csv", "score_curves.json", "pareto.png", "report.html"])
def test_missing_results_are_found(name, pair):
    (pair[0] / "sweep" / name).unlink()
    assert differences(*pair) == [f"sweep/{name} is missing"]


@pytest.mark.parametrize(
    "name",
    ["own/.tmp.model_0000007.pth", "own/sweep/.tmp.pareto.png", "own_scenes.partial-0a1b2c3d"],
)
def test_left_over_files_are_found(name, pair):
    (pair[0].parent / name).write_text("half")
    assert differences(*pair) == [f"{name} is left over"]

"""Runs of the study in their order, with a stand-in for train_net.py."""

import dataclasses
import json

import pytest
from research.proxy.runs import Study
from research.proxy.variants import PAPER, Variant

from snnet_vitdet.errors import InputError

# Notes how it was called; a training needs the weights it is told to start from.
STAND_IN = """
import json, pathlib, sys
given = dict(word.split("=", 1) for word in sys.argv if "=" in word)
output = pathlib.Path(given["train.output_dir"])
with open(pathlib.Path(__file__).parent / "calls.txt", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if "broken" in given:
    sys.exit("it is broken")
for key, value in given.items():
    if key.startswith("init.weights.") and not pathlib.Path(value).is_file():
        sys.exit(f"{value} is missing")
output.mkdir(parents=True, exist_ok=True)
if "--eval-only" in sys.argv:
    (output / "sweep").mkdir(exist_ok=True)
    row = {"name": output.name, "seed": int(given["train.seed"])}
    (output / "sweep" / "stitches.json").write_text(json.dumps([row]))
else:
    (output / "model_final.pth").touch()
"""
OTHER = Variant("other", "Does it matter?", ("some.key=1",), length=1.5)


@pytest.fixture
def study(tmp_path):
    (tmp_path / "train_net.py").write_text(STAND_IN)
    program, folder = tmp_path / "train_net.py", tmp_path / "runs"
    return Study(program, folder, pretrain_iter=30, max_iter=10, overrides=("common=2",))


def calls(tmp_path):
    return [json.loads(line) for line in (tmp_path / "calls.txt").read_text().splitlines()]


def play(study, variants=(PAPER, OTHER), jobs=2):
    finished = []
    study.play(
        [3, 4],
        variants,
        jobs,
        lambda seed, variant, rows: finished.append((seed, variant.name, rows)),
    )
    return finished


def test_every_seed_has_its_pretraining_both_vits_and_the_variants(study, tmp_path):
    names = ["small_alone", "large_alone", "paper", "other"]
    assert play(study) == [
        (seed, name, [{"name": name, "seed": seed}]) for name in names for seed in (3, 4)
    ]
    seen = calls(tmp_path)
    # A training and a sweep each.
    assert len(seen) == 2 * 2 * (2 + len(names))
    assert all("common=2" in words and "--resume" in words for words in seen)
    (other,) = [w for w in seen if w[-1].endswith("seed3/other") and "--eval-only" not in w]
    folder = tmp_path / "runs/seed3"
    assert {
        f"init.weights.small={folder}/pretrained_small/model_final.pth",
        f"init.weights.large={folder}/pretrained_large/model_final.pth",
        *("some.key=1", "train.max_iter=15", "train.seed=3"),
    } <= set(other)
    (paper,) = [w for w in seen if w[-1].endswith("seed3/paper") and "--eval-only" not in w]
    assert "train.max_iter=10" in paper
    (pretraining,) = [
        w for w in seen if w[-1].endswith("seed4/pretrained_small") and "--eval-only" not in w
    ]
    assert "train.max_iter=30" in pretraining and not any("init.weights" in w for w in pretraining)


def test_what_is_finished_is_not_run_again(study, tmp_path):
    play(study, [PAPER])
    before = len(calls(tmp_path))
    finished = play(study)
    assert len(finished) == 8
    new = calls(tmp_path)[before:]
    assert len(new) == 4 and all(words[-1].endswith("/other") for words in new)


def test_given_checkpoints_take_the_place_of_the_pretraining(study, tmp_path):
    given = {vit: tmp_path / f"{vit}.pth" for vit in ("small", "large")}
    for path in given.values():
        path.touch()
    finished = play(dataclasses.replace(study, pretrained=given), [PAPER])
    assert [name for _, name, _ in finished[::2]] == ["small_alone", "large_alone", "paper"]
    trainings = [words for words in calls(tmp_path) if "--eval-only" not in words]
    starts = {word for words in trainings for word in words if word.startswith("init.")}
    assert starts == {
        *(f"init.weights.{vit}={path}" for vit, path in given.items()),
        *(f"init.weights.net={path}" for path in given.values()),
    }
    assert len(trainings) == 6


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_run_that_fails_ends_the_study_with_its_log(study, tmp_path, jobs):
    broken = Variant("bad", "Does it end?", ("broken=1",))
    with pytest.raises(
        InputError, match=r"seed3/bad ended with status 1 \(it is broken\).*bad.log"
    ):
        play(study, [broken], jobs)
    # What was finished is kept: both ViTs and their pretraining, but for the other seed perhaps.
    assert (tmp_path / "runs/seed3/small_alone/finished").is_file()
    assert not (tmp_path / "runs/seed3/bad/finished").exists()

"""The pages on using a trained model: each of their commands and snippets is run as it stands.

Where they say output/demo, the tests put a tiny model, trained and swept, in place of what
`make demo` makes.
"""

import re
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import pytest
from in_process import ROOT, run_main, run_program

from snnet_vitdet.data import ShapesPaths
from snnet_vitdet.demo.__main__ import arguments as server_arguments
from snnet_vitdet.demo.__main__ import config_file_of

# Training takes some seconds, whichever of these tests runs first.
pytestmark = pytest.mark.slow

PAGES = ("sweep", "deploy", "points")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Runs until it is stopped: tests/demo starts it.
SERVER = ["-m", "snnet_vitdet.demo"]


@pytest.fixture(scope="module")
def demo(trained_tiny, tiny_scenes: ShapesPaths, tmp_path_factory, restored_logging):
    """A folder as a user of the pages has it after `make demo`, and some images of their own."""
    here = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        # So short a training is sure of little.
        low = "model.roi_heads.box_predictor.test_score_thresh=0.01"
        config = trained_tiny(Path("output/demo"), low)
        trained = Path(config.train.init_checkpoint).parent
        shutil.copytree(trained, here / "output/demo")
        saved = here / "output/demo/config.yaml"
        text = saved.read_text(encoding="utf-8")
        for before, after in ((str(trained), "output/demo"), ("thresh: 0.05", "thresh: 0.01")):
            assert before in text
            text = text.replace(before, after)
        saved.write_text(text, encoding="utf-8")
        config.train.init_checkpoint = "output/demo/model_final.pth"
        run_main(config, "--eval-only")
        for name in ("rank4", "small", "large", "seed1"):
            shutil.copytree("output/demo/sweep", f"output/{name}/sweep")
        shutil.copytree(tiny_scenes.test_images, "datasets/shapes/test")
        images = [cv2.imread(str(path)) for path in sorted(Path("datasets/shapes/test").iterdir())]
        cv2.imwrite("photo.jpg", images[0])
        film = cv2.VideoWriter("film.mp4", cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 64))
        for image in images:
            film.write(image)
        film.release()
    return here


def steps(page):
    """The commands and snippets of a page in its order, each as (language, text)."""
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    for language, body in FENCE.findall(text):
        if language == "python":
            yield language, body
        elif not language:
            lines = body.replace("\\\n", " ").splitlines()
            yield from (("", line) for line in lines if line.startswith("python "))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_runs(page, demo, monkeypatch):
    monkeypatch.chdir(demo)
    count = 0
    names: dict[str, object] = {}  # what one piece of code defines, the next may use
    for language, text in steps(page):
        if language:
            exec(compile(text, f"docs/{page}.md", "exec"), names)
        else:
            _, *arguments = shlex.split(text, comments=True)
            if arguments[:2] == SERVER:
                monkeypatch.setattr(sys, "argv", arguments[1:])
                given = server_arguments()
                assert Path(given.exported or config_file_of(given)).exists()
            else:
                done = run_program(*arguments)
                assert done.code == 0, f"{text}\n{done.error}"
        count += 1
    # Or the page is no longer written in a way that is found.
    assert count

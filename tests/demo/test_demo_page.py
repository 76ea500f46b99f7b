"""The page in a real browser, with a trained tiny model; who asks at the same time; the program."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

pytest.importorskip("gradio", reason="the page is an option: requirements-demo.txt")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from snnet_vitdet import Predictor, StitchTable
from snnet_vitdet.demo import __main__ as program
from snnet_vitdet.demo.answers import Answers, Wish
from snnet_vitdet.demo.choices import Choices
from snnet_vitdet.demo.page import LOOK, build_page
from snnet_vitdet.demo.server import private_uploads, served
from snnet_vitdet.deploy import export_stitch, image_files
from snnet_vitdet.modeling import stitch_costs

# Training and sweeping take some seconds, and so does a browser.
pytestmark = pytest.mark.slow

# Seconds; a busy machine may need that long.
PATIENCE = 60


@pytest.fixture(scope="module")
def predictor(swept):
    return Predictor(swept, swept.train.init_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def files(swept):
    return image_files(swept.data.test_images)


@pytest.fixture(scope="module")
def choices(swept, predictor, tmp_path_factory):
    """With APs that rise with the cost.

    Which stitch is best after so short a training depends on the machine's arithmetic.
    """
    folder = tmp_path_factory.mktemp("scored")
    shutil.copytree(Path(swept.train.output_dir) / "sweep", folder / "sweep")
    file = folder / "sweep/stitches.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    rising = sorted(rows, key=lambda row: row["gflops"])
    for place, row in enumerate(rising, start=1):
        row["bbox_AP"] = row["segm_AP"] = float(place)
    file.write_text(json.dumps(rows), encoding="utf-8")
    return Choices(predictor.stitches, stitch_costs(swept.model), StitchTable.read(folder))


@pytest.fixture(scope="module")
def address(predictor, choices, files):
    """The address of the served page."""
    answers = answers_of(predictor, choices)
    with private_uploads():
        page = build_page(answers, "A test", files[:2])
        with served(page, "127.0.0.1", free_port(), 1, **LOOK) as address:
            yield address


def answers_of(predictor, choices):
    def predict(image, stitch_id):
        return predictor(image, stitch=stitch_id)

    return Answers(predict, choices, max_pixels=1_000_000)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Visit:
    """What a visitor does and sees."""

    def __init__(self, browser, address):
        self.browser, self.wait = browser, WebDriverWait(browser, PATIENCE)
        browser.get(address)
        self.until("#plot svg")

    def until(self, selector):
        return self.wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, selector))[0]

    def until_said(self, *texts):
        def said(browser):
            text = browser.find_element(By.ID, "said").text
            return all(each in text for each in texts) and text

        return self.wait.until(said)

    def until_chosen(self, name):
        self.until(f'#plot svg[aria-label*="chosen: {name} "]')

    def until_picture(self, other_than=""):
        def found(browser):
            images = browser.find_elements(By.CSS_SELECTOR, "#found img")
            source = images and images[0].get_attribute("src")
            return source and source != other_than and source

        return self.wait.until(found)

    def upload(self, file):
        # Where an image is shown, a file is not taken.
        for button in self.browser.find_elements(By.CSS_SELECTOR, '[aria-label="Remove Image"]'):
            button.click()
            self.until_said("Drop an image")
        self.until("#image input[type=file]").send_keys(str(file))

    def press(self, key):
        self.until("#limit input[type=range]").send_keys(key)

    def problems(self):
        return [each for each in self.browser.get_log("browser") if each["level"] == "SEVERE"]

    def requested(self):
        events = (json.loads(e["message"])["message"] for e in self.browser.get_log("performance"))
        urls = {
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }
        return {url for url in urls if not url.startswith(("data:", "blob:", "chrome"))}


def differing(predictor, files, *stitches):
    """A file in which two stitches find different things, each from its best F1 on."""
    predictor.set_score_threshold("f1")
    for file in files:
        found = []
        for stitch in stitches:
            predictor.set_stitch(stitch)
            found.append(predictor(file).scores.tolist())
        if found[0] != found[1]:
            predictor.set_score_threshold(0.0)
            return file
    raise AssertionError("the two stitches find the same everywhere")


def test_a_moved_slider_changes_stitch_and_picture(browser, address, choices, predictor, files):
    cheapest, costliest = (
        choices.rows[choices.within("gflops", limit, "box")]["name"]
        for limit in choices.limits("gflops")[:2]
    )
    assert cheapest != costliest
    file = differing(predictor, files, cheapest, costliest)
    visit = Visit(browser, address)
    # The plot needs no image.
    visit.press(Keys.HOME)
    visit.until_chosen(cheapest)
    visit.upload(file)
    visit.until_said(f"{cheapest} found", " ms")
    before = visit.until_picture()
    visit.press(Keys.END)
    visit.until_chosen(costliest)
    visit.until_said(f"{costliest} found")
    visit.until_picture(other_than=before)
    visit.press(Keys.HOME)
    visit.until_said(f"{cheapest} found")
    assert visit.problems() == []
    requested = visit.requested()
    # The slider's requests are among them: the log is of this visit.
    assert any("/queue/" in url for url in requested)
    assert all(url.startswith(address) for url in requested)


def test_a_stitch_is_chosen_by_name_and_an_example_detected_in(browser, address):
    visit = Visit(browser, address)
    visit.until("#examples button").click()
    visit.until_said(" found ")
    visit.until('#budget input[value="name"]').click()
    visit.until_chosen("S")
    visit.until_said("S found")
    visit.until("#name input").send_keys(Keys.CONTROL, "a", Keys.NULL, "FS-2", Keys.ENTER)
    visit.until_chosen("FS-2")
    visit.until_said("FS-2 found")
    assert visit.problems() == []


def test_a_file_that_is_no_image_is_answered_and_the_page_goes_on(
    browser, address, files, tmp_path
):
    visit = Visit(browser, address)
    (tmp_path / "text.png").write_text("no image")
    visit.until("#examples button").click()
    visit.until_picture()
    visit.upload(tmp_path / "text.png")
    visit.until_said("This file is not an image that can be read")
    assert not browser.find_elements(By.CSS_SELECTOR, "#found img")
    visit.upload(files[1])
    visit.until_said(" found ")
    visit.until_picture()


def test_the_program_prints_its_address_and_ends_cleanly(swept, root, tmp_path):
    """From the weights alone: their config lies beside them."""
    port = free_port()
    command = [sys.executable, "-m", "snnet_vitdet.demo", "--weights", swept.train.init_checkpoint]
    with subprocess.Popen(
        [*command, f"--port={port}", "--device=cpu"],
        cwd=root,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            lines = iter(process.stdout.readline, "")
            address = next(line.split()[1] for line in lines if line.startswith("Open "))
            assert address == f"http://127.0.0.1:{port}/"
            with urlopen(address, timeout=PATIENCE) as answer:
                assert answer.status == 200
            assert list(tmp_path.glob("snnet-demo-*"))
            # Ctrl-C; where these tests run in the background, what they start ignores it.
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            process.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
            assert process.wait(timeout=PATIENCE) == 0
            assert process.stdout.read().endswith("Ended.\n")
        finally:
            process.kill()
    assert not list(tmp_path.glob("snnet-demo-*"))


@pytest.fixture
def exported(swept, predictor, tmp_path):
    """A folder of two exported stitches, with a config that leaves a mark if it runs."""
    marker, folder = tmp_path / "it ran", tmp_path / "from elsewhere"
    for name in ("FS-2", "L"):
        model = Predictor(swept, swept.train.init_checkpoint, device="cpu", stitch=name)
        file = folder / f"{name}.safetensors"
        export_stitch(file, model.model, swept, model.stitch, model.class_names)
    text = Path(swept.train.init_checkpoint).with_name("config.yaml").read_text(encoding="utf-8")
    text += f"\nmark: !!python/object/apply:os.mkdir [{str(marker)!r}]\n"
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return folder, marker


def loaded(monkeypatch, *args):
    """What the program makes of its arguments."""
    monkeypatch.setattr(sys, "argv", ["demo", "--device=cpu", *map(str, args)])
    return program.served_model(program.arguments())


def test_exported_stitches_are_offered_and_nothing_is_run(exported, files, predictor, monkeypatch):
    folder, marker = exported
    answers, heading, examples = loaded(monkeypatch, "--exported", folder)
    assert heading == "from elsewhere: 2 exported detectors" and examples == []
    build_page(answers, heading)
    assert list(answers.choices.rows) == ["L", "FS-2"]
    assert answers.choices.scores == ["box", "mask"] and answers.choices.has_best_f1
    for name, row in answers.choices.rows.items():
        assert name == row["name"] == predictor.stitches[row["stitch_id"]].name
        wish = Wish("name", 0, name, "box", "fixed", 0.02)
        _, said = answers.detect(files[0], wish)
        expected = int((predictor(files[0], stitch=name).scores >= 0.02).sum())
        assert f"<strong>{name}</strong> found <strong>{expected} " in said
    low, high, _ = answers.choices.limits("gflops")
    assert {answers.choices.within("gflops", limit, "box") for limit in (low, high)} <= {
        "L",
        "FS-2",
    }
    answers, heading, _ = loaded(monkeypatch, "--exported", folder / "L.safetensors")
    assert heading == "L: 1 exported detector" and list(answers.choices.rows) == ["L"]
    build_page(answers, heading)
    assert not marker.exists()


def test_a_config_that_is_run_is_named(exported, swept, monkeypatch, caplog):
    folder, marker = exported
    shutil.copy(swept.train.init_checkpoint, folder / "model_final.pth")
    loaded(monkeypatch, "--weights", folder / "model_final.pth")
    assert marker.exists()
    (said,) = (r.getMessage() for r in caplog.records if r.name == "snnet_vitdet.engine.config")
    assert str(folder / "config.yaml") in said and "--exported" in said


def test_exported_files_of_two_trainings_are_refused(exported, refused):
    folder, _ = exported
    shutil.copy(folder / "L.safetensors", folder / "M.safetensors")
    said = refused("--exported", folder, "--port", free_port())
    assert "M.safetensors" in said and "both have stitch L" in said


@pytest.fixture
def refused(monkeypatch, capsys):
    """The sentence the program ends with."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["demo", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            program.main()
        assert end.value.code == 2
        return capsys.readouterr().err

    return run


def test_what_cannot_be_served_is_said_in_a_sentence(refused, swept, tmp_path, monkeypatch):
    weights = swept.train.init_checkpoint
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("--weights", weights, "--port", port)
    assert f"cannot listen on 127.0.0.1, port {port}" in said and "another --port" in said
    assert "--port must be from 1 to 65535, got 0" in refused("--weights", weights, "--port", 0)
    assert "give --config-file or --weights" in refused()
    assert "give it with --exported" in refused("--weights", tmp_path / "FS-2.safetensors")
    said = refused("--weights", weights, "--exported", tmp_path, "train.seed=1")
    assert "--weights, train.seed=1 cannot be given with --exported" in said
    assert "has no exported files" in refused("--exported", tmp_path, "--port", free_port())
    said = refused("--weights", weights, "--allow-host", "http://gpu:7860")
    assert "--allow-host 'http://gpu:7860' is no name" in said
    assert "config.yaml: give --config-file" in refused(
        "--weights", tmp_path / "model.pth", "--port", free_port()
    )
    said = refused("--weights", weights, "--max-upload-mb", 0)
    assert "--max-upload-mb must be above 0, got 0" in said
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "snnet_vitdet.demo.page")
    monkeypatch.delitem(sys.modules, "snnet_vitdet.demo.server")
    assert "pip install -r requirements-demo.txt" in refused("--weights", weights)

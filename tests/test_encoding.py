"""Names and paths beyond ASCII, in any locale."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from snnet_vitdet import StitchTable

ROOT = Path(__file__).parent.parent
NANO = "configs/shapes/mask_rcnn_snnet_nano.py"
NAMES = ("Dattel süß ☃ 枣", "قلب", "🍎", "naïve", "Ωmega", "ж")
# Without these, Python would choose UTF-8 by itself.
LOCALES = {
    "ASCII": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "UTF-8": {"LC_ALL": "C.UTF-8"},
}


def run(locale, *command):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "PYTHONUTF8"))}
    environment |= LOCALES[locale] | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.fixture(scope="module")
def named_data(tiny_scenes, tmp_path_factory):
    """Overrides of data with names beyond ASCII of folder, file, images and classes."""
    folder = tmp_path_factory.mktemp("data") / "Bilder süß ☃"
    shutil.copytree(tiny_scenes.test_images, folder)
    coco = json.loads(Path(tiny_scenes.test_json).read_text(encoding="utf-8"))
    for image in coco["images"]:
        new = f"ß☃ {image['file_name']}"
        (folder / image["file_name"]).rename(folder / new)
        image["file_name"] = new
    for category, name in zip(coco["categories"], NAMES, strict=True):
        category["name"] = name
    path = folder / "Früchte.json"
    # As people export it, and as Python does by default.
    path.write_text(json.dumps(coco, ensure_ascii=False), encoding="utf-8")
    return [
        f"data.{part}_{what}={value}"
        for part in ("train", "test")
        for what, value in (("json", f"'{path}'"), ("images", f"'{folder}'"))
    ]


def folder_of(overrides):
    return overrides[1].partition("=")[2].strip("'")


@pytest.mark.slow
@pytest.mark.parametrize("locale", LOCALES)
def test_a_run_in_any_locale_reads_and_writes_names_beyond_ascii(
    locale, named_data, tiny_overrides, tmp_path
):
    output = tmp_path / "Läufe ☃"
    finished = run(
        locale,
        *("train_net.py", "--config-file", NANO, "--eval-only", *tiny_overrides, *named_data),
        *("sweep.at_initialisation=True", "sweep.stitch_ids=[S]", f"train.output_dir='{output}'"),
        *("sweep.mode=one_pass", "init.num_images=1"),
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "Traceback" not in finished.stderr + finished.stdout
    assert "Logging error" not in finished.stderr
    assert [entry.name for entry in StitchTable.read(output)] == ["S"]
    log = (output / "sweep/log.txt").read_text(encoding="utf-8")
    assert str(output) in log and NAMES[0][:10] in log + finished.stdout
    assert "ß☃" in (output / "sweep/report.html").read_text(encoding="utf-8")
    assert str(folder_of(named_data)) in log


def test_a_program_keeps_its_arguments_when_its_locale_is_ascii(tmp_path):
    script = tmp_path / "says.py"
    script.write_text(
        "import sys\n"
        "from snnet_vitdet.errors import exit_on_input_error\n"
        "with exit_on_input_error():\n"
        "    print(sys.flags.utf8_mode, *sys.argv[1:], open(sys.argv[1]).encoding)\n"
    )
    (tmp_path / "süß").touch()
    finished = run("ASCII", script, tmp_path / "süß", "two words")
    assert finished.stdout == f"1 {tmp_path / 'süß'} two words utf-8\n", finished.stderr

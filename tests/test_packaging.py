"""pyproject.toml: versions that agree, and a wheel that works without the repository."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import instantiate
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from snnet_vitdet.deploy import export_stitch

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [
    Requirement(text)
    for texts in (PROJECT["dependencies"], *EXTRAS.values())
    for text in texts
    if not text.startswith(PROJECT["name"])
]


def pins():
    """The versions of constraints.txt by name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(each.name): str(each.specifier)[2:] for each in found}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_version_the_tests_run_with_is_within_the_range(requirement):
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_torch_is_pinned_with_its_torchvision():
    """pip would combine the newest ones otherwise, which need not fit each other."""
    assert (pins()["torch"], pins()["torchvision"]) == ("2.14.1", "0.29.1")


def test_each_requirements_file_is_an_extra():
    lines = {
        path.name: [line for line in path.read_text().splitlines() if not line.startswith("#")]
        for path in ROOT.glob("requirements*.txt")
    }
    extras = {f"requirements-{extra}.txt": [f"-e .[{extra}]"] for extra in EXTRAS}
    assert lines == {"requirements.txt": [*PROJECT["dependencies"], "-e ."], **extras}


def test_the_citation_has_the_version_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == PROJECT["version"]


@pytest.mark.slow
def test_an_installed_wheel_predicts_without_the_repository(tiny_config, tmp_path):
    """The wheel has every module, and what the report is made from."""
    config = tiny_config()
    model = instantiate(config.model).eval()
    exported = tmp_path / "stitch.safetensors"
    classes = [f"class {i}" for i in range(model.roi_heads.num_classes)]
    export_stitch(exported, model, config, model.backbone.net.space[0], classes)
    source, site = tmp_path / "source", tmp_path / "site"
    # What is left of other builds, and would be in the wheel.
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "projects", source / "projects", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel_options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", tmp_path]
    subprocess.run([*pip, "wheel", *wheel_options, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("snnet_vitdet-*.whl")
    install_options = ["--no-deps", "--no-index", "--target", site]
    subprocess.run([*pip, "install", *install_options, wheel], check=True, capture_output=True)
    program = f"""
import importlib, pkgutil
import numpy, snnet_vitdet
from detectron2.structures import Instances
names = [m.name for m in pkgutil.walk_packages(snnet_vitdet.__path__, "snnet_vitdet.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
from snnet_vitdet.modeling.weights import BUNDLED, read_weights
assert all(map(read_weights, BUNDLED))
predictor = snnet_vitdet.Predictor.from_file({str(exported)!r}, device="cpu")
found = predictor(numpy.zeros((64, 64, 3), numpy.uint8))
print(snnet_vitdet.__file__, len(names), isinstance(found, Instances))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        # In place of any other path to the package, and outside of the repository.
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    sources = list((ROOT / "projects/snnet_vitdet").rglob("*.py"))
    expected = f"{site / 'snnet_vitdet/__init__.py'} {len(sources) - 1} True"
    assert done.stdout.splitlines()[-1] == expected
    assets = "snnet_vitdet/report/assets"
    assert sorted(os.listdir(site / assets)) == sorted(os.listdir(ROOT / "projects" / assets))
    assert (site / "snnet_vitdet/py.typed").is_file()
    (distribution,) = importlib.metadata.distributions(path=[str(site)])
    assert "torch>=2.5" in distribution.requires

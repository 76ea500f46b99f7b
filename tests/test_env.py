"""The report on an environment: what it says of one that is complete, empty or broken."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from snnet_vitdet import env

ROOT = Path(__file__).resolve().parents[1]


def write_distribution(site: Path, name: str, version: str, module: str, source: str = "") -> None:
    """Writes what an installed package consists of, as far as the report looks."""
    (site / module).mkdir(parents=True)
    (site / module / "__init__.py").write_text(source)
    write_metadata(site, name, version)


def write_metadata(site: Path, name: str, version: str, *requirements: str) -> None:
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path):
    """Installed packages: this one alone, which needs torch, torchvision and timm."""
    requirements = ["torch>=2.5", "torchvision", "timm>=1.0.22", 'gradio>=6; extra == "demo"']
    write_metadata(tmp_path, "snnet-vitdet", "0.1.0", *requirements)
    return tmp_path


def run_report(site: Path) -> subprocess.CompletedProcess:
    """Runs the report with only the standard library, this package and ``site``."""
    # Not the checkout's own folder, where an editable installation leaves its metadata.
    (site / "snnet_vitdet").symlink_to(ROOT / "projects/snnet_vitdet")
    path = f"import sys; sys.path.insert(0, {str(site)!r})"
    code = f"{path}; from snnet_vitdet import env; sys.exit(env.main())"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )


def test_this_environment_has_all_that_is_required(capsys):
    assert env.main() == 0
    text = capsys.readouterr().out
    assert re.search(r"^detectron2 +\d+\.\d+", text, re.MULTILINE)
    assert re.search(r"^PyTorch +\d+\.\d+", text, re.MULTILINE)
    assert "detectron2._C, its compiled operators, is not needed" in text
    assert text.endswith("\nEverything that is required is here.\n")


def test_an_empty_environment_gets_a_report_that_names_everything_missing(site):
    result = run_report(site)
    assert result.returncode == 1, result.stderr
    assert result.stdout.endswith(
        "\nMissing or unsuitable:\n"
        "  - not installed: torch, torchvision, timm. "
        "Run: python -m pip install -r requirements.txt\n"
        "  - not installed: detectron2. Run: python tools/install_detectron2.py\n"
    )
    assert re.search(r"^torch +MISSING$", result.stdout, re.MULTILINE)
    assert result.stderr == ""


def test_a_package_that_only_lies_on_the_path_is_to_be_installed(tmp_path):
    result = run_report(tmp_path)
    assert result.returncode == 1, result.stderr
    expected = "not installed: snnet-vitdet. Run: python -m pip install -r requirements.txt"
    assert expected in result.stdout


def test_a_torch_that_does_not_load_is_a_line_and_no_traceback(site):
    write_distribution(
        site, "torch", "2.14.1", "torch", "raise OSError('libcudart.so: cannot open')"
    )
    result = run_report(site)
    assert result.returncode == 1, result.stderr
    assert (
        "  - torch 2.14.1 does not work: OSError: libcudart.so: cannot open. Reinstall it"
    ) in result.stdout
    assert result.stderr == ""


def test_a_torchvision_made_for_another_torch_is_named_with_the_remedy(site):
    write_distribution(site, "torch", "2.14.1", "torch")
    torchvision = "raise RuntimeError('no torchvision::nms')"
    write_distribution(site, "torchvision", "0.26.0", "torchvision", torchvision)
    result = run_report(site)
    assert (
        "  - torchvision 0.26.0 does not work: RuntimeError: no torchvision::nms. "
        "Install the torchvision that was built for torch 2.14.1.\n"
    ) in result.stdout
    assert result.returncode == 1


def test_a_version_outside_its_range_is_named_with_the_range(monkeypatch):
    monkeypatch.setattr(env, "_requirements", lambda: ["omegaconf<2.4,>=2.3"])
    versions = {"omegaconf": "2.4.0"}
    monkeypatch.setattr(env, "_version", versions.get)
    assert env.report()[1][0] == (
        "omegaconf 2.4.0 is not within omegaconf<2.4,>=2.3. "
        "Run: python -m pip install -r requirements.txt"
    )
    versions["omegaconf"] = "2.3.9"
    assert env.report()[1] == ["not installed: detectron2. Run: python tools/install_detectron2.py"]


def test_another_build_of_opencv_counts(tmp_path):
    write_metadata(tmp_path, "snnet-vitdet", "0.1.0", "opencv-python-headless>=4.7")
    write_distribution(tmp_path, "opencv-python", "4.12.0", "cv2")
    result = run_report(tmp_path)
    assert re.search("^opencv-python-headless +another build, in ", result.stdout, re.MULTILINE)
    assert "opencv" not in result.stdout.partition("Missing or unsuitable:")[2]


def test_a_folder_without_init_does_not_count_as_installed(site):
    write_metadata(site, "detectron2", "0.6")
    (site / "detectron2" / "modeling").mkdir(parents=True)
    assert "not installed: detectron2" in run_report(site).stdout


def test_a_detectron2_without_the_pyramid_is_a_problem(monkeypatch):
    monkeypatch.setattr(env.importlib, "import_module", lambda name: object())
    problem = env._import_problem("detectron2", {"torch": "2.14.1", "detectron2": "0.5"})
    assert problem == (
        "detectron2 0.5 does not work: it has no SimpleFeaturePyramid (ViTDet). Upgrade it by "
        "upstream's INSTALL.md, or uninstall it and run: python tools/install_detectron2.py"
    )

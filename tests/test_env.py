import importlib.machinery
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from snnet_vitdet import env

ROOT = Path(__file__).resolve().parents[1]


def write_distribution(site: Path, name: str, version: str, module: str, source: str = "") -> None:
    """Write what an installed package consists of, as far as the report looks."""
    (site / module).mkdir(parents=True)
    (site / module / "__init__.py").write_text(source)
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(f"{module}\n")


def run_report(site: Path, *code: str) -> subprocess.CompletedProcess:
    """Run the report in a Python that sees only the standard library, this package and ``site``."""
    paths = [str(ROOT / "projects"), str(site)]
    lines = ["import sys", f"sys.path[:0] = {paths!r}", "from snnet_vitdet import env", *code]
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=False,
    )


def report_on(*packages: env.PackageReport) -> env.EnvironmentReport:
    return env.EnvironmentReport("3.11", "Linux", packages, None, ("CPU",))


def test_its_requirements_are_those_of_requirements_txt():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith(("#", "-e "))]
    assert list(env.REQUIREMENTS) == listed


def test_this_environment_has_all_that_is_required(capsys):
    assert env.main() == 0
    text = capsys.readouterr().out
    assert re.search(r"^torch +\d+\.\d+", text, re.MULTILINE)
    assert re.search(r"^detectron2\._C +(not )?there \(compiled operators; not", text, re.MULTILINE)
    assert re.search(r"^Device +CPU, \d+ cores usable", text, re.MULTILINE)
    assert text.endswith("\nEverything that is required is here.\n")


def test_an_empty_environment_gets_a_report_that_names_everything_missing(tmp_path):
    result = run_report(tmp_path, "sys.exit(env.main())")
    assert result.returncode == 1, result.stderr
    names = [re.split("[<>=]", requirement)[0] for requirement in env.REQUIREMENTS]
    assert result.stdout.endswith(
        "\nMissing or unsuitable:\n"
        f"  - not installed: {', '.join(names)}. Run: python -m pip install -r requirements.txt\n"
        "  - not installed: detectron2. Run: python tools/install_detectron2.py\n"
    )
    assert re.search(r"^torch +MISSING$", result.stdout, re.MULTILINE)
    assert re.search(r"^Device +CPU, \d+ cores usable$", result.stdout, re.MULTILINE)
    assert result.stderr == ""


def test_a_torch_that_does_not_load_is_a_line_and_no_traceback(tmp_path):
    write_distribution(
        tmp_path, "torch", "2.14.1", "torch", "raise OSError('libcudart.so: cannot open')"
    )
    result = run_report(tmp_path, "sys.exit(env.main())")
    assert result.returncode == 1, result.stderr
    assert (
        "  - torch 2.14.1 does not work: OSError: libcudart.so: cannot open. Reinstall it"
    ) in result.stdout
    assert result.stderr == ""


def test_a_torchvision_made_for_another_torch_is_named_with_the_remedy(tmp_path):
    torch = (
        "from types import SimpleNamespace as N\n"
        "version = N(cuda=None)\ncuda = N(device_count=lambda: 0)\n"
        "def get_num_threads(): return 3\n"
    )
    write_distribution(tmp_path, "torch", "2.14.1", "torch", torch)
    torchvision = "raise RuntimeError('no torchvision::nms')"
    write_distribution(tmp_path, "torchvision", "0.26.0", "torchvision", torchvision)
    result = run_report(tmp_path, "sys.exit(env.main())")
    assert (
        "  - torchvision 0.26.0 does not work: RuntimeError: no torchvision::nms. "
        "Install the torchvision that was built for torch 2.14.1.\n"
    ) in result.stdout
    assert "torch computes with 3\n" in result.stdout
    assert "no CUDA device (this torch is built for the CPU only)" in result.stdout
    assert result.returncode == 1


def test_a_version_outside_its_range_is_named_with_the_range(monkeypatch):
    monkeypatch.setattr(env, "_installed_version", lambda name, module: "2.4.0")
    package = env.inspect_package("omegaconf>=2.3,<2.4", "omegaconf")
    assert package.problem == (
        "omegaconf 2.4.0 is not within omegaconf>=2.3,<2.4. "
        "Run: python -m pip install -r requirements.txt"
    )
    monkeypatch.setattr(env, "_installed_version", lambda name, module: "2.3.9")
    assert env.inspect_package("omegaconf>=2.3,<2.4", "omegaconf").problem == ""


def test_a_module_under_another_distribution_name_counts(tmp_path):
    write_distribution(tmp_path, "opencv-python", "4.12.0", "cv2")
    code = "print(env.inspect_package('opencv-python-headless', 'cv2'))"
    result = run_report(tmp_path, code)
    assert "version='4.12.0', problem=''" in result.stdout, result.stderr


def test_a_folder_without_init_does_not_count_as_installed(tmp_path):
    (tmp_path / "detectron2" / "modeling").mkdir(parents=True)
    result = run_report(tmp_path, "print(env.inspect_package('detectron2', 'detectron2'))")
    assert "version=None" in result.stdout, result.stderr


def test_a_detectron2_without_the_pyramid_is_a_problem(monkeypatch):
    modeling = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("modeling", None))
    monkeypatch.setattr(env.importlib, "import_module", lambda name: modeling)
    packages = {name: env.PackageReport(name, "1.0") for name in ("torch", "torchvision")}
    packages["detectron2"] = env.PackageReport("detectron2", "0.5")
    env._check_imports(packages)
    assert packages["detectron2"].problem == (
        "detectron2 0.5 does not work: it has no SimpleFeaturePyramid (ViTDet). Upgrade it by "
        "upstream's INSTALL.md, or uninstall it and run: python tools/install_detectron2.py"
    )


@pytest.mark.parametrize(
    ("generator", "expected"),
    [
        ("snnet_vitdet/tools/install_detectron2.py", "pure Python, made by tools/install_detectr"),
        ("bdist_wheel (0.45.1)", "another build, in "),
    ],
)
def test_the_build_of_detectron2_is_told_by_its_generator(tmp_path, generator, expected):
    write_distribution(tmp_path, "detectron2", "0.6", "detectron2")
    wheel = tmp_path / "detectron2-0.6.dist-info" / "WHEEL"
    wheel.write_text(f"Wheel-Version: 1.0\nGenerator: {generator}\n")
    result = run_report(tmp_path, "print(env.collect().packages[-1])")
    assert f"note='{expected}" in result.stdout, result.stderr


def test_the_installer_writes_the_generator_that_the_report_looks_for():
    source = (ROOT / "tools" / "install_detectron2.py").read_text()
    generator = re.search(r'^GENERATOR = "(.*)"$', source, re.MULTILINE)
    assert f"Generator: {generator[1]}" == env._OWN_BUILD


def test_compiled_operators_are_told_by_their_file(tmp_path):
    assert not env.has_compiled_operators(tmp_path)
    (tmp_path / "_C.txt").touch()
    assert not env.has_compiled_operators(tmp_path)
    (tmp_path / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}").touch()
    assert env.has_compiled_operators(tmp_path)


def test_problems_come_with_the_remedy_and_their_absence_is_said():
    good = env.PackageReport("torch", "2.14.1")
    missing = env.PackageReport("timm", None)
    assert str(report_on(good)).endswith("\nEverything that is required is here.")
    text = str(report_on(good, missing))
    assert "timm      MISSING\n" in text
    assert text.endswith(
        "Missing or unsuitable:\n"
        "  - not installed: timm. Run: python -m pip install -r requirements.txt"
    )

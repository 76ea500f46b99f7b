"""tools/install_detectron2.py against a miniature carrier wheel, without network."""

import base64
import csv
import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"


spec = importlib.util.spec_from_file_location("install_detectron2", TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

SOURCES = {
    "__init__.py": '__version__ = "0.6"\n',
    "modeling/__init__.py": "from .backbone.vit import SimpleFeaturePyramid\n",
    "modeling/backbone/__init__.py": "",
    "modeling/backbone/vit.py": "class SimpleFeaturePyramid:\n    pass\n",
    "utils/env.py": "import detectron2.modeling\n",
    "model_zoo/configs/base.yaml": "MODEL: {}\n",
}


def digest_by_definition(sources: dict[str, str]) -> str:
    """The digest by its definition, written independently of the tool."""
    text = b""
    for path in sorted(path for path in sources if path.endswith(".py")):
        contents = hashlib.sha256(sources[path].encode()).hexdigest().encode()
        text += path.encode() + b"\x00" + contents + b"\n"
    return hashlib.sha256(text).hexdigest()


def write_carrier(folder: Path, sources: dict[str, str] = SOURCES) -> Path:
    """Write a wheel that carries these sources as labgym does."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "labgym-3.1.2-py3-none-any.whl"
    info = "labgym-3.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("LabGym/__init__.py", "raise RuntimeError('not part of detectron2')\n")
        archive.writestr("LabGym/detectron2_notes.py", "")
        for path, text in sources.items():
            carried = text.replace("detectron2.", "LabGym.detectron2.")
            archive.writestr(f"LabGym/detectron2/{path}", carried)
        archive.writestr("LabGym/detectron2/__pycache__/env.cpython-310.pyc", b"\x00")
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: LabGym\nVersion: 3.1.2\nRequires-Python: <3.11,>=3.9\n"
            "Requires-Dist: no-such-distribution\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def constants_for(carrier: Path, sources: dict[str, str] = SOURCES) -> dict[str, str]:
    """The constants of a tool that accepts this carrier with these sources."""
    return {
        "CARRIER_SHA256": hashlib.sha256(carrier.read_bytes()).hexdigest(),
        "SOURCES_DIGEST": digest_by_definition(sources),
    }


@pytest.fixture
def carrier(tmp_path):
    return write_carrier(tmp_path / "index")


@pytest.fixture
def pinned(monkeypatch, carrier):
    """The tool accepts the miniature carrier instead of the real one."""
    constants = constants_for(carrier)
    for name, value in constants.items():
        monkeypatch.setattr(tool, name, value)
    return constants


def error_of(*arguments: str) -> str:
    """The message that the tool ends with."""
    with pytest.raises(SystemExit) as end:
        tool.main(list(arguments))
    return end.value.code


@pytest.fixture
def no_detectron2(monkeypatch):
    monkeypatch.setattr(tool, "find_package", lambda: None)


@pytest.fixture
def pip_calls(monkeypatch):
    """Record pip's arguments instead of running it."""
    calls = []

    def record(*arguments):
        calls.append(arguments)
        return 0, ""

    monkeypatch.setattr(tool, "run_pip", record)
    return calls


class Environment:
    """A throwaway virtual environment in which the tool runs as a user would run it."""

    def __init__(self, folder: Path):
        venv.create(folder, with_pip=True)
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def run(self, *command: str, index: Path | None = None) -> subprocess.CompletedProcess:
        """Run Python there; pip sees no network, only the wheels in ``index``."""
        variables = {name: value for name, value in os.environ.items() if name[:4] != "PIP_"}
        variables.pop("PYTHONPATH", None)
        variables |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
        if index is not None:
            variables["PIP_FIND_LINKS"] = str(index)
        return subprocess.run(
            [str(self.python), *command],
            env=variables,
            # Not the checkout: the current folder is on the path of "python -c".
            cwd=self.python.parent,
            capture_output=True,
            text=True,
            check=False,
        )

    def run_tool(self, constants: dict[str, str], *arguments: str, index: Path | None = None):
        code = (
            f"import sys; sys.path.insert(0, {str(TOOL.parent)!r}); "
            f"import install_detectron2 as tool; vars(tool).update({constants!r}); tool.main()"
        )
        return self.run("-c", code, *arguments, index=index)

    def has_detectron2(self) -> bool:
        return self.run("-c", "import detectron2.modeling").returncode == 0


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("environment") / "venv")


@pytest.fixture
def clean_environment(environment):
    environment.run("-m", "pip", "uninstall", "--yes", "detectron2")
    assert not environment.has_detectron2()
    return environment


# --- the life of an installation, through the real pip ---


def test_it_installs_from_the_index_then_stays_then_uninstalls(clean_environment, carrier, pinned):
    environment, index = clean_environment, carrier.parent

    first = environment.run_tool(pinned, index=index)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1].startswith("Installed detectron2 0.6 (upstream commit")
    code = "import detectron2.utils.env as env; print(env.detectron2.__version__)"
    version = environment.run("-c", code)
    assert version.stdout == "0.6\n"

    shown = environment.run("-m", "pip", "show", "--files", "detectron2").stdout.splitlines()
    assert {"Name: detectron2", "Version: 0.6", "License: Apache-2.0"} <= set(shown)
    assert f"  {Path('detectron2-0.6.dist-info/LICENSE')}" in shown

    second = environment.run_tool(pinned)
    assert second.returncode == 0, second.stderr
    assert re.fullmatch(r"detectron2 is there already, in .*: left as it is\.\n", second.stdout)

    removed = environment.run("-m", "pip", "uninstall", "--yes", "detectron2")
    assert removed.returncode == 0, removed.stderr
    assert not environment.has_detectron2()

    third = environment.run_tool(pinned, "--wheel", str(carrier))
    assert third.returncode == 0, third.stderr
    assert environment.has_detectron2()


def test_without_network_the_error_says_how_to_bring_the_wheel(clean_environment, pinned):
    result = clean_environment.run_tool(pinned)
    assert result.returncode == 1
    assert result.stderr.startswith("error: pip could not download labgym==3.1.2: ")
    assert "No matching distribution found for labgym==3.1.2" in result.stderr
    assert "Check the network, the proxy and the package index" in result.stderr
    assert "install_detectron2.py --wheel THAT_FILE" in result.stderr
    assert not clean_environment.has_detectron2()


def test_another_file_on_the_index_is_refused(clean_environment, tmp_path, pinned):
    index = tmp_path / "tampered"
    write_carrier(index, {**SOURCES, "utils/env.py": "import os\n"})
    result = clean_environment.run_tool(pinned, index=index)
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: The package index offers a labgym==3.1.2 whose sha256 is not "
        f"{pinned['CARRIER_SHA256']}; nothing was installed."
    )
    assert not clean_environment.has_detectron2()


def test_what_an_interrupted_installation_leaves_is_installed_over(
    clean_environment, carrier, pinned
):
    site = clean_environment.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    leftover = Path(site.stdout.strip()) / "detectron2" / "modeling" / "backbone" / "vit.py"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("class SimpleFea")
    result = clean_environment.run_tool(pinned, "--wheel", str(carrier))
    assert result.returncode == 0, result.stderr
    assert leftover.read_text() == SOURCES["modeling/backbone/vit.py"]
    assert clean_environment.has_detectron2()


# --- verification ---


def test_the_digest_is_the_one_of_the_definition():
    files = {path: text.encode() for path, text in reversed(SOURCES.items())}
    assert tool.sources_digest(files) == digest_by_definition(SOURCES)


def test_reading_takes_the_prefix_off_and_leaves_the_rest_behind(carrier, pinned):
    files = tool.read_sources(carrier)
    assert {path: data.decode() for path, data in files.items()} == SOURCES


def test_a_given_wheel_with_another_sha256_is_refused(carrier, pinned, no_detectron2, pip_calls):
    carrier.write_bytes(carrier.read_bytes() + b"\x00")
    error = error_of("--wheel", str(carrier))
    assert f"error: {carrier} has sha256" in error
    assert f"not {pinned['CARRIER_SHA256']}; nothing was installed" in error
    assert pip_calls == []


def test_sources_of_another_commit_are_refused(tmp_path, monkeypatch, no_detectron2, pip_calls):
    sources = {**SOURCES, "extra.py": "\n"}
    carrier = write_carrier(tmp_path, sources)
    for name, value in constants_for(carrier, SOURCES).items():
        monkeypatch.setattr(tool, name, value)
    error = error_of("--wheel", str(carrier))
    assert "error: The Python files of detectron2 in labgym==3.1.2 have the digest " in error
    assert digest_by_definition(sources) in error
    assert "nothing was installed" in error
    assert pip_calls == []


def test_pip_refusing_to_install_is_reported_with_its_reason(
    carrier, pinned, no_detectron2, monkeypatch
):
    output = "Processing detectron2\nerror: externally-managed-environment\n\nhint: See PEP 668\n"
    monkeypatch.setattr(tool, "run_pip", lambda *arguments: (1, output))
    error = error_of("--wheel", str(carrier))
    assert f"pip could not install detectron2 into {sys.prefix}: externally-managed-env" in error
    assert "virtual environment you may write to ('make setup' makes one in .venv)" in error


# --- a detectron2 that is there already ---


def write_package(folder: Path, sources: dict[str, str]) -> Path:
    for path, text in sources.items():
        file = folder / "detectron2" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "detectron2"


def test_an_older_detectron2_is_an_error_and_is_left_alone(
    tmp_path, monkeypatch, pinned, pip_calls
):
    older = {path: text for path, text in SOURCES.items() if "vit" not in path}
    package = write_package(tmp_path, older)
    monkeypatch.setattr(tool, "find_package", lambda: package)
    error = error_of()
    assert error.startswith(f"error: The detectron2 in {package} has no SimpleFeaturePyramid")
    assert "'python -m pip uninstall detectron2'" in error
    assert pip_calls == []


def test_a_usable_detectron2_stays_without_pip_being_run(
    tmp_path, monkeypatch, pinned, pip_calls, capsys
):
    package = write_package(tmp_path, SOURCES)
    monkeypatch.setattr(tool, "find_package", lambda: package)
    tool.main([])
    assert f"detectron2 is there already, in {package}" in capsys.readouterr().out
    assert pip_calls == []


def test_the_pyramid_must_be_exported_and_not_only_mentioned(tmp_path):
    mentioned = {**SOURCES, "modeling/backbone/vit.py": "# no class SimpleFeaturePyramid yet\n"}
    hidden = {**SOURCES, "modeling/__init__.py": "\n"}
    assert tool.has_feature_pyramid(write_package(tmp_path / "usable", SOURCES))
    assert not tool.has_feature_pyramid(write_package(tmp_path / "mentioned", mentioned))
    assert not tool.has_feature_pyramid(write_package(tmp_path / "hidden", hidden))


# --- the wheel it builds ---


def test_the_record_of_the_wheel_holds_the_hash_and_size_of_every_file(carrier, pinned, tmp_path):
    wheel = tool.build_wheel(tool.read_sources(carrier), tmp_path / "new" / "out")
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    record_name = "detectron2-0.6.dist-info/RECORD"
    rows = list(csv.reader(io.StringIO(contents[record_name].decode())))
    expected = []
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        is_record = name == record_name
        expected.append([name, *(["", ""] if is_record else [f"sha256={digest}", str(len(data))])])
    assert rows == expected
    assert {f"detectron2/{path}" for path in SOURCES} < set(contents)


def test_the_wheel_names_its_licence_and_where_its_sources_come_from(carrier, pinned, tmp_path):
    wheel = tool.build_wheel(tool.read_sources(carrier), tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        licence = archive.read("detectron2-0.6.dist-info/LICENSE").decode()
        notice = archive.read("detectron2-0.6.dist-info/NOTICE").decode()
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", licence)
    assert "Copyright (c) Facebook, Inc. and its affiliates." in notice
    assert f"github.com/facebookresearch/detectron2 at commit\n{tool.COMMIT}" in notice
    assert "labgym==3.1.2" in notice


def test_the_package_becomes_importable_only_after_all_its_modules_are_written(
    carrier, pinned, tmp_path
):
    wheel = tool.build_wheel(tool.read_sources(carrier), tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        package = [name for name in archive.namelist() if name.startswith("detectron2/")]
    assert package[-1] == "detectron2/__init__.py"


def test_build_only_leaves_a_reproducible_wheel_and_installs_nothing(
    carrier, pinned, pip_calls, tmp_path, capsys
):
    arguments = ["--wheel", str(carrier), "--build-only"]
    tool.main([*arguments, str(tmp_path / "a")])
    tool.main([*arguments, str(tmp_path / "b")])
    name = "detectron2-0.6-py3-none-any.whl"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert f"Built {tmp_path / 'a' / name}" in capsys.readouterr().out
    assert pip_calls == []

"""Every program tells OpenMP's threads to sleep while they wait, before torch is loaded."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OMP = "snnet_vitdet.omp"
# It runs before there is a package, and needs Python alone.
WITHOUT = {"tools/install_detectron2.py"}


def is_program(path):
    return '__name__ == "__main__"' in path.read_text(encoding="utf-8")


PROGRAMS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("projects", "tools", "research", "")
    for path in (ROOT / folder).glob("**/*.py" if folder else "*.py")
    if is_program(path)
)


def imported(path):
    """The modules that a file imports at its top, without the standard library, in order."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if not is_pythons(each.name))
        elif isinstance(node, ast.ImportFrom) and not is_pythons(node.module or ""):
            yield node.module


def is_pythons(name):
    return name.partition(".")[0] in sys.stdlib_module_names


def test_all_programs_are_looked_at():
    assert {"train_net.py", "tools/predict.py", "projects/snnet_vitdet/demo/__main__.py"} <= set(
        PROGRAMS
    )
    assert len(PROGRAMS) >= 14 and set(PROGRAMS) >= WITHOUT


@pytest.mark.parametrize("program", [*PROGRAMS, "tests/conftest.py"])
def test_a_program_sets_the_policy_before_it_loads_anything(program):
    found = list(imported(ROOT / program))
    assert found[:1] == ([] if program in WITHOUT else [OMP])


def test_the_policy_is_set_without_torch():
    code = f"import sys, {OMP}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# libgomp prints its settings when it is loaded: they are what is in effect.
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch has another OpenMP")
@pytest.mark.parametrize(("given", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
@pytest.mark.parametrize("program", ["train_net.py", "tools/list_anchors.py"])
def test_torch_is_loaded_with_the_policy_unless_the_user_has_set_one(program, given, policy):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "TRUE"} | ({"OMP_WAIT_POLICY": given} if given else {})
    run = subprocess.run(
        [sys.executable, program, "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    said = {line.strip() for line in run.stderr.splitlines() if "OMP_WAIT_POLICY" in line}
    assert said and all(f"OMP_WAIT_POLICY = '{policy}'" in line for line in said)

"""No file that is given to the programs is run as code, and no text of a user goes to a shell."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("projects", "tools", "configs", "research")
    for path in (ROOT / folder).rglob("*.py")
) + ["train_net.py"]

# What runs text or bytes as code.
RUNS_CODE = {
    *("eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"),
    *("pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "marshal.loads"),
    *("torch.jit.load", "joblib.load", "runpy.run_path", "importlib.import_module"),
    *("np.load", "numpy.load"),
    # Harmless with weights_only, and still for the one reader of weight files alone.
    *("torch.load", "torch.hub.load", "load_state_dict_from_url"),
}
# Exceptions, with their reasons.
ALLOWED = {
    # Its loader makes only plain values.
    ("projects/snnet_vitdet/engine/saved_config.py", "yaml.load"),
    # With weights_only=True; checked below.
    ("projects/snnet_vitdet/weight_files.py", "torch.load"),
    # It reads what the same process has pickled.
    ("projects/snnet_vitdet/data/mapper.py", "pickle.loads"),
    # With allow_pickle=False; checked below.
    ("projects/snnet_vitdet/evaluation/detections.py", "np.load"),
    # The names are constants in the source.
    ("projects/snnet_vitdet/env.py", "importlib.import_module"),
    # It compares a file that it has just written with the model.
    ("projects/snnet_vitdet/deploy/export_graphs.py", "torch.jit.load"),
}


def calls(source):
    """(name as written, arguments by keyword) of every call in a file."""
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            yield ast.unparse(node.func), keywords


def problems(source):
    """Yields calls in a file that could run code of somebody else."""
    for name, keywords in calls(source):
        if name in RUNS_CODE and (source, name) not in ALLOWED:
            yield f"{source}: {name}"
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield f"{source}: torch.load without weights_only=True"
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False":
            yield f"{source}: {name} with allow_pickle"
        if keywords.get("shell", "False") != "False":
            yield f"{source}: {name} with a shell"


def test_nothing_that_is_read_is_run():
    assert len(SOURCES) > 100
    assert not [problem for source in SOURCES for problem in problems(source)]


def test_every_exception_is_still_one():
    found = {(source, name) for source in SOURCES for name, _ in calls(source)}
    assert found >= ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_is_for(line, tmp_path):
    (tmp_path / "bad.py").write_text(f"import torch\n{line}\n")
    assert list(problems(tmp_path / "bad.py"))

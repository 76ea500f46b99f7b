"""What this Python environment has and what is missing: ``python -m snnet_vitdet.env``.

It must work in an environment that is broken. So it imports only the standard library at module
level, and a package that is missing or does not load is a line of the report.
"""

import importlib.metadata
import importlib.util
import platform
import re
import sys
import warnings

import snnet_vitdet.omp  # noqa: F401  # isort: skip

__all__ = ["main", "report"]

_INSTALL = "python -m pip install -r requirements.txt"
_INSTALL_DETECTRON2 = "python tools/install_detectron2.py"


def report() -> tuple[dict[str, str | None], list[str]]:
    """Looks at this environment and changes nothing.

    Returns:
        The version of each required package, None for one that is missing; and what is missing or
        does not work, each with its remedy.
    """
    versions: dict[str, str | None] = {}
    problems = []
    for requirement in _requirements():
        name = re.split(r"[^\w.-]", requirement)[0]
        versions[name] = version = _version(name)
        if version and not _is_within(version, requirement):
            problems.append(f"{name} {version} is not within {requirement}. Run: {_INSTALL}")
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        problems.insert(0, f"not installed: {', '.join(missing)}. Run: {_INSTALL}")
    versions["detectron2"] = _version("detectron2")
    if versions["detectron2"] is None:
        problems.append(f"not installed: detectron2. Run: {_INSTALL_DETECTRON2}")
    # Each needs those before it: a second error would be misleading.
    for module in ("torch", "torchvision", "detectron2"):
        if versions.get(module) is None or (module == "detectron2" and problems):
            break
        if problem := _import_problem(module, versions):
            problems.append(problem)
            break
    return versions, problems


def main() -> int:
    """Prints the report; returns 1 if something required is missing, else 0."""
    versions, problems = report()
    rows = {"Python": f"{platform.python_version()} ({sys.executable})"}
    rows |= {"Platform": platform.platform()}
    rows |= {name: version or "MISSING" for name, version in versions.items()}
    width = max(map(len, rows)) + 2
    print(*(f"{name:<{width}}{value}" for name, value in rows.items()), sep="\n")
    if problems:
        print("\nMissing or unsuitable:", *(f"  - {each}" for each in problems), sep="\n")
        return 1
    from detectron2.utils.collect_env import collect_env_info

    print(f"\n{collect_env_info()}")
    print("detectron2._C, its compiled operators, is not needed: torchvision's are used.")
    print("Everything that is required is here.")
    return 0


def _requirements() -> list[str]:
    """What pyproject.toml lists, without the extras, as this package was installed."""
    try:
        listed = importlib.metadata.requires("snnet-vitdet") or []
    except importlib.metadata.PackageNotFoundError:
        return ["snnet-vitdet"]
    return [requirement for requirement in listed if ";" not in requirement]


def _version(name: str) -> str | None:
    """The version that is installed; None if there is none, or it cannot be imported."""
    # The builds of OpenCV provide the same module.
    module = {"opencv-python-headless": "cv2", "detectron2": "detectron2"}.get(name)
    # A folder without __init__.py is what an interrupted installation leaves.
    spec = importlib.util.find_spec(module) if module else None
    if module and (spec is None or spec.origin is None):
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"another build, in {spec.origin}" if spec else None


def _is_within(version: str, requirement: str) -> bool:
    try:
        from packaging.requirements import Requirement
        from packaging.version import InvalidVersion
    except ImportError:  # it is reported as missing itself
        return True
    try:
        return Requirement(requirement).specifier.contains(version, prereleases=True)
    except InvalidVersion:  # another build, whose version is not known
        return True


def _import_problem(module: str, versions: dict[str, str | None]) -> str:
    """Imports what this project uses of a package; the error and its remedy, or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            imported = importlib.import_module(
                "detectron2.modeling" if module == "detectron2" else module
            )
        if module != "detectron2" or hasattr(imported, "SimpleFeaturePyramid"):
            return ""
        reason = "it has no SimpleFeaturePyramid (ViTDet)"
    # A library that was built for another torch raises any of these while it is loaded.
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    remedy = {
        "torch": "Reinstall it for this Python and platform.",
        "torchvision": f"Install the torchvision that was built for torch {versions['torch']}.",
        "detectron2": "Upgrade it by upstream's INSTALL.md, or uninstall it and run: "
        + _INSTALL_DETECTRON2,
    }[module]
    return f"{module} {versions[module]} does not work: {reason}. {remedy}"


if __name__ == "__main__":
    sys.exit(main())

"""What this Python environment has and what is missing: ``python -m snnet_vitdet.env``.

It must work in a broken environment. So it imports only the standard library at module level, and
reports a package that is missing or does not load.
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
    """Inspects the environment.

    Returns:
        The version of each required package, None if it is missing; and the problems, each with its
        remedy.
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
    # Each needs those before it, so only the first error counts.
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
    """The dependencies of this package as installed, without extras."""
    try:
        listed = importlib.metadata.requires("snnet-vitdet") or []
    except importlib.metadata.PackageNotFoundError:
        return ["snnet-vitdet"]
    return [requirement for requirement in listed if ";" not in requirement]


def _version(name: str) -> str | None:
    """The installed version of a package; None if it is missing or cannot be imported."""
    # The builds of OpenCV provide the same module.
    module = {"opencv-python-headless": "cv2", "detectron2": "detectron2"}.get(name)
    # An interrupted installation leaves a folder without __init__.py.
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
    except ImportError:  # packaging itself is reported as missing
        return True
    try:
        return Requirement(requirement).specifier.contains(version, prereleases=True)
    except InvalidVersion:  # another build, whose version is not known
        return True


def _import_problem(module: str, versions: dict[str, str | None]) -> str:
    """Imports a package; returns the error and its remedy, or an empty text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            imported = importlib.import_module(
                "detectron2.modeling" if module == "detectron2" else module
            )
        if module != "detectron2" or hasattr(imported, "SimpleFeaturePyramid"):
            return ""
        reason = "it has no SimpleFeaturePyramid (ViTDet)"
    # A library that was built for another torch may raise any of these.
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

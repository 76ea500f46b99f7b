"""What this Python environment has and what is missing: ``python -m snnet_vitdet.env``.

It is meant for an environment that does not work yet, so nothing outside the standard library is
imported at module level, and a package that is missing or broken is a line of the report.
"""

import dataclasses
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

__all__ = [
    "REQUIREMENTS",
    "EnvironmentReport",
    "PackageReport",
    "collect",
    "describe_devices",
    "has_compiled_operators",
    "inspect_package",
    "main",
]

REQUIREMENTS = {
    "torch>=2.5": "torch",
    "torchvision>=0.20": "torchvision",
    "numpy>=1.24": "numpy",
    "Pillow>=9.1": "PIL",
    "timm>=1.0.22": "timm",
    "safetensors>=0.4": "safetensors",
    "pycocotools>=2.0.8": "pycocotools",
    "faster-coco-eval>=1.6": "faster_coco_eval",
    "matplotlib>=3.6": "matplotlib",
    "fvcore>=0.1.5.post20221221,<0.1.6": "fvcore",
    "iopath>=0.1.9": "iopath",
    "omegaconf>=2.3,<2.4": "omegaconf",
    "hydra-core>=1.3": "hydra",
    "setuptools>=64,<81": "pkg_resources",
    "shapely>=2.0": "shapely",
    "black": "black",
    "cloudpickle": "cloudpickle",
    "opencv-python-headless>=4.7": "cv2",
    "packaging": "packaging",
    "tabulate": "tabulate",
    "tensorboard": "tensorboard",
    "termcolor>=1.1": "termcolor",
    "tqdm": "tqdm",
    "yacs>=0.1.8": "yacs",
}
"""The lines of requirements.txt, and the module each of them provides."""

# The Generator line that tools/install_detectron2.py writes into detectron2's WHEEL file.
_OWN_BUILD = "Generator: snnet_vitdet/tools/install_detectron2.py"
_INSTALL_REQUIREMENTS = "python -m pip install -r requirements.txt"
_INSTALL_DETECTRON2 = "python tools/install_detectron2.py"


@dataclass(frozen=True)
class PackageReport:
    """One package of the environment.

    Attributes:
        name: its name on the package index.
        version: the installed version; None if it is not installed, "unknown" if it can be
            imported but was not installed by pip.
        problem: what is wrong with an installed one, and the remedy; empty if nothing is.
        note: what else there is to say about it.
    """

    name: str
    version: str | None
    problem: str = ""
    note: str = ""


@dataclass(frozen=True)
class EnvironmentReport:
    """All that :func:`collect` found.

    Attributes:
        python: version and path of the interpreter.
        platform: operating system and processor.
        packages: the required packages, detectron2 last.
        compiled_operators: whether ``detectron2._C`` is there; None without detectron2.
        devices: one line for each device, the CPU first.
    """

    python: str
    platform: str
    packages: tuple[PackageReport, ...]
    compiled_operators: bool | None
    devices: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What is missing or unsuitable, each with its remedy; empty if all is well."""
        missing = [package.name for package in self.packages if package.version is None]
        indexed = [name for name in missing if name != "detectron2"]
        problems = []
        if indexed:
            problems.append(f"not installed: {', '.join(indexed)}. Run: {_INSTALL_REQUIREMENTS}")
        if "detectron2" in missing:
            problems.append(f"not installed: detectron2. Run: {_INSTALL_DETECTRON2}")
        problems += [package.problem for package in self.packages if package.problem]
        return tuple(problems)

    def __str__(self) -> str:
        rows = [("Python", self.python), ("Platform", self.platform)]
        for package in self.packages:
            note = f" ({package.note})" if package.note else ""
            rows.append((package.name, f"{package.version or 'MISSING'}{note}"))
        if self.compiled_operators is not None:
            rows.append(("detectron2._C", _describe_operators(self.compiled_operators)))
        rows += [("Device", device) for device in self.devices]
        width = max(len(name) for name, _ in rows) + 2
        lines = [f"{name:<{width}}{value}" for name, value in rows]
        if self.problems:
            lines += ["", "Missing or unsuitable:", *(f"  - {text}" for text in self.problems)]
        else:
            lines += ["", "Everything that is required is here."]
        return "\n".join(lines)


def inspect_package(requirement: str, module: str) -> PackageReport:
    """Say whether a requirement is met, without importing the package.

    Args:
        requirement: name and version range as in requirements.txt.
        module: the top-level module it provides.
    """
    name = re.split(r"[<>=!~]", requirement, maxsplit=1)[0]
    if _module_folder(module) is None:
        return PackageReport(name, None)
    version = _installed_version(name, module)
    if not _in_range(version, requirement):
        problem = f"{name} {version} is not within {requirement}. Run: {_INSTALL_REQUIREMENTS}"
        return PackageReport(name, version, problem)
    return PackageReport(name, version)


def has_compiled_operators(package: Path) -> bool:
    """Say whether the detectron2 in this folder was built with its compiled operators."""
    return any((package / f"_C{end}").is_file() for end in importlib.machinery.EXTENSION_SUFFIXES)


def describe_devices() -> tuple[str, ...]:
    """Describe the CPU and every CUDA device, one line each; needs a torch that works."""
    import torch

    lines = [f"CPU, {_usable_cores()} cores usable, torch computes with {torch.get_num_threads()}"]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        # Older ones only emulate bf16, at a fraction of their fp16 speed.
        bf16 = "bf16" if (device.major, device.minor) >= (8, 0) else "no bf16, use fp16"
        lines.append(f"cuda:{index}, {device.name}, {device.total_memory / 2**30:.1f} GiB, {bf16}")
    if len(lines) == 1:
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU only"
        lines.append(f"no CUDA device (this torch is built {build})")
    return tuple(lines)


def collect() -> EnvironmentReport:
    """Look at this environment; nothing of it is changed."""
    packages = {
        module: inspect_package(requirement, module) for requirement, module in REQUIREMENTS.items()
    }
    detectron2 = _module_folder("detectron2")
    packages["detectron2"] = inspect_package("detectron2", "detectron2")
    if detectron2 is not None:
        note = _describe_build(detectron2)
        packages["detectron2"] = dataclasses.replace(packages["detectron2"], note=note)
    _check_imports(packages)
    # A torch that does not even load has its problem noted by now.
    torch_works = packages["torch"].version is not None and not packages["torch"].problem
    return EnvironmentReport(
        python=f"{platform.python_version()} ({sys.executable})",
        platform=platform.platform(),
        packages=tuple(packages.values()),
        compiled_operators=None if detectron2 is None else has_compiled_operators(detectron2),
        devices=describe_devices() if torch_works else (f"CPU, {_usable_cores()} cores usable",),
    )


def main() -> int:
    """Print the report; return 1 if something required is missing, else 0."""
    report = collect()
    sys.stdout.write(f"{report}\n")
    return 1 if report.problems else 0


def _check_imports(packages: dict[str, PackageReport]) -> None:
    """Import the packages with compiled parts, and note the first that fails in ``packages``.

    Importing is the only proof that they fit each other. It ends at the first that fails or is
    missing: each one needs those before it, so that a second error would mislead.
    """
    torch_version = packages["torch"].version
    remedies = {
        "torch": "Reinstall it for this Python and platform.",
        "torchvision": f"Install the torchvision that was built for torch {torch_version}.",
        "detectron2": "Upgrade it by upstream's INSTALL.md, or uninstall it and run: "
        f"{_INSTALL_DETECTRON2}",
    }
    for module, remedy in remedies.items():
        needed = packages.values() if module == "detectron2" else [packages[module]]
        if any(package.version is None for package in needed):
            return
        failure = _import_failure(module)
        if failure:
            package = packages[module]
            problem = f"{package.name} {package.version} does not work: {failure}. {remedy}"
            packages[module] = dataclasses.replace(package, problem=problem)
            return


def _import_failure(module: str) -> str:
    """Import what this project uses of a package; return the error in one line, or ""."""
    target = "detectron2.modeling" if module == "detectron2" else module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            imported = importlib.import_module(target)
    # A library built for another torch raises any of these while it is loaded.
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    if module == "detectron2" and not hasattr(imported, "SimpleFeaturePyramid"):
        return "it has no SimpleFeaturePyramid (ViTDet)"
    return ""


def _module_folder(module: str) -> Path | None:
    """The folder of an importable package; a folder without ``__init__.py`` is none."""
    spec = importlib.util.find_spec(module)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _installed_version(name: str, module: str) -> str:
    """The version pip knows, under the package's own name or any that provides the module."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        providers = importlib.metadata.packages_distributions().get(module)
        return importlib.metadata.version(providers[0]) if providers else "unknown"


def _in_range(version: str, requirement: str) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # then it is reported as missing itself
        return True
    specifier = Requirement(requirement).specifier
    return version == "unknown" or specifier.contains(version, prereleases=True)


def _describe_build(package: Path) -> str:
    try:
        wheel = importlib.metadata.distribution("detectron2").read_text("WHEEL") or ""
    except importlib.metadata.PackageNotFoundError:
        return f"not installed by pip, in {package}"
    if _OWN_BUILD in wheel:
        return "pure Python, made by tools/install_detectron2.py"
    return f"another build, in {package}"


def _describe_operators(there: bool) -> str:
    if there:
        return "there (compiled operators; not needed, COCO scoring is faster with them)"
    return "not there (compiled operators; not needed: torchvision and pycocotools serve instead)"


def _usable_cores() -> int:
    # Containers and schedulers often allow fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())

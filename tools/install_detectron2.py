#!/usr/bin/env python3
"""Leave a usable detectron2 in the Python environment that runs this file.

Why this exists: detectron2 is not on the package index under its own name, many machines cannot
reach its repository, and building it fails for many. ViTDet needs none of its compiled operators.
One wheel on the package index, labgym, carries the complete Python part of detectron2 0.6 as a
subpackage. This program takes it from there, gives it its own import name back, checks it against
the upstream commit it is meant to be, and installs it as an ordinary distribution that pip lists
and uninstalls.

A detectron2 that is there already and has ``SimpleFeaturePyramid`` stays as it is; so whoever wants
upstream's build with compiled operators installs that first, by upstream's INSTALL.md.

    python tools/install_detectron2.py                       # the usual way
    python tools/install_detectron2.py --wheel labgym.whl    # no network: a wheel brought along
    python tools/install_detectron2.py --build-only DIR      # leave the detectron2 wheel in DIR

Only the standard library and pip are used, because this runs before anything else is installed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LICENSE_FILE = Path(__file__).resolve().parents[1] / "LICENSE"


class InstallError(Exception):
    """What went wrong and what to do about it, in one message for the user."""


@dataclass(frozen=True)
class Pin:
    """The one carrier wheel and the one upstream commit that are accepted.

    Attributes:
        carrier: name of the distribution that carries detectron2's sources.
        carrier_version: its exact version.
        carrier_sha256: hexadecimal sha256 of its wheel file.
        prefix: the package inside the carrier under which ``detectron2`` lies.
        version: what ``detectron2.__version__`` says in these sources.
        commit: the upstream commit the sources are equal to.
        sources_digest: :func:`sources_digest` of upstream's own tree at that commit.
    """

    carrier: str = "labgym"
    carrier_version: str = "3.1.2"
    carrier_sha256: str = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
    prefix: str = "LabGym"
    version: str = "0.6"
    commit: str = "864913f0e57e87a75c8cc0c7d79ecbd774fc669b"
    sources_digest: str = "f7ea1be0ce1a5fb67bd5316fdd295f7fa75ac6da3c8074febd9593982cdf281c"

    @property
    def requirement(self) -> str:
        return f"{self.carrier}=={self.carrier_version}"


PIN = Pin()

# The carrier declares Python < 3.11. Its detectron2 runs on newer ones, and nothing else of it is
# used, so pip is asked for what a Python 3.10 would get.
CARRIER_PYTHON = "3.10"

# What upstream's setup.py declares, but for iopath: it excludes 0.1.10, which the carrier admits
# and this project's tests run with. Like upstream's, the list leaves torch's build to the user.
REQUIRES = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore<0.1.6,>=0.1.5",
    "iopath<=0.1.10,>=0.1.7",
    "omegaconf<2.4,>=2.1",
    "hydra-core>=1.1",
    "black",
    "packaging",
)

# `python -m snnet_vitdet.env` tells this build from upstream's by this line of the WHEEL file.
GENERATOR = "snnet_vitdet/tools/install_detectron2.py"

NOTICE = """\
detectron2
Copyright 2019, Facebook, Inc
Copyright (c) Facebook, Inc. and its affiliates.
Licensed under the Apache License, Version 2.0 (see LICENSE).

These are the Python sources of github.com/facebookresearch/detectron2 at commit
{commit},
without the compiled operators (detectron2._C). They were taken from the wheel
{carrier} {carrier_version}, which redistributes them under the import prefix "{prefix}.";
that prefix was removed again, and the Python files were verified to be identical to
the commit's. The notice that wheel carries for them reads: "Detectron2 is a product of
Meta. Details on the project can be found here:
https://detectron2.readthedocs.io/en/latest/index.html."
"""


def find_package() -> Path | None:
    """Return the folder of the detectron2 that this Python would import, or None.

    Nothing of it is imported, for its ``__init__`` needs torch, which may not be there yet. A
    folder without ``__init__.py`` does not count: it is what an interrupted installation leaves
    (see :func:`build_wheel`), or a source checkout that happens to lie on the path.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def has_feature_pyramid(package: Path) -> bool:
    """Say whether the detectron2 in this folder has ``modeling.SimpleFeaturePyramid``."""
    definition = package / "modeling" / "backbone" / "vit.py"
    exports = package / "modeling" / "__init__.py"
    if not (definition.is_file() and exports.is_file()):
        return False
    defined = re.search(r"^class SimpleFeaturePyramid\b", _read_text(definition), re.MULTILINE)
    return bool(defined) and "SimpleFeaturePyramid" in _read_text(exports)


def run_pip(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run this Python's pip and return its result; its output is in ``stdout``."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    return subprocess.run(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def last_words(output: str) -> str:
    """Return the part of pip's output that says why it failed: its errors, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line[len("error:") :].strip() for line in lines if line.lower().startswith("error:")]
    return "; ".join(errors or lines[-1:])


def download_carrier(folder: Path, pin: Pin) -> Path:
    """Download the carrier wheel into a folder through pip, with the user's own index and proxy.

    Args:
        folder: an existing, empty folder.
        pin: which wheel.

    Returns:
        The path of the wheel, not verified yet.

    Raises:
        InstallError: pip could not fetch it, or what it found has another sha256.
    """
    requirements = folder / "carrier.txt"
    requirements.write_text(
        f"{pin.requirement} --hash=sha256:{pin.carrier_sha256}\n", encoding="utf-8"
    )
    options = ["--no-deps", "--only-binary=:all:", "--python-version", CARRIER_PYTHON]
    result = run_pip(
        ["download", *options, "--require-hashes", "--dest", str(folder), "-r", str(requirements)]
    )
    if result.returncode == 0:
        wheels = sorted(folder.glob("*.whl"))
        assert len(wheels) == 1, f"pip succeeded but left {wheels}"
        return wheels[0]
    if "DO NOT MATCH THE HASHES" in result.stdout:
        raise InstallError(
            f"The package index offers a {pin.requirement} whose sha256 is not "
            f"{pin.carrier_sha256}; nothing was installed. Use an index that serves the original "
            "file, or pass that file with --wheel."
        )
    raise InstallError(
        f"pip could not download {pin.requirement}: {last_words(result.stdout)}\n"
        "Check the network, the proxy and the package index that pip uses, then run this again. "
        "For a machine without network, run this elsewhere:\n"
        f"    python -m pip download {pin.requirement} {' '.join(options)}\n"
        "and here: python tools/install_detectron2.py --wheel THAT_FILE"
    )


def verify_sha256(path: Path, expected: str) -> None:
    """Check a file against a sha256.

    Raises:
        InstallError: the file is not there or is another one.
    """
    if not path.is_file():
        raise InstallError(f"There is no wheel at {path}: give the path of a downloaded file.")
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{path} has sha256 {actual}, not {expected}; nothing was installed. The file is "
            "damaged or another one: delete it and download it again."
        )


def read_sources(carrier: Path, pin: Pin) -> dict[str, bytes]:
    """Read detectron2's files out of the carrier wheel and take its import prefix off.

    Args:
        carrier: a verified wheel.
        pin: says under which prefix detectron2 lies there.

    Returns:
        The contents by POSIX path relative to ``detectron2/``.
    """
    root = f"{pin.prefix}/detectron2/"
    foreign, own = f"{pin.prefix}.detectron2".encode(), b"detectron2"
    with zipfile.ZipFile(carrier) as archive:
        names = [name for name in archive.namelist() if name.startswith(root)]
        return {
            name[len(root) :]: archive.read(name).replace(foreign, own)
            for name in names
            if name.endswith((".py", ".yaml"))
        }


def sources_digest(files: Mapping[str, bytes]) -> str:
    """Return one sha256 over all Python files.

    It is the sha256 over, for each ``*.py`` in the order of its path, that path, a zero byte, the
    hexadecimal sha256 of its contents and a newline.

    Args:
        files: contents by POSIX path relative to ``detectron2/``.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.endswith(".py"):
            digest.update(f"{path}\0{hashlib.sha256(files[path]).hexdigest()}\n".encode())
    return digest.hexdigest()


def verify_sources(files: Mapping[str, bytes], pin: Pin) -> None:
    """Check that these are the Python files of the pinned commit.

    Raises:
        InstallError: they are not.
    """
    actual = sources_digest(files)
    if actual != pin.sources_digest:
        count = sum(path.endswith(".py") for path in files)
        raise InstallError(
            f"The {count} Python files of detectron2 in {pin.requirement} have the digest "
            f"{actual}, not {pin.sources_digest} of upstream's commit {pin.commit}; nothing was "
            "installed. "
            "Get a fresh copy of this repository; if that does not help, install detectron2 from "
            "its own repository by its INSTALL.md."
        )


def build_wheel(files: Mapping[str, bytes], folder: Path, pin: Pin) -> Path:
    """Write detectron2's files as a pure-Python wheel.

    Args:
        files: contents by POSIX path relative to ``detectron2/``.
        folder: where to put the wheel; made if it is not there.
        pin: what the metadata says about the origin.

    Returns:
        The path of the wheel. Equal files give equal bytes.

    Raises:
        InstallError: this repository's LICENSE, which goes along, is missing.
    """
    if not LICENSE_FILE.is_file():
        raise InstallError(
            f"{LICENSE_FILE} is missing; detectron2 is not installed without its licence. Run this "
            "from a complete checkout of the repository."
        )
    # pip writes a wheel's files in their order in the archive. With detectron2/__init__.py after
    # all other modules, an interrupted installation leaves a folder that cannot be mistaken for
    # detectron2, and the next run installs over it.
    paths = sorted(files, key=lambda path: (path == "__init__.py", path))
    info = f"detectron2-{pin.version}.dist-info"
    members = {f"detectron2/{path}": files[path] for path in paths}
    members[f"{info}/LICENSE"] = LICENSE_FILE.read_bytes()
    members[f"{info}/NOTICE"] = NOTICE.format_map(vars(pin)).encode()
    members[f"{info}/METADATA"] = _metadata(pin).encode()
    members[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: {GENERATOR}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    ).encode()
    members[f"{info}/top_level.txt"] = b"detectron2\n"
    record = [f"{path},{_record_hash(data)},{len(data)}" for path, data in members.items()]
    members[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()

    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"detectron2-{pin.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in members.items():
            # A fixed time makes the wheel reproducible; zip cannot hold one before 1980.
            member = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
            member.external_attr = 0o644 << 16
            archive.writestr(member, data, compress_type=zipfile.ZIP_DEFLATED)
    return wheel


def install_wheel(wheel: Path) -> None:
    """Install the built wheel with pip, without its dependencies and without network.

    Raises:
        InstallError: pip refused.
    """
    # Forced, because this is reached only when detectron2 cannot be imported: if pip believes it
    # is there, its files were deleted behind pip's back.
    options = ["--no-deps", "--no-index", "--force-reinstall"]
    result = run_pip(["install", *options, str(wheel)])
    if result.returncode != 0:
        raise InstallError(
            f"pip could not install detectron2 into {sys.prefix}: {last_words(result.stdout)}\n"
            "Run this with the Python of a virtual environment you may write to ('make setup' "
            "makes one in .venv)."
        )


def check_existing() -> Path | None:
    """Return the folder of a usable detectron2, or None if there is none at all.

    Raises:
        InstallError: there is one, but it is too old; it is left alone.
    """
    package = find_package()
    if package is not None and not has_feature_pyramid(package):
        raise InstallError(
            f"The detectron2 in {package} has no SimpleFeaturePyramid (ViTDet), so it is older "
            "than this project needs. Upgrade it by upstream's INSTALL.md, or remove it with "
            "'python -m pip uninstall detectron2' and run this again."
        )
    return package


def make_wheel(carrier: Path | None, folder: Path, pin: Pin) -> Path:
    """Make the detectron2 wheel from the carrier, downloading that first if it is not given."""
    with tempfile.TemporaryDirectory(prefix="detectron2-") as scratch:
        if carrier is None:
            _say(f"Downloading {pin.requirement}, which carries the sources of detectron2 ...")
            carrier = download_carrier(Path(scratch), pin)
        verify_sha256(carrier, pin.carrier_sha256)
        files = read_sources(carrier, pin)
        verify_sources(files, pin)
        return build_wheel(files, folder, pin)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Install detectron2 (pure Python, no compiler needed) into this environment, "
        "unless a usable one is there."
    )
    parser.add_argument(
        "--wheel",
        type=Path,
        metavar="FILE",
        help=f"use this downloaded wheel of {PIN.requirement} instead of the network",
    )
    parser.add_argument(
        "--build-only",
        type=Path,
        metavar="DIR",
        help="install nothing; leave the detectron2 wheel in DIR, to copy it to other machines",
    )
    return parser.parse_args(argv)


def run(carrier: Path | None, build_only: Path | None, pin: Pin) -> None:
    """Do what the command line asks and say what was done."""
    origin = f"detectron2 {pin.version} (upstream commit {pin.commit[:7]}, pure Python)"
    if build_only is not None:
        wheel = make_wheel(carrier, build_only, pin)
        _say(f"Built {wheel}: {origin}. Install it with: python -m pip install --no-deps {wheel}")
        return
    existing = check_existing()
    if existing is not None:
        _say(f"detectron2 is there already, in {existing}, and has what is needed: left as it is.")
        return
    with tempfile.TemporaryDirectory(prefix="detectron2-") as scratch:
        install_wheel(make_wheel(carrier, Path(scratch), pin))
    _say(f"Installed {origin} into {sys.prefix}; all its Python files are as upstream has them.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: the command line without the program's name; the process's own by default.

    Returns:
        The exit status: 0, or 1 after one error message.
    """
    arguments = parse_arguments(argv)
    try:
        run(arguments.wheel, arguments.build_only, PIN)
    except (InstallError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _say(text: str) -> None:
    # Flushed, so that the line stands before what pip takes its time for.
    print(text, flush=True)


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _record_hash(data: bytes) -> str:
    encoded = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"sha256={encoded}"


def _metadata(pin: Pin) -> str:
    fields = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {pin.version}",
        f"Summary: detectron2 at upstream commit {pin.commit[:7]}, Python sources only "
        f"(taken from {pin.carrier} {pin.carrier_version})",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "License-File: LICENSE",
        "License-File: NOTICE",
        "Requires-Python: >=3.7",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
    ]
    return "\n".join([*fields, ""])


if __name__ == "__main__":
    sys.exit(main())

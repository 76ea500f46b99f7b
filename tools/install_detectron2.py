#!/usr/bin/env python3
"""Installs detectron2 into the Python environment that runs this file, unless it is there already.

detectron2 is not on the package index under its own name, many machines cannot reach its
repository, and building it fails for many. ViTDet needs none of its compiled operators. One wheel
on the package index, labgym, carries all Python files of detectron2 0.6 as a subpackage. This
program takes them from there, restores their import name, verifies that they are those of one
upstream commit, and installs them as a distribution that pip lists and uninstalls. It uses only
the standard library and pip, because it runs before anything else is installed.

    python tools/install_detectron2.py                       # the usual way
    python tools/install_detectron2.py --wheel labgym.whl    # no network: a wheel brought along
    python tools/install_detectron2.py --build-only DIR      # leave the detectron2 wheel in DIR

A detectron2 that has ``SimpleFeaturePyramid`` is left as it is: to use upstream's build with
compiled operators, install that first, by upstream's INSTALL.md.
"""

import argparse
import base64
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# The only wheel that is accepted. It declares Python < 3.11, but these files run on newer ones.
CARRIER = "labgym==3.1.2"
CARRIER_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
DOWNLOAD_OPTIONS = ["--no-deps", "--only-binary=:all:", "--python-version", "3.10"]
# The package in it that holds detectron2.
PREFIX = "LabGym"
# The commit of github.com/facebookresearch/detectron2, and sources_digest of its own files.
COMMIT = "864913f0e57e87a75c8cc0c7d79ecbd774fc669b"
SOURCES_DIGEST = "f7ea1be0ce1a5fb67bd5316fdd295f7fa75ac6da3c8074febd9593982cdf281c"
ORIGIN = f"detectron2 0.6 (upstream commit {COMMIT[:7]}, pure Python)"
LICENSE_FILE = Path(__file__).resolve().parents[1] / "LICENSE"
# As upstream's setup.py has them, but iopath 0.1.10, with which the tests run, is allowed.
REQUIRES = """
Pillow>=7.1 matplotlib pycocotools>=2.0.2 termcolor>=1.1 yacs>=0.1.8 tabulate cloudpickle
tqdm>4.29.0 tensorboard fvcore<0.1.6,>=0.1.5 iopath<=0.1.10,>=0.1.7 omegaconf<2.4,>=2.1
hydra-core>=1.1 black packaging
"""
METADATA = f"""\
Metadata-Version: 2.1
Name: detectron2
Version: 0.6
Summary: detectron2 at upstream commit {COMMIT[:7]}, Python sources only (taken from {CARRIER})
Home-page: https://github.com/facebookresearch/detectron2
License: Apache-2.0
License-File: LICENSE
License-File: NOTICE
Requires-Python: >=3.7
""" + "".join(f"Requires-Dist: {requirement}\n" for requirement in REQUIRES.split())
WHEEL = """\
Wheel-Version: 1.0
Generator: snnet_vitdet/tools/install_detectron2.py
Root-Is-Purelib: true
Tag: py3-none-any
"""
NOTICE = f"""\
detectron2
Copyright 2019, Facebook, Inc
Copyright (c) Facebook, Inc. and its affiliates.
Licensed under the Apache License, Version 2.0 (see LICENSE).

These are the Python sources of github.com/facebookresearch/detectron2 at commit
{COMMIT}, without the compiled operators.
They were taken from the wheel {CARRIER}, without the import prefix "{PREFIX}." that they
have there, and are identical to the commit's. The notice of that wheel reads: "Detectron2 is a
product of Meta. Details on the project can be found here:
https://detectron2.readthedocs.io/en/latest/index.html."
"""


class InstallError(Exception):
    """Says to the user what went wrong and what to do about it."""


def find_package():
    """The folder of the detectron2 that this Python would import, or None."""
    # An interrupted installation leaves a folder without __init__.py, which has no origin.
    spec = importlib.util.find_spec("detectron2")
    return Path(spec.origin).parent if spec and spec.origin else None


def has_feature_pyramid(package):
    """Whether the detectron2 in this folder has ``modeling.SimpleFeaturePyramid``."""
    definition, exports = package / "modeling/backbone/vit.py", package / "modeling/__init__.py"
    if not (definition.is_file() and exports.is_file()):
        return False
    defined = re.search(r"^class SimpleFeaturePyramid\b", definition.read_text("utf-8"), re.M)
    return bool(defined) and "SimpleFeaturePyramid" in exports.read_text("utf-8")


def run_pip(*arguments):
    """Runs this Python's pip; returns its exit status and its output."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return result.returncode, result.stdout.decode("utf-8", errors="replace")


def reason(output):
    """The part of pip's output that says why it failed: its errors, else its last line."""
    errors = re.findall(r"^\s*error:\s*(.*\S)", output, re.MULTILINE | re.IGNORECASE)
    return "; ".join(errors or output.strip().splitlines()[-1:])


def download_carrier(folder):
    """Downloads the carrier wheel with pip, which knows the user's index and proxy."""
    requirements = folder / "carrier.txt"
    requirements.write_text(f"{CARRIER} --hash=sha256:{CARRIER_SHA256}\n")
    source = ["--require-hashes", "-r", str(requirements)]
    status, output = run_pip("download", *DOWNLOAD_OPTIONS, "--dest", str(folder), *source)
    if status == 0:
        return next(folder.glob("*.whl"))
    if "DO NOT MATCH THE HASHES" in output:
        raise InstallError(
            f"The package index offers a {CARRIER} whose sha256 is not {CARRIER_SHA256}; nothing "
            "was installed. Use an index that serves the original file, or pass it with --wheel."
        )
    raise InstallError(
        f"pip could not download {CARRIER}: {reason(output)}\n"
        "Check the network, the proxy and the package index that pip uses, then run this again. "
        "For a machine without network, run this elsewhere:\n"
        f"    python -m pip download {CARRIER} {' '.join(DOWNLOAD_OPTIONS)}\n"
        "and here: python tools/install_detectron2.py --wheel THAT_FILE"
    )


def sources_digest(files):
    """One sha256 over the paths and contents of all Python files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.endswith(".py")):
        digest.update(f"{path}\0{hashlib.sha256(files[path]).hexdigest()}\n".encode())
    return digest.hexdigest()


def read_sources(carrier):
    """Verifies the carrier wheel; returns its files of detectron2, contents by path."""
    if not carrier.is_file():
        raise InstallError(f"There is no wheel at {carrier}: give the path of a downloaded file.")
    actual = hashlib.sha256(carrier.read_bytes()).hexdigest()
    if actual != CARRIER_SHA256:
        raise InstallError(
            f"{carrier} has sha256 {actual}, not {CARRIER_SHA256}; nothing was installed. The file "
            "is damaged or another one: delete it and download it again."
        )
    root, prefix = f"{PREFIX}/detectron2/", f"{PREFIX}.".encode()
    with zipfile.ZipFile(carrier) as archive:
        names = [name for name in archive.namelist() if name.startswith(root)]
        files = {
            name[len(root) :]: archive.read(name).replace(prefix + b"detectron2", b"detectron2")
            for name in names
            if name.endswith((".py", ".yaml"))
        }
    actual = sources_digest(files)
    if actual != SOURCES_DIGEST:
        raise InstallError(
            f"The Python files of detectron2 in {CARRIER} have the digest {actual}, not "
            f"{SOURCES_DIGEST} of upstream's commit {COMMIT}; nothing was installed. Get a fresh "
            "copy of this repository, or install detectron2 by upstream's INSTALL.md."
        )
    return files


def build_wheel(files, folder):
    """Writes detectron2 as a pure-Python wheel into a folder; equal files give equal bytes."""
    if not LICENSE_FILE.is_file():
        raise InstallError(f"{LICENSE_FILE} is missing; detectron2 is not installed without it.")
    # pip writes files in this order. With detectron2/__init__.py last, an interrupted installation
    # cannot be taken for a detectron2, and the next run installs over it.
    paths = sorted(files, key=lambda path: (path == "__init__.py", path))
    members = {f"detectron2/{path}": files[path] for path in paths}
    info = "detectron2-0.6.dist-info"
    texts = {"NOTICE": NOTICE, "METADATA": METADATA, "WHEEL": WHEEL}
    members |= {f"{info}/{name}": text.encode() for name, text in texts.items()}
    members[f"{info}/LICENSE"] = LICENSE_FILE.read_bytes()
    record = ""
    for path, data in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        record += f"{path},sha256={digest},{len(data)}\n"
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "detectron2-0.6-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in members.items():
            # Its default date, 1980, makes the wheel reproducible.
            member = zipfile.ZipInfo(path)
            member.external_attr = 0o644 << 16
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)
    return wheel


def make_wheel(carrier, folder):
    """Builds the detectron2 wheel from the carrier, which is downloaded if it is None."""
    with tempfile.TemporaryDirectory(prefix="detectron2-") as scratch:
        if carrier is None:
            print(f"Downloading {CARRIER}, which carries detectron2 ...", flush=True)
            carrier = download_carrier(Path(scratch))
        return build_wheel(read_sources(carrier), folder)


def install(carrier):
    """Installs detectron2, unless it is there already."""
    package = find_package()
    if package is not None and not has_feature_pyramid(package):
        raise InstallError(
            f"The detectron2 in {package} has no SimpleFeaturePyramid (ViTDet), so it is older "
            "than this project needs. Upgrade it by upstream's INSTALL.md, or remove it with "
            "'python -m pip uninstall detectron2' and run this again."
        )
    if package is not None:
        print(f"detectron2 is there already, in {package}, and has what is needed: left as it is.")
        return
    with tempfile.TemporaryDirectory(prefix="detectron2-") as scratch:
        wheel = make_wheel(carrier, Path(scratch))
        # Forced: if pip believes that detectron2 is there, its files were deleted without pip.
        options = ["--no-deps", "--no-index", "--force-reinstall"]
        status, output = run_pip("install", *options, str(wheel))
    if status != 0:
        raise InstallError(
            f"pip could not install detectron2 into {sys.prefix}: {reason(output)}\n"
            "Run this with the Python of a virtual environment you may write to ('make setup' "
            "makes one in .venv)."
        )
    print(f"Installed {ORIGIN} into {sys.prefix}; all its Python files are as upstream has them.")


def main(argv=None):
    """Runs the program; its exit status is 1 after an error."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheel", type=Path, help=f"a downloaded wheel of {CARRIER}")
    parser.add_argument("--build-only", type=Path, metavar="DIR", help="leave the wheel in DIR")
    args = parser.parse_args(argv)
    try:
        if args.build_only is None:
            install(args.wheel)
        else:
            wheel = make_wheel(args.wheel, args.build_only)
            print(f"Built {wheel}: {ORIGIN}. Install it with: pip install --no-deps {wheel}")
    except (InstallError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Install BasicSR 1.4.2 with pip, on every Python. Standard library only: set-up runs this file before torch is there.

BasicSR is on PyPI as a source package, whose ``setup.py`` has two faults:

1. It executes its version file inside a function and reads the result from ``locals()``. Since Python 3.13 (PEP 667)
   that is a ``KeyError``.
2. It asks for torch, cython and numpy during the build, and uses none of them: the package is pure Python. An isolated
   build would download a second torch.

So pip fetches the source package without running it, the two places are corrected in a temporary copy, and pip builds
a wheel of that copy and installs it. Nothing else is installed or changed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "1.4.2"
SHA256 = "b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87"
# Pairs of a text in setup.py and its replacement. Each text occurs exactly once there.
REPAIRS = (
    ("exec(compile(f.read(), version_file, 'exec'))", "exec(compile(f.read(), version_file, 'exec'), globals())"),
    ("locals()['__version__']", "globals()['__version__']"),
    ("setup_requires=['cython', 'numpy', 'torch'],", ""),
)
# The build tools: pip installs them for the build alone.
PYPROJECT = """\
[build-system]
requires = ["setuptools==80.10.2", "wheel"]
build-backend = "setuptools.build_meta:__legacy__"
"""
# To download a source package, pip asks its build backend for name and version, which would run setup.py. This backend
# answers instead. pip imports it as "setuptools.build_meta", because BasicSR names no backend of its own.
BACKEND = f"""
from pathlib import Path

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = Path(metadata_directory, "basicsr-{VERSION}.dist-info")
    folder.mkdir()
    folder.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: basicsr\\nVersion: {VERSION}\\n")
    return folder.name

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    raise NotImplementedError("this backend is for downloading alone")

__legacy__ = __import__("sys").modules[__name__]
"""


class InstallError(RuntimeError):
    """BasicSR cannot be installed. The message says why."""


def pip(*arguments: str, variables: dict[str, str] | None = None) -> None:
    """Run pip of this Python. It reads the user's own configuration.

    Args:
        arguments: what follows ``pip``.
        variables: environment variables for this call.

    Raises:
        InstallError: pip is missing or fails. Its message is part of the error's.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=environment)
    if "No module named pip" in done.stderr:
        raise InstallError(f"this environment has no pip. Add it: {sys.executable} -m ensurepip")
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).replace("\n", "\n  ")
        raise InstallError(f"`pip {' '.join(arguments)}` failed:\n  {said}")


def fetch(folder: Path) -> Path:
    """Download BasicSR's source package into a folder without running any of it, and return its path.

    Raises:
        InstallError: pip finds none, or a file with another content.
    """
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(BACKEND, encoding="utf-8")
    place = folder / "source"
    pip(
        *("download", "--no-deps", "--no-binary", "basicsr", "--use-pep517", "--no-build-isolation"),
        *("--dest", str(place), f"basicsr=={VERSION}"),
        variables={"PYTHONPATH": str(backend.parent)},
    )
    archive = next(iter(place.iterdir()))
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise InstallError(f"pip downloaded {archive.name}, which is not BasicSR {VERSION} as PyPI has it")
    return archive


def repair(archive: Path, folder: Path) -> Path:
    """Unpack the source package into a folder, correct its ``setup.py``, and return the unpacked package's path."""
    with tarfile.open(archive) as packed:
        if hasattr(tarfile, "data_filter"):
            packed.extractall(folder, filter="data")
        else:  # early releases of Python 3.10 and 3.11. fetch() has checked the archive's hash.
            packed.extractall(folder)
    unpacked = folder / f"basicsr-{VERSION}"
    script = unpacked / "setup.py"
    text = script.read_text(encoding="utf-8")
    for old, new in REPAIRS:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    script.write_text(text, encoding="utf-8")
    (unpacked / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    return unpacked


def install() -> None:
    """Install BasicSR into the environment of this Python.

    Raises:
        InstallError: pip cannot fetch, build or install it.
    """
    with tempfile.TemporaryDirectory(prefix="basicsr-") as temporary:
        folder = Path(temporary)
        wheels = str(folder / "wheels")
        pip("wheel", "--no-deps", "--wheel-dir", wheels, str(repair(fetch(folder), folder)))
        # by name, not by path: else `pip freeze` would name a temporary folder
        pip(
            *("install", "--no-deps", "--no-index", "--find-links", wheels, "--only-binary", "basicsr"),
            *("--force-reinstall", f"basicsr=={VERSION}"),
        )


if __name__ == "__main__":
    try:
        install()
    except InstallError as error:
        sys.exit(f"basicsr: {error}")

"""Look at this machine and environment: Python, torch, BasicSR, the compiler, memory, disk, optional packages.

No module of torch or BasicSR is imported at the top, so that a broken installation can be reported.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import psutil

from safmn.doctor.findings import Finding, State
from safmn.errors import WITHOUT_DESKTOP, first_line
from safmn.kernels.cpu.build import can_load
from safmn.kernels.cpu.compilation import compiler, how_to_get_a_compiler
from safmn.system import basicsr_install
from safmn.system.extras import EXTRAS, TRAIN, Extra, pip_install

TESTED = ((3, 10), (3, 14))
"""Oldest and newest Python that the tests ran on."""
FIX = "safmn doctor --fix"

_GB = 1e9
_LITTLE_MEMORY, _LITTLE_DISK, _LITTLE_SHARED = 2e9, 5e9, 5e8  # bytes
_FEW_FILES = 1024
_SHARED = "/dev/shm"


def _version(package: str) -> str | None:
    """The version of an installed package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _failure(module: str) -> str | None:
    """Why a module cannot be imported, None if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def missing(extra: Extra) -> list[str]:
    """Return the requirements of an extra that are not installed."""
    return [requirement for module, requirement in extra.packages.items() if importlib.util.find_spec(module) is None]


def python() -> Finding:
    """Whether the tests ran on this version of Python."""
    text = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {sys.executable}"
    if sys.version_info[:2] <= TESTED[1]:
        return Finding(State.FINE, "Python", text)
    return Finding(State.BETTER, "Python", f"{text}. SAFMN was tested up to {TESTED[1][0]}.{TESTED[1][1]}")


def torch() -> Finding:
    """Whether torch can be imported, and which processor it uses."""
    version = _version("torch")
    if version is None:
        return Finding(State.FAILS, "torch", "it is not installed. Choose a build: https://pytorch.org/get-started")
    if problem := _failure("torch"):
        return Finding(State.FAILS, "torch", f"{version} cannot be imported. {problem}")
    module = importlib.import_module("torch")
    version = module.__version__  # names the build, which the package's version may not
    if module.cuda.is_available():
        return Finding(State.FINE, "torch", f"{version}, on {module.cuda.get_device_name()}")
    if shutil.which("nvidia-smi") is None:
        return Finding(State.FINE, "torch", version)
    built_for = f"CUDA {module.version.cuda}" if module.version.cuda else "the CPU alone"
    return Finding(
        State.BETTER,
        "torch",
        f"{version} does not see the NVIDIA GPU of this machine. It was built for {built_for}; `nvidia-smi` shows what "
        "the driver supports. Choose a build: https://pytorch.org/get-started",
    )


def torchvision() -> Finding | None:
    """Whether torchvision was made for the installed torch; None if one of them is not installed."""
    version, of_torch = _version("torchvision"), _version("torch")
    if version is None or of_torch is None:
        return None
    pins = [re.match(r"torch *\(?==([\w.]+)", line) for line in metadata.requires("torchvision") or ()]
    made_for = next((pin[1] for pin in pins if pin), None)
    if made_for is None or made_for == of_torch.partition("+")[0]:
        return Finding(State.FINE, "torchvision", f"{version}, which matches torch")
    return Finding(
        State.BETTER,
        "torchvision",
        f"{version} was made for torch {made_for}, but torch is {of_torch}: pip install torch=={of_torch} torchvision",
    )


def opencv() -> Finding:
    """Whether OpenCV can be imported: its usual build needs libraries of a desktop."""
    problem = _failure("cv2")
    if problem is None:
        return Finding(State.FINE, "OpenCV", str(importlib.import_module("cv2").__version__))
    return Finding(State.FAILS, "OpenCV", f"it cannot be imported. {problem}. {WITHOUT_DESKTOP}")


def training() -> Finding:
    """Whether everything is there that training needs, and works."""
    lacking = missing(TRAIN)
    version = _version("basicsr")
    if version is None:
        lacking.append("basicsr")
    if lacking:
        return Finding(State.FAILS, TRAIN.adds, f"not installed: {', '.join(lacking)}. To install: {FIX}")
    if problem := _failure("basicsr"):
        return Finding(State.FAILS, TRAIN.adds, f"BasicSR {version} cannot be imported. {problem}")
    return Finding(State.FINE, TRAIN.adds, f"BasicSR {version}")


def native_kernels() -> Finding:
    """Whether the CPU kernels come with the package, or there is a compiler for them."""
    found = compiler()
    if found:
        return Finding(State.FINE, "compiler", found)
    if can_load():
        return Finding(State.FINE, "compiler", "not needed: the fast CPU kernels come with the package")
    text = "no C++ compiler, so the fast CPU kernels cannot be built and slower code is used"
    return Finding(State.BETTER, "compiler", f"{text}: {how_to_get_a_compiler()}")


def optional_packages() -> list[Finding]:
    """Which optional packages are installed, and the command that adds each of the others."""
    findings = []
    for name, extra in EXTRAS.items():
        if extra is TRAIN:
            continue
        lacking = missing(extra)
        if lacking:
            findings.append(Finding(State.BETTER, name, f"adds {extra.adds}: {pip_install(lacking)}"))
        else:
            findings.append(Finding(State.FINE, name, extra.adds))
    return findings


def processor() -> Finding:
    """How many cores this process may use, and the instruction sets that the kernels use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{cores} {'core' if cores == 1 else 'cores'}"
    if (torch := sys.modules.get("torch")) is not None:
        text += f", {torch.backends.cpu.get_cpu_capability()}"
    return Finding(State.FINE, "processor", text)


def memory() -> Finding:
    """How much memory is free."""
    found = psutil.virtual_memory()
    text = f"{found.available / _GB:.1f} of {found.total / _GB:.1f} GB are free"
    return Finding(State.FINE if found.available > _LITTLE_MEMORY else State.BETTER, "memory", text)


def disk() -> Finding:
    """How much room there is in the current folder."""
    free = shutil.disk_usage(".").free
    text = f"{free / _GB:.1f} GB are free in {os.getcwd()}"
    return Finding(State.FINE if free > _LITTLE_DISK else State.BETTER, "disk", text)


def shared_memory() -> Finding | None:
    """Whether loader workers can pass batches on; None where the system has no /dev/shm."""
    if not os.path.isdir(_SHARED):
        return None
    free = shutil.disk_usage(_SHARED).free
    if free > _LITTLE_SHARED:
        return Finding(State.FINE, _SHARED, f"{free / _GB:.1f} GB are free")
    text = f"only {free / 1e6:.0f} MB are free for batches of loader workers: docker run --shm-size=2g"
    return Finding(State.BETTER, _SHARED, text)


def file_handles() -> Finding | None:
    """How many files a process may open; None on Windows, which has no such limit."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or limit >= _FEW_FILES:
        return Finding(State.FINE, "open files", "no limit" if limit == resource.RLIM_INFINITY else f"up to {limit}")
    return Finding(State.BETTER, "open files", f"only {limit}, too few for many loader workers: ulimit -n 4096")


def clashes() -> list[Finding]:
    """Installed packages that are known not to work together."""
    findings = []
    builds = [name for name in ("opencv-python", "opencv-python-headless", "opencv-contrib-python") if _version(name)]
    if len(builds) > 1:
        text = f"{' and '.join(builds)} overwrite each other: keep one (pip uninstall both, then install one)"
        findings.append(Finding(State.BETTER, "OpenCV", text))
    numpy, of_torch = _version("numpy"), _version("torch")
    if numpy and of_torch and int(numpy.split(".")[0]) >= 2 and _numbers(of_torch) < (2, 3):
        text = f"torch {of_torch} was built for NumPy 1, but NumPy is {numpy}: pip install 'numpy<2' or a newer torch"
        findings.append(Finding(State.FAILS, "NumPy", text))
    return findings


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def examine() -> list[Finding]:
    """Run all checks."""
    checks: list[Callable[[], Finding | None]] = [python, torch, torchvision, opencv, training, native_kernels]
    checks += [processor, memory, disk, shared_memory, file_handles]
    found = [finding for check in checks if (finding := check()) is not None]
    return found + clashes() + optional_packages()


def fix(say: Callable[[str], None]) -> None:
    """Install what training lacks into the running environment. The installed torch is kept.

    Args:
        say: receives one line about each step.

    Raises:
        InstallError: pip fails.
    """
    lacking = missing(TRAIN)
    torch_version = _version("torch")
    if torch_version is None:
        raise basicsr_install.InstallError("torch is not installed. Choose a build: https://pytorch.org/get-started")
    if lacking:
        say(f"installing {', '.join(lacking)}")
        basicsr_install.pip("install", f"torch=={torch_version}", *lacking)
    if _version("basicsr") is None:
        say(f"installing BasicSR {basicsr_install.VERSION}")
        basicsr_install.install()
    elif not lacking:
        say("nothing to install")

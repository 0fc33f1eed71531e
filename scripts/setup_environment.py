"""Create a virtual environment with everything that the project needs. `make setup` runs this script.

It uses the standard library only. Two packages need special treatment:

- torch: without a GPU, the CPU build is installed, since CUDA builds are a very large download.
- BasicSR 1.4.2: safmn/system/basicsr_install.py installs it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own index of CPU builds
BASICSR = HERE / "safmn" / "system" / "basicsr_install.py"
SEPARATE = ("torch", "torchvision", "basicsr")


def say(text: str) -> None:
    """Write a line and flush it, so that it also appears at once in a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def requirements() -> "dict[str, list[str]]":
    """Return the lines of requirements.txt by package; several lines if the version depends on Python's version."""
    wanted: dict[str, list[str]] = {}
    for line in (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            wanted.setdefault(re.split(r"[=<>!~\[ ]", line)[0], []).append(line.strip())
    return wanted


def has_gpu() -> bool:
    """Return whether nvidia-smi finds an NVIDIA GPU."""
    return (
        shutil.which("nvidia-smi") is not None and subprocess.run(["nvidia-smi"], capture_output=True).returncode == 0
    )


class Pip:
    """pip of one environment."""

    def __init__(self, python: Path) -> None:
        self.command = [str(python), "-m", "pip", "--disable-pip-version-check"]

    def install(self, *arguments: str) -> None:
        """Run ``pip install``, and exit with an error if it fails."""
        say("pip install " + " ".join(arguments))
        done = subprocess.run([*self.command, "install", "--quiet", *arguments])
        if done.returncode != 0:
            sys.exit(f"setup: `pip install {' '.join(arguments)}` failed (its message is above)")

    def dry_run(self, requirement: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Ask pip for a report on what it would install. This downloads metadata only."""
        options = ("install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-")
        return subprocess.run([*self.command, *options, *arguments, requirement], capture_output=True, text=True)

    def wants_cuda(self, requirement: str) -> bool:
        """Return whether the configured package index would install a CUDA build."""
        report = self.dry_run(requirement)
        if report.returncode != 0:
            sys.exit(f"setup: no {requirement} for this Python and machine:\n{report.stderr.strip()}")
        needs = json.loads(report.stdout)["install"][0]["metadata"].get("requires_dist", [])
        return any(re.match(r"nvidia-|cuda-|triton", need) and "extra ==" not in need for need in needs)

    def reaches_cpu_builds(self, requirement: str) -> bool:
        """Return whether PyTorch's own index answers and has this version."""
        return self.dry_run(requirement, "--retries", "1", "--timeout", "20", "--index-url", CPU_INDEX).returncode == 0


def install_torch(pip: Pip, wanted: "dict[str, list[str]]") -> None:
    """Install torch and torchvision: CUDA builds if there is a GPU, else CPU builds."""
    if has_gpu():
        pip.install(*wanted["torch"], *wanted["torchvision"])
    elif pip.wants_cuda(wanted["torch"][0]):
        if pip.reaches_cpu_builds(wanted["torch"][0]):
            pip.install("--index-url", CPU_INDEX, *wanted["torch"], *wanted["torchvision"])
        else:
            say(f"{CPU_INDEX} does not answer; the CUDA build of torch is installed instead. It is 4 GB larger.")
            pip.install(*wanted["torch"], *wanted["torchvision"])
    else:
        # torchvision's dependency on torch must not replace this build; safmn/compat.py makes the two work together.
        pip.install(*wanted["torch"])
        pip.install("--no-deps", *wanted["torchvision"])


def create(folder: Path) -> None:
    """Create a virtual environment with pip, or stop with what is missing for that."""
    try:
        venv.create(folder, with_pip=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(
            "setup: this Python cannot create environments with pip. On Debian or Ubuntu: apt install python3-venv"
        )


def main() -> None:
    """Create or complete the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=HERE / ".venv")
    folder = parser.parse_args().venv
    if sys.version_info < (3, 10):  # noqa: UP036 - this file runs before anything has checked the version
        sys.exit("setup: Python 3.10 or newer is needed, for example: make setup PYTHON=python3.12")
    if sys.version_info >= (3, 15):
        say("Python 3.10 to 3.14 were tested; this one is newer, so a requirement may be missing.")
    wanted = requirements()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        say(f"creating {folder}")
        create(folder)
    pip = Pip(python)
    install_torch(pip, wanted)
    pip.install(*[line for name, lines in wanted.items() if name not in SEPARATE for line in lines])
    say("installing BasicSR")
    if subprocess.run([str(python), "-I", str(BASICSR)]).returncode != 0:
        sys.exit("setup: BasicSR cannot be installed (the reason is above)")
    pip.install("--no-build-isolation", "--no-deps", "--editable", str(HERE))
    say(f"ready: {folder}")


if __name__ == "__main__":
    main()

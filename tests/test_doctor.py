"""``safmn doctor``, and how BasicSR gets into an environment."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from safmn.cli import main
from safmn.doctor import machine
from safmn.doctor.findings import Finding, State, lists
from safmn.system import basicsr_install
from safmn.system.basicsr_install import InstallError
from safmn.system.extras import EXTRAS, TRAIN

TORCH = metadata.version("torch")  # without "+cu130" where torch.__version__ has it
REPOSITORY = Path(__file__).resolve().parent.parent
# What matters of BasicSR's setup.py, as it is on PyPI.
SETUP = """\
from setuptools import setup

version_file = 'basicsr/version.py'


def get_version():
    with open(version_file, 'r') as f:
        exec(compile(f.read(), version_file, 'exec'))
    return locals()['__version__']


if __name__ == '__main__':
    setup(
        name='basicsr',
        version=get_version(),
        packages=['basicsr'],
        setup_requires=['cython', 'numpy', 'torch'],
        zip_safe=False)
"""


def source_package(folder: Path, script: str = SETUP) -> Path:
    """A small source package that is called BasicSR."""
    archive = folder / f"basicsr-{basicsr_install.VERSION}.tar.gz"
    files = {
        "setup.py": script,
        "PKG-INFO": f"Metadata-Version: 2.1\nName: basicsr\nVersion: {basicsr_install.VERSION}\n",
        "basicsr/__init__.py": "",
        "basicsr/version.py": f"__version__ = '{basicsr_install.VERSION}'\n",
    }
    with tarfile.open(archive, "w:gz") as packed:
        for name, text in files.items():
            member = tarfile.TarInfo(f"basicsr-{basicsr_install.VERSION}/{name}")
            member.size = len(text.encode())
            packed.addfile(member, io.BytesIO(text.encode()))
    return archive


@pytest.fixture
def only_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where pip looks for packages."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes packages look as if they were not installed: ``without("av")``."""

    def hide(*names: str) -> None:
        version, find_spec = metadata.version, importlib.util.find_spec

        def no_version(name: str) -> str:
            if name in names:
                raise metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(metadata, "version", no_version)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in names else find_spec(name, *rest)
        )

    return hide


def found(subject: str) -> Finding:
    return next(finding for finding in machine.examine() if finding.subject == subject)


def test_the_source_package_is_downloaded_without_running_it(
    only_these: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = source_package(only_these, "raise SystemExit('setup.py ran')")
    monkeypatch.setattr(basicsr_install, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    fetched = basicsr_install.fetch(tmp_path)
    assert fetched.read_bytes() == archive.read_bytes()
    assert fetched != archive


def test_another_source_package_of_that_name_is_refused(only_these: Path, tmp_path: Path) -> None:
    source_package(only_these)
    with pytest.raises(InstallError, match=r"basicsr-1\.4\.2\.tar\.gz, which is not BasicSR 1\.4\.2"):
        basicsr_install.fetch(tmp_path)


def test_the_message_of_pip_is_shown(only_these: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InstallError, match=r"(?s)`pip download .*` failed:.*No matching distribution found for basicsr"
    ):
        basicsr_install.fetch(tmp_path)


def test_the_repaired_script_knows_its_version_and_asks_for_nothing(tmp_path: Path) -> None:
    unpacked = basicsr_install.repair(source_package(tmp_path), tmp_path / "unpacked")
    script = (unpacked / "setup.py").read_text()
    assert "locals()" not in script
    assert "setup_requires" not in script
    done = subprocess.run([sys.executable, "setup.py", "--version"], cwd=unpacked, capture_output=True, text=True)
    assert done.stdout.split() == [basicsr_install.VERSION], done.stderr


def test_an_environment_without_pip_is_told_how_to_get_it(tmp_path: Path) -> None:
    """Set-up runs the file alone, before anything is installed."""
    venv.create(tmp_path / "empty")
    python = tmp_path / "empty" / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = subprocess.run([python, "-I", basicsr_install.__file__], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"basicsr: this environment has no pip. Add it: {python} -m ensurepip\n"


def test_the_tested_versions_are_those_of_the_table() -> None:
    files = ("requirements.txt", "tests/requirements-extras.txt")
    pins = "".join((REPOSITORY / file).read_text(encoding="utf-8") for file in files)
    assert f"basicsr=={basicsr_install.VERSION}\n" in pins
    for extra in EXTRAS.values():
        for requirement in extra.packages.values():
            name = re.split("[><=]", requirement)[0]
            assert re.search(rf"^{name}==", pins, re.MULTILINE), f"{requirement} is not pinned in requirements.txt"


def test_the_extras_of_the_package_are_those_of_the_table(tmp_path: Path) -> None:
    for name in ("setup.py", "README.md", "safmn"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    sections = (tmp_path / "safmn.egg-info" / "requires.txt").read_text().split("\n[")
    extras = {section.split("]")[0]: section.split("]")[1].split() for section in sections[1:]}
    assert extras == {name: list(extra.packages.values()) for name, extra in EXTRAS.items()}


def test_a_sound_machine_has_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("fine:\n  Python ")
    assert re.search(rf"  torch +{re.escape(torch.__version__)}", out)
    assert "BasicSR 1.4.2" in out
    assert State.FAILS.value not in out


def test_what_will_fail_is_said_with_the_command_and_status_1(
    without: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    without("basicsr", "addict")
    assert main(["doctor"]) == 1
    assert "\n\nwill fail, because:\n" in (out := capsys.readouterr().out)
    assert re.search("  training +not installed: addict, basicsr. To install: safmn doctor --fix", out)


def test_each_optional_package_has_its_command(without: Callable[..., None]) -> None:
    names = {name for name, extra in EXTRAS.items() if extra is not TRAIN}
    without(*(module for name in names for module in EXTRAS[name].packages))
    texts = {finding.subject: finding.text for finding in machine.optional_packages() if finding.state is State.BETTER}
    assert set(texts) == names
    assert texts["video"] == "adds films: pip install 'av>=17'"
    assert texts["openvino"].endswith(": pip install 'openvino>=2024.4' 'onnx>=1.16'")


def test_torch_that_is_missing_or_broken_will_fail(
    without: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", broken)
        assert machine.torch().state is State.FAILS
        assert machine.torch().text.endswith(
            "cannot be imported. OSError: libcudart.so.13: cannot open shared object file"
        )
    without("torch")
    assert machine.torch().state is State.FAILS
    assert "not installed" in machine.torch().text
    assert machine.torchvision() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_a_gpu_that_torch_does_not_see_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert found("torch").state is State.BETTER
    assert "does not see the NVIDIA GPU" in found("torch").text


def test_a_torchvision_of_another_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("torchvision").state is State.FINE
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy", "torch (==2.1.0)"])
    assert found("torchvision").state is State.BETTER
    assert f"made for torch 2.1.0, but torch is {TORCH}: pip install torch=={TORCH} " in found("torchvision").text


def test_a_missing_compiler_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "compiler", lambda: None)
    assert found("compiler").state is State.FINE
    assert "come with the package" in found("compiler").text
    monkeypatch.setattr(machine, "can_load", lambda: False)
    assert found("compiler").state is State.BETTER
    assert "no C++ compiler" in found("compiler").text


def test_opencv_without_the_libraries_of_a_desktop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container: the doctor and every command say what to install."""
    message = "libGL.so.1: cannot open shared object file: No such file or directory"

    def broken(name: str) -> None:
        raise ImportError(message)

    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", broken)
        assert machine.opencv().state is State.FAILS
        assert re.search(r"libGL.*apt install libgl1.*opencv-python-headless", machine.opencv().text)
        assert main(["upscale", "a.png"]) == 2
        assert re.search(r"libGL.*apt install libgl1.*opencv-python-headless", capsys.readouterr().err)
    assert found("OpenCV").state is State.FINE


def test_fix_installs_what_lacks_and_keeps_torch(
    without: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(basicsr_install, "pip", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(basicsr_install, "install", lambda: calls.append(("basicsr",)))
    machine.fix(print)
    assert capsys.readouterr().out == "nothing to install\n"
    assert not calls
    without("basicsr", "torchvision", "yapf")
    assert main(["doctor", "--fix"]) == 0  # found by the new process, from which nothing is hidden
    assert calls == [("install", f"torch=={TORCH}", "torchvision>=0.25", "yapf"), ("basicsr",)]


def test_a_fix_that_fails_says_why_and_has_status_1(
    without: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise InstallError("no network")

    monkeypatch.setattr(basicsr_install, "install", refuse)
    without("basicsr")
    assert main(["doctor", "--fix"]) == 1
    assert capsys.readouterr().err == "safmn doctor: error: no network\n"


def test_a_small_machine_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    usage = shutil.disk_usage(".")._replace(free=64_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 256))
    monkeypatch.setattr(machine, "_SHARED", os.getcwd())
    assert "only 64 MB are free" in found(os.getcwd()).text
    assert found("disk").state is State.BETTER
    assert "ulimit -n" in found("open files").text


def test_packages_that_do_not_work_together_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not machine.clashes()
    versions = {"numpy": "2.1.0", "torch": "2.2.1", "opencv-python": "4.9", "opencv-python-headless": "4.9"}
    monkeypatch.setattr(machine, "_version", versions.get)
    texts = {finding.subject: (finding.state, finding.text) for finding in machine.clashes()}
    assert texts["NumPy"][0] is State.FAILS
    assert "opencv-python and opencv-python-headless" in texts["OpenCV"][1]


def test_lists_without_entries_are_left_out() -> None:
    text = lists([Finding(State.BETTER, "av", "films"), Finding(State.FINE, "Python", "3.14")])
    assert text == "fine:\n  Python  3.14\n\nbetter so:\n  av      films"

"""What starting a command loads. Each case has its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from safmn.cli import VERBS
from safmn.cli.bench import VERBS as BENCHES
from safmn.inference import choices
from safmn.prepare.arguments import DATA_SETS, PARSERS

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "numpy", "cv2", "PIL", "scipy", "basicsr", "requests")

RUN = f"""
import sys
from safmn.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as error:  # argparse
    status = error.code
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
sys.exit(status)
"""


OF_VERBS = [[verb, "--help"] for verb in VERBS] + [["prepare", verb, "--help"] for verb in PARSERS]
OF_VERBS += [["bench", verb, "--help"] for verb in BENCHES]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=REPOSITORY)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *OF_VERBS],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    done = python(RUN, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("safmn " if arguments == ["--version"] else "usage: safmn")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["upscal"], "Did you mean 'upscale'?"),
        (["upscale", "--tiles", "3"], "the following arguments are required"),
        (["upscale", "missing.png", "-o", "out"], "missing.png"),
        (["upscale", "README.md", "-o", "out", "--quality", "0"], "--quality 0"),
        (["upscale", "README.md", "-o", "out", "--backend", "nativ"], "Did you mean 'native'?"),
        (["upscale", "README.md", "-o", "out", "--precision", "int8"], "invalid choice: 'int8'"),
        (["export", "-o", "x.onnx", "--format", "gguf"], "invalid choice: 'gguf'"),
        (["export", "-o", "x.onnx", "--size", "big"], "--size big"),
        (["degrade", "a.png", "-o", "b.png", "--grid", "0x3"], "--grid 0x3"),
        (["train"], "-opt"),
        (["test", "--weights", "a.pth", "--force_yml", "a=b"], "--force_yml is only allowed with -opt"),
        (["prepare", "download", "df3k"], "invalid choice: 'df3k'"),
        (["zoo", "--all"], "unrecognized arguments: --all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_load_nothing_heavy(arguments: list[str], message: str) -> None:
    done = python(RUN, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


def test_import_safmn_loads_nothing_heavy_and_basicsr_knows_our_components() -> None:
    code = f"""
import sys, safmn
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
import importlib.util
assert importlib.util.find_spec("basicsr") is not None
assert "torch" not in sys.modules  # looking for it is not importing it
import basicsr
assert type(basicsr.__spec__.loader).__module__ != "safmn.compat", basicsr.__spec__
from basicsr.utils import registry
for kind, name in dict(ARCH="SAFMN", DATASET="PatchStore", LOSS="FFTLoss", MODEL="RealGANModel").items():
    assert name in getattr(registry, kind + "_REGISTRY"), name
assert "calculate_psnr_safmn" in registry.METRIC_REGISTRY
assert basicsr.archs.build_network(dict(type="SAFMN", dim=8, n_blocks=1)).scale == 4
assert safmn.archs.SAFMN is registry.ARCH_REGISTRY.get("SAFMN")  # submodules on first use, as well
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_basicsr_before_safmn() -> None:
    code = """
import sys, importlib.machinery
import safmn.compat  # repairs torchvision, which this environment may need
safmn.compat.repair_torchvision()
sys.meta_path[:] = [finder for finder in sys.meta_path if "safmn" not in type(finder).__module__]
for name in [name for name in sys.modules if name.split(".")[0] == "safmn"]:
    del sys.modules[name]
import basicsr
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
assert "SAFMN" not in ARCH_REGISTRY
import safmn
assert "SAFMN" in ARCH_REGISTRY
assert "RealGANModel" in MODEL_REGISTRY
assert safmn.registry.ARCH_REGISTRY is ARCH_REGISTRY
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_upscaling_loads_no_compiler_of_torch(tmp_path: Path) -> None:
    code = """
import sys, pathlib
import numpy as np
from safmn import Upscaler
from safmn.imaging import write_image
folder = pathlib.Path(sys.argv[1])
write_image(folder / "in.png", np.zeros((24, 32, 3), np.uint8))
from safmn.cli import main
for backend in ("eager", "auto"):
    arguments = ["upscale", str(folder / "in.png"), "-o", str(folder / f"{backend}.png"), "--backend", backend]
    assert main([*arguments, "--device", "cpu"]) == 0
assert (folder / "auto.png").read_bytes() == (folder / "eager.png").read_bytes()
Upscaler(device="cpu", backend="eager", tile=16)(np.zeros((24, 40, 3), np.uint8))
assert "torch" in sys.modules
assert not {"torch._dynamo", "torch._inductor", "torchvision", "basicsr"} & set(sys.modules)
"""
    done = python(code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Back end eager, fp32: another one takes longer to start than it saves here." in done.stderr
    assert done.stderr.count("Back end") == 1  # `auto` says it once; who names a back end knows it


def test_the_choices_are_those_that_exist() -> None:
    """In a process without the back ends and formats that other tests register."""
    code = """
from safmn.inference import choices
from safmn.inference.backends import NAMES
from safmn.inference.export import FORMATS
from safmn.prepare.download import SETS
from safmn.prepare.arguments import DATA_SETS
assert set(NAMES) == set(choices.BACKEND_MODULES), NAMES
assert {name: form.ending for name, form in FORMATS.items()} == choices.EXPORT_FORMATS
assert {profile for form in FORMATS.values() for profile in form.profiles} == set(choices.EXPORT_PROFILES)
assert {precision for form in FORMATS.values() for precision in form.precisions} == set(choices.EXPORT_PRECISIONS)
assert {name: data_set.about for name, data_set in SETS.items()} == DATA_SETS
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert choices.BACKEND_MODULES
    assert DATA_SETS

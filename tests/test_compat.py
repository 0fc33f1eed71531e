"""``import basicsr`` works beside any torchvision; what is not broken is left alone. Each case has its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parent.parent

# A stand-in for torchvision with everything BasicSR could want, the removed module included.
WHOLE_TORCHVISION = """
import sys, types
for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional",
             "torchvision.transforms.functional_tensor"):
    module = types.ModuleType(name)
    module.__path__, module.__spec__ = [], __import__("importlib.machinery").machinery.ModuleSpec(name, None)
    sys.modules[name] = module
safmn = types.ModuleType("safmn")
safmn.__path__ = ["safmn"]  # its modules, without what importing the package does
sys.modules["safmn"] = safmn
before = dict(sys.modules)
from safmn import compat
compat._repair_torchvision()
compat._repair_functional_tensor()
changed = [name for name in before if "torchvision" in name and sys.modules[name] is not before[name]]
assert not changed, changed
assert not compat._libraries
"""

# As where only `pip install safmn` was done: no BasicSR.
WITHOUT_BASICSR = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "basicsr" else real(name, *rest)
class Refuse:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "basicsr":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import torch, safmn
from safmn.registry import ARCH_REGISTRY, build
network = build(ARCH_REGISTRY, {"type": "SAFMN", "dim": 8, "n_blocks": 1, "upscaling_factor": 2})
assert network(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)
from safmn.train import main
sys.exit(main(["-opt", "any.yml"]))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)


def test_basicsr_imports_in_a_fresh_process() -> None:
    done = run("import safmn, basicsr; print(basicsr.archs.build_network({'type': 'SAFMN', 'dim': 8, 'n_blocks': 1}))")
    assert done.returncode == 0, done.stderr
    assert "SAFMN(" in done.stdout


def test_basicsr_is_imported_when_it_is_asked_for_and_not_before() -> None:
    code = """
import sys, safmn, safmn.cli
from safmn.registry import ARCH_REGISTRY, find
safmn.load_network("safmn-x2")
assert not {"basicsr", "torchvision", "scipy.stats"} & set(sys.modules)
assert find(ARCH_REGISTRY, "EDSR").__module__ == "basicsr.archs.edsr_arch"
import basicsr.utils.registry
from basicsr.utils.registry import ARCH_REGISTRY as theirs
assert basicsr.utils.registry.ARCH_REGISTRY is theirs is ARCH_REGISTRY
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_basicsr_may_come_first() -> None:
    code = """
import sys, types
sys.modules["safmn"] = safmn = types.ModuleType("safmn")
safmn.__path__ = ["safmn"]  # its modules, without what importing the package does
from safmn import compat
compat.repair_torchvision()
import basicsr
for name in [name for name in sys.modules if name.split(".")[0] == "safmn"]:
    del sys.modules[name]
import safmn.registry
assert safmn.registry.ARCH_REGISTRY is basicsr.utils.registry.ARCH_REGISTRY
assert "SAFMN" in basicsr.utils.registry.ARCH_REGISTRY
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_what_is_whole_is_not_touched() -> None:
    done = run(WHOLE_TORCHVISION)
    assert done.returncode == 0, done.stderr


def test_without_basicsr_networks_work_and_training_says_what_to_install() -> None:
    done = run(WITHOUT_BASICSR)
    assert done.returncode == 2, done.stderr
    assert "basicsr==1.4.2" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_operators_still_fail_when_called() -> None:
    """Only their schemas are defined: calling one must not give a wrong answer."""
    try:
        result = torch.ops.torchvision.nms(torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]]), torch.tensor([1.0, 0.5]), 0.5)
    except (NotImplementedError, RuntimeError):
        return
    assert result.tolist() == [0]  # a torchvision that is whole

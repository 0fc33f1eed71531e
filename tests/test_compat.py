"""``import basicsr`` works with any torchvision; a working torchvision is not changed. Each case is a new process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# A fake torchvision with everything that BasicSR imports, including the removed module.
WHOLE_TORCHVISION = """
import sys, types
for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional",
             "torchvision.transforms.functional_tensor"):
    module = types.ModuleType(name)
    module.__path__, module.__spec__ = [], __import__("importlib.machinery").machinery.ModuleSpec(name, None)
    sys.modules[name] = module
safmn = types.ModuleType("safmn")
safmn.__path__ = ["safmn"]  # makes its modules importable without running safmn/__init__.py
sys.modules["safmn"] = safmn
before = dict(sys.modules)
from safmn import compat
compat._repair_torchvision()
compat._repair_functional_tensor()
changed = [name for name in before if "torchvision" in name and sys.modules[name] is not before[name]]
assert not changed, changed
assert not compat._libraries
"""

# An installation without BasicSR, as after `pip install safmn`.
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


def test_basicsr_imports_and_builds_safmn_in_a_new_process() -> None:
    done = run("import safmn, basicsr; print(basicsr.archs.build_network({'type': 'SAFMN', 'dim': 8, 'n_blocks': 1}))")
    assert done.returncode == 0, done.stderr
    assert "SAFMN(" in done.stdout


def test_basicsr_is_imported_on_first_use() -> None:
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


def test_basicsr_may_be_imported_before_safmn() -> None:
    code = """
import sys, types
sys.modules["safmn"] = safmn = types.ModuleType("safmn")
safmn.__path__ = ["safmn"]  # makes its modules importable without running safmn/__init__.py
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


def test_a_complete_torchvision_is_not_changed() -> None:
    done = run(WHOLE_TORCHVISION)
    assert done.returncode == 0, done.stderr


def test_without_basicsr_networks_work_and_training_names_the_package_to_install() -> None:
    done = run(WITHOUT_BASICSR)
    assert done.returncode == 2, done.stderr
    assert done.stderr.endswith("To install it: safmn doctor --fix\n")
    assert "Traceback" not in done.stderr


def test_missing_operators_fail_when_called() -> None:
    """Only their schemas are defined, so a call must fail instead of returning a wrong result."""
    code = """
import sys, types
import torch
safmn = types.ModuleType("safmn")
safmn.__path__ = ["safmn"]  # makes its modules importable without running safmn/__init__.py
sys.modules["safmn"] = safmn
from safmn import compat
assert not hasattr(torch.ops.torchvision, "nms")
compat._define_missing_operators()
try:
    print(torch.ops.torchvision.nms(torch.rand(2, 4), torch.rand(2), 0.5))
except NotImplementedError as error:
    print("failed:", error)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("failed:"), done.stdout
    assert "torchvision::nms" in done.stdout

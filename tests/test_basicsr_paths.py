"""Components written for older versions of BasicSR can be imported, or the message says what moved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from safmn.basicsr_paths import advice

OLD = """
import safmn
from basicsr.utils.matlab_functions import bgr2ycbcr, rgb2ycbcr, ycbcr2bgr
from basicsr.metrics.metric_util import reorder_image, to_y_channel, rgb2ycbcr as again
from basicsr.models.archs.arch_util import default_init_weights
from basicsr.models.archs.rrdbnet_arch import RRDBNet as old
from basicsr.models.losses.losses import L1Loss as theirs
from basicsr.losses.losses import CharbonnierLoss, GANLoss, L1Loss
from basicsr.models.losses.loss_util import weighted_loss
import basicsr.models.archs.edsr_arch as edsr
import basicsr.archs.edsr_arch, basicsr.archs.rrdbnet_arch, basicsr.utils
assert edsr is basicsr.archs.edsr_arch and edsr.__spec__.name == "basicsr.archs.edsr_arch"
assert old is basicsr.archs.rrdbnet_arch.RRDBNet
assert again is rgb2ycbcr is basicsr.utils.rgb2ycbcr
assert theirs is L1Loss
print("works")
"""


@pytest.mark.parametrize("first", ["", "import basicsr\n"])
def test_former_import_paths_work(first: str) -> None:
    """In a new process, because modules stay imported. BasicSR may be imported before SAFMN."""
    code = OLD if not first else OLD.replace("import safmn\n", "import safmn\nimport basicsr\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "works\n", done.stderr


def test_the_message_says_where_a_name_is() -> None:
    with pytest.raises(ImportError) as caught:
        exec("from basicsr.utils.img_util import rgb2ycbcr_pt")
    assert advice(caught.value) == " The installed BasicSR has rgb2ycbcr_pt in basicsr.utils.color_util."
    with pytest.raises(ImportError) as caught:
        exec("import basicsr.archs.seemore_arch")
    assert "has no seemore_arch: put the file of the repository" in advice(caught.value)
    with pytest.raises(ImportError) as caught:
        exec("import nothing_of_this_name")
    assert advice(caught.value) == ""


def test_the_check_of_imports_gives_the_advice(tmp_path: Path) -> None:
    from safmn.options.plugins import import_all
    from safmn.options.problems import Problems

    (tmp_path / "old_parts.py").write_text("from basicsr.utils.img_util import rgb2ycbcr_pt\n")
    problems = Problems("x.yml")
    import_all({"imports": [str(tmp_path / "old_parts.py")]}, problems)
    assert "basicsr.utils.color_util" in problems.messages()[0][1]

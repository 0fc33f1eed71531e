"""Real-world runs, with degradation, that are killed and resumed end with the same files as uninterrupted runs."""

from __future__ import annotations

import functools
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from safmn.training.checkpoint import Checkpointer
from safmn.training.models.trained_network import TrainedNetwork

# Each process is killed before its optimiser step with this number. The GAN stage trains only the discriminator for
# four iterations. There, the kills are in iteration 2, before the generator's step of iteration 6, between the two
# steps of iteration 6, and before the generator's step of iteration 9.
KILL_BEFORE = (2, 7, 5, 10)


def die_before_update(number: int) -> None:
    """Make this process kill itself before the optimiser step with this number."""
    update, updates = TrainedNetwork.update, 0

    def counted(self: TrainedNetwork, *arguments: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, *arguments)

    TrainedNetwork.update = counted  # type: ignore[method-assign]


def same_for_both(folder: Path) -> dict[str, str]:
    """Return the digests of the run's files, except those that contain the folder's name."""
    prints = tiny_run.fingerprint(folder)
    return {name: value for name, value in prints.items() if not name.endswith(("state.json", "manifest.json"))}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "workers"), [("RealSRModel", 1), ("RealGANModel", 0)])
def test_killed_runs_end_with_the_same_bytes(tmp_path: Path, model: str, workers: int) -> None:
    tiny_run.make_images(tmp_path)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    files = {}
    for folder in (straight, killed):
        folder.mkdir()
        files[folder] = tiny_run.write_options(folder, tiny_run.real_options(tmp_path, folder, model, workers))
    assert tiny_run.finish(files[straight]) == 0
    for number in KILL_BEFORE:
        prepare = functools.partial(die_before_update, number)
        process = tiny_run.start(files[killed], "--auto_resume", prepare=prepare)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert tiny_run.finish(files[killed], "--auto_resume") == 0

    assert same_for_both(killed) == same_for_both(straight)
    networks = ("net_g", "net_d") if model == "RealGANModel" else ("net_g",)
    assert all(f"models/{network}_{tiny_run.ITERATIONS}.pth" in same_for_both(killed) for network in networks)
    ends = [Checkpointer(folder / "experiments/tiny/training_states").load_latest() for folder in (straight, killed)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].progress == ends[1].progress
    losses = [line for line in tiny_run.record(killed) if "l_g_pix" in line or "l_pix" in line]
    assert len(losses) >= tiny_run.ITERATIONS - 4
    assert all(math.isfinite(value) for line in losses for name, value in line.items() if name.startswith("l_"))

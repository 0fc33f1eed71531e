"""Several processes of ``safmn upscale`` share the files: by size, each file once, whatever is done already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safmn.cli.upscale import main
from safmn.errors import OptionError
from safmn.imaging import write_image
from safmn.inference import sharding
from safmn.inference.file_jobs import FileJob, plan
from safmn.inference.sharding import Shard, find_shard, part_of

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "0"}


@given(works=st.lists(st.integers(0, 10**6), max_size=60), count=st.integers(1, 9))
def test_parts_are_disjoint_complete_and_of_similar_work(works: list[int], count: int) -> None:
    jobs = [FileJob(Path(f"{number}.png"), Path(f"out/{number}.png")) for number in range(len(works))]
    work = dict(zip(jobs, works, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "_work", work.__getitem__)
        parts = [part_of(jobs, Shard(index, count)) for index in range(count)]
    assert sorted(jobs.index(job) for part in parts for job in part) == list(range(len(jobs)))
    assert all(part == sorted(part, key=jobs.index) for part in parts)
    sums = [sum(work[job] for job in part) for part in parts]
    assert max(sums) - min(sums) <= max(works, default=0)


def test_the_variables_of_torchrun_and_srun() -> None:
    assert find_shard(None, {}) == Shard()
    assert find_shard(None, TORCHRUN) == Shard(3, 8, "torchrun", 1)
    assert find_shard(None, SRUN) == Shard(2, 6, "srun", 0)
    assert find_shard(None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == Shard()  # sbatch without srun
    assert find_shard("2/4", TORCHRUN) == Shard(1, 4, "--shard")
    assert find_shard("1/1", TORCHRUN).count == 1


@pytest.mark.parametrize("given", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_wrong_shards_are_refused(given: str) -> None:
    with pytest.raises(OptionError, match="give I/N with I from 1 to N"):
        find_shard(given, {})


def test_each_process_does_its_own_files_also_when_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for number in range(5):
        side = 9 + 3 * number
        write_image(tmp_path / "in" / f"{number}.png", rng.integers(0, 256, (side, 12, 3), dtype=np.uint8))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    command = [str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--weights", "safmn-x2", "--backend", "eager"]

    def outputs() -> set[str]:
        return {path.name for path in (tmp_path / "out").iterdir()}

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(command) == 0
    first, said = outputs(), capsys.readouterr().out
    assert "part 1/2 (torchrun): " in said
    assert "notes.txt" in said
    assert 0 < len(first) < 5
    removed = sorted(first)[0]
    (tmp_path / "out" / removed).unlink()
    assert main([*command, "--shard", "2/2"]) == 0
    assert "notes.txt" not in capsys.readouterr().out
    assert outputs() == {f"{number}.png" for number in range(5)} - {removed}
    assert main([*command, "--shard", "1/2"]) == 0  # killed before its last file, and started again
    assert f"1 upscaled, {len(first) - 1} kept" in capsys.readouterr().out
    assert len(outputs()) == 5


def test_links_are_resolved_as_by_pathlib(tmp_path: Path) -> None:
    from safmn.inference.file_jobs import _RealPaths

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.png").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "a" / "file.png")
    (tmp_path / "folder").symlink_to(tmp_path / "a")
    real = _RealPaths()
    for name in ("a/file.png", "link.png", "folder/file.png", "folder/new.png", "a/../link.png", "folder/..", "none/b"):
        path = tmp_path / name
        assert real(path) == path.resolve()
        assert real(path) == path.resolve()


def test_an_output_that_is_a_link_to_its_input_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "out").symlink_to(tmp_path / "in")
    with pytest.raises(Exception, match="would be written over the input"):
        plan([str(tmp_path / "in" / "a.png")], tmp_path / "out")

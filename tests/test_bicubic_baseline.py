"""The bicubic baseline, scored as ``safmn test`` scores networks, has the published scores."""

from __future__ import annotations

from pathlib import Path

import bicubic_baseline
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def test_the_scores_equal_the_published_ones(
    benchmark_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set5 = benchmark_dir / "Set5"
    changes = [f"datasets:test_1:dataroot_gt={set5}/HR", f"datasets:test_1:dataroot_lq={set5}/LR_bicubic/X4"]
    changes += [f"datasets:test_{number}=~" for number in range(2, 6)]
    command = ["bicubic_baseline.py", "-opt", str(REPOSITORY / "options" / "test_x4.yml"), "--force_yml", *changes]
    monkeypatch.setattr("sys.argv", command)
    assert bicubic_baseline.main() == 0
    psnr, ssim = (float(cell) for cell in capsys.readouterr().out.splitlines()[-1].split("|")[2:4])
    assert psnr == pytest.approx(28.42, abs=0.015)  # SAFMN, table 1
    assert ssim == pytest.approx(0.8104, abs=0.0015)


def test_without_metrics_it_ends_with_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.argv",
        ["bicubic_baseline.py", "-opt", str(REPOSITORY / "options" / "test_x4.yml"), "--force_yml", "val:metrics={}"],
    )
    assert bicubic_baseline.main() == 2
    assert "val.metrics" in capfd.readouterr().err

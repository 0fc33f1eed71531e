"""FID, KID and CMMD: formulas against independent ones in float64, sets in ``safmn score``, validation and reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from safmn import compat
from safmn.cli import main
from safmn.errors import DataError, OptionError
from safmn.evaluation.metric_choice import is_lower_better, sections, settings
from safmn.evaluation.scoring import evaluate
from safmn.imaging import read_rgb, write_image
from safmn.metrics import feature_networks, learned
from safmn.metrics.of_sets import FID, KID
from safmn.metrics.set_distances import frechet, gaussian_mmd, polynomial_mmd
from safmn.metrics.set_metric import SetMetric
from safmn.options.components import check_metric
from safmn.options.problems import Problems
from safmn.registry import METRIC_REGISTRY
from safmn.report.runs import better

RNG = np.random.default_rng(5)


def _frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The definition: means, covariances, and the root of their product."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root))


def test_the_frechet_distance_is_the_defined_one() -> None:
    a, b = RNG.normal(size=(60, 7)), RNG.normal(1, 2, size=(45, 7)) @ RNG.normal(size=(7, 7))
    assert frechet(a, b) == pytest.approx(_frechet(a, b), rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    few_a, few_b = RNG.normal(size=(5, 40)), RNG.normal(1, 2, size=(4, 40))  # covariances without full rank
    eigenvalues = np.linalg.eigvals(np.cov(few_a, rowvar=False) @ np.cov(few_b, rowvar=False)).astype(complex)
    means = np.square(few_a.mean(0) - few_b.mean(0)).sum()
    spread = few_a.var(0, ddof=1).sum() + few_b.var(0, ddof=1).sum()
    assert frechet(few_a, few_b) == pytest.approx(means + spread - 2 * np.sqrt(eigenvalues).real.sum(), rel=1e-5)
    assert np.isnan(frechet(a[:1], b))


def test_the_frechet_distance_of_known_distributions() -> None:
    """Points whose mean and covariance are known exactly: (1, 2) against (4, 6), standard deviations 1 and 3."""
    cross = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * np.sqrt(3 / 4)  # covariance is the identity
    assert frechet(np.add(cross, (1, 2)), np.add(cross * 3, (4, 6))) == pytest.approx(9 + 16 + 2 * (3 - 1) ** 2)


def test_the_mmds_are_the_defined_ones() -> None:
    a, b = RNG.normal(size=(9, 6)), RNG.normal(0.5, size=(11, 6))

    def cubic(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 6 + 1) ** 3)

    def gauss(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.exp(-np.square(x - y).sum() / 200))

    own = [np.mean([cubic(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    both = np.mean([cubic(x, y) for x in a for y in b])
    assert polynomial_mmd(a, b) == pytest.approx(sum(own) - 2 * both, rel=1e-10)
    means = [np.mean([gauss(x, y) for x in s for y in t]) for s, t in ((a, a), (b, b), (a, b))]
    assert gaussian_mmd(a, b) == pytest.approx(1000 * (means[0] + means[1] - 2 * means[2]), rel=1e-9)
    assert gaussian_mmd(a, a) == pytest.approx(0, abs=1e-9)
    assert np.isnan(polynomial_mmd(a[:1], b))


def test_kid_is_unbiased() -> None:
    """Two sets from one distribution: the values of many pairs of sets scatter around zero; FID's do not."""
    pairs = [RNG.normal(size=(2, 12, 4)) for _ in range(200)]
    values = [polynomial_mmd(a, b) for a, b in pairs]
    assert abs(np.mean(values)) < 4 * stats.sem(values)
    assert np.mean([frechet(a, b) for a, b in pairs]) > 0.3


def _describe(images: np.ndarray) -> np.ndarray:
    """A stand-in for Inception: mean, deviation and two differences of each channel: (n, 12)."""
    x = images.astype(np.float64) / 255
    parts = [x.mean((1, 2)), x.std((1, 2)), np.diff(x, axis=1).std((1, 2)), np.diff(x, axis=2).std((1, 2))]
    return np.concatenate(parts, axis=1).astype(np.float32)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Replace the networks by :func:`_describe`; return what was asked for."""
    asked: list[tuple[Any, ...]] = []

    def network(*wanted: Any) -> Any:
        asked.append(wanted)
        return _describe

    monkeypatch.setattr(feature_networks, "network", network)
    monkeypatch.setattr("safmn.metrics.of_sets.missing", lambda package: None)
    return asked


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six GT images in ``gt``, darker ones in ``dark`` and noisy ones in ``noisy``."""
    monkeypatch.setattr("safmn.evaluation.kept_lines.cache_folder", lambda: tmp_path / "cache")
    rng = np.random.default_rng(0)
    for number in range(6):
        gt = (np.kron(rng.random((5, 6, 3)), np.ones((8, 8, 1))) * 255).astype(np.uint8)
        write_image(tmp_path / f"gt/{number}.png", gt)
        write_image(tmp_path / f"dark/{number}.png", (gt * 0.8).astype(np.uint8))
        write_image(tmp_path / f"noisy/{number}.png", (gt * 0.7 + rng.integers(0, 60, gt.shape)).astype(np.uint8))
    return tmp_path


def _images(folder: Path) -> np.ndarray:
    return np.stack([read_rgb(path) for path in sorted(folder.glob("*.png"))])


@pytest.mark.usefixtures("stand_in")
def test_score_has_one_value_for_each_folder(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["dark", "noisy"]
    command = ["score", *(str(folders / name) for name in names), "--gt", str(folders / "gt"), "--crop", "0"]
    command += ["--metrics", "fid", "psnr", "kid", "--per-image", str(folders / "each.csv")]
    assert main(command) == 0
    out = capsys.readouterr().out
    gt = _describe(_images(folders / "gt"))
    for name in names:
        made = _describe(_images(folders / name))
        row = next(line for line in out.splitlines() if line.startswith(f"| {name}"))
        assert f" {_frechet(made, gt):.4f} " in row
        assert f" {polynomial_mmd(made, gt):.4f} " in row
    assert "fid: lower is better, one value for the whole set, of whole images" in out
    assert "FID" not in (folders / "each.csv").read_text().upper().replace("PSNR", "")


def test_scores_of_sets_are_kept_until_an_image_changes(folders: Path, stand_in: list[Any]) -> None:
    command = ["score", str(folders / "dark"), "--gt", str(folders / "gt"), "--metrics", "fid", "psnr"]
    assert main(command) == 0
    assert len(stand_in) == 12
    assert main(command) == 0
    assert len(stand_in) == 12
    write_image(folders / "dark/3.png", read_rgb(folders / "noisy/3.png"))
    assert main(command) == 0
    assert len(stand_in) == 24


def test_a_folder_of_real_images_takes_the_place_of_gt(
    folders: Path, stand_in: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        (folders / f"gt/{number}.png").rename(folders / f"gt/other name {number}.png")
    (folders / "gt/other name 5.png").unlink()
    command = ["score", str(folders / "dark"), "--reference", str(folders / "gt"), "--metrics", "pyiqa:fid"]
    assert main(command) == 0
    expected = _frechet(_describe(_images(folders / "dark")), _describe(_images(folders / "gt")))
    assert f" {expected:.4f} " in capsys.readouterr().out
    assert {wanted[1] for wanted in stand_in} == {"pyiqa"}


@pytest.mark.usefixtures("stand_in")
def test_patches_lie_side_by_side_in_the_middle() -> None:
    image = RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    found = FID(patch=16).samples(image)
    rgb = image[..., ::-1]
    cut = [rgb[top : top + 16, left : left + 16] for top in (4, 20) for left in (1, 17, 33)]
    assert np.allclose(found, _describe(np.stack(cut)))
    with pytest.raises(DataError, match="50x40 has no patch of 64x64"):
        FID(patch=64).samples(image)
    grey = image[..., 0]
    assert np.allclose(KID().samples(grey), _describe(np.repeat(grey[None, ..., None], 3, axis=-1)))
    deep = image.astype(np.float64) + 0.2  # of 16 bits
    assert np.allclose(KID().samples(deep), _describe(rgb[None]))
    with_alpha = np.dstack([image, image[..., 0]])
    assert np.allclose(KID().samples(with_alpha), _describe(rgb[None]))


class _Pairs:
    """Six pairs at scale 1; ``bare`` leaves out the GT images."""

    def __init__(self, folder: Path, *, bare: bool = False) -> None:
        self.made, self.gt = _images(folder / "dark"), _images(folder / "gt")
        self.bare = bare

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tensors = [torch.from_numpy(each[index]).permute(2, 0, 1) / 255 for each in (self.made, self.gt)]
        item = {"lq": tensors[0], "gt": tensors[1], "lq_path": f"{index}.png", "gt_path": f"{index}.png"}
        return {key: value for key, value in item.items() if not (self.bare and key.startswith("gt"))}


@pytest.mark.usefixtures("stand_in")
def test_validation_measures_the_set_with_any_number_of_ranks(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = sections(["psnr", "fid", "cmmd", "ssim"], 0)
    result = evaluate(lambda x: x, _Pairs(folders), name="set", metrics=metrics, device="cpu")
    made, gt = _describe(_images(folders / "dark")), _describe(_images(folders / "gt"))
    assert list(result.mean) == list(metrics)
    assert result.mean["fid"] == pytest.approx(_frechet(made, gt), rel=1e-4)
    assert result.mean["cmmd"] == pytest.approx(gaussian_mmd(made, gt))
    assert all(set(scores) == {"psnr", "ssim"} for scores in result.per_image.values())
    first: list[Any] = []

    def on_all_ranks(mine: Any) -> list[Any]:
        first.append(mine)
        return first

    monkeypatch.setattr("safmn.evaluation.scoring.on_all_ranks", on_all_ranks)
    for rank in range(2):
        both = evaluate(
            lambda x: x, _Pairs(folders), name="set", metrics=metrics, device="cpu", rank=rank, world_size=2
        )
    assert both.mean == result.mean
    bare = evaluate(lambda x: x, _Pairs(folders, bare=True), name="set", metrics=metrics, device="cpu")
    assert bare.mean == {}


@pytest.mark.usefixtures("stand_in")
def test_one_image_is_no_error(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in (folders / "dark").glob("[1-5].png"):
        file.unlink()
        (folders / "gt" / file.name).unlink()
    result = evaluate(lambda x: x, _Pairs(folders), name="set", metrics=sections(["fid"], 0), device="cpu")
    assert np.isnan(result.mean["fid"])
    assert "at least two images" in caplog.text


def test_directions_and_words() -> None:
    assert is_lower_better({"type": "FID"})
    assert better({"val": {"metrics": {"a": {"type": "FID"}, "b": {"type": "lpips"}}}}, "b") == "lower"
    assert better({"val": {"metrics": {"a": {"type": "FID"}, "b": {"type": "calculate_psnr"}}}}, "b") == "higher"
    assert "patches of 256x256" in settings({"type": "FID", "patch": 256})


def test_the_keys_of_an_option_file_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safmn.metrics.of_sets.missing", lambda package: None)
    problems = Problems("my.yml")
    assert check_metric({"type": "FID", "patch": 256}, ("val", "metrics", "fid"), problems)
    assert not check_metric({"type": "KID", "reference": "real"}, ("val", "metrics", "kid"), problems)
    problems.raise_all()
    check_metric({"type": "FID", "patches": 256}, ("val", "metrics", "fid"), problems)
    check_metric({"type": "CMMD", "package": "torchmetrics"}, ("val", "metrics", "cmmd"), problems)
    with pytest.raises(OptionError, match=r"patches.*patch(.|\n)*package"):
        problems.raise_all()


def test_without_the_packages_one_sentence_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ("pyiqa", "torchmetrics", "torch_fidelity")
    monkeypatch.setattr(learned.importlib.util, "find_spec", lambda name: None if name in gone else object())
    with pytest.raises(OptionError, match="--metrics fid: needs the package torchmetrics: pip install torchmetrics"):
        sections(["fid"], 4)
    with pytest.raises(OptionError, match="needs the package pyiqa"):
        sections(["cmmd"], 4)
    gone = ("torch_fidelity",)
    with pytest.raises(OptionError, match="pip install torch-fidelity"):
        sections(["fid:256"], 4)


class _Count(SetMetric):
    """The number of images, and a fault."""

    better = "higher"

    def samples(self, image: np.ndarray) -> np.ndarray:
        return np.ones((1, 1))

    def value(self, made: np.ndarray, gt: np.ndarray | None) -> float:
        if gt is None or len(made) == 5:
            raise ZeroDivisionError("five")
        return float(len(made))


@pytest.fixture
def own_metric() -> Iterator[None]:
    METRIC_REGISTRY.register(_Count)
    yield
    METRIC_REGISTRY._obj_map.pop("_Count")


@pytest.mark.usefixtures("own_metric")
def test_a_metric_of_ones_own(folders: Path) -> None:
    metrics = {"count": {"type": "_Count"}}
    assert evaluate(lambda x: x, _Pairs(folders), name="s", metrics=metrics, device="cpu").mean == {"count": 6.0}
    for name in ("dark", "gt"):
        (folders / name / "3.png").unlink()
    with pytest.raises(DataError, match=r"data set 's': metric 'count' failed.*five"):
        evaluate(lambda x: x, _Pairs(folders), name="s", metrics=metrics, device="cpu")


def _needs(*packages: str) -> None:
    compat.repair_torchvision()
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed (tests/requirements-extras.txt)")


@pytest.mark.parametrize("name", ["fid", "pyiqa:fid", "cmmd"])
def test_missing_weights_are_named(
    name: str, folders: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _needs(*(("torchmetrics", "torch_fidelity") if name == "fid" else ("pyiqa",)))
    monkeypatch.setenv("TORCH_HOME", str(folders))
    feature_networks.network.cache_clear()
    assert main(["score", str(folders / "dark"), "--gt", str(folders / "gt"), "--metrics", name]) == 2
    error = capfd.readouterr().err
    file = "ViT-L-14-336px.pt" if name == "cmmd" else "inception-2015-12-05-6726825d.pth"
    assert file in error
    assert f"put it at {folders if name == 'fid' else ''}" in error


def _random_inception(place: Path) -> None:
    """Write random weights of the right shapes to the place that messages name."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, *given: Any, **more: Any) -> Any:
            return None

    with torch.random.fork_rng():
        torch.manual_seed(0)
        place.parent.mkdir(parents=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *given, **more: {}
            )
            torch.save(Empty("inception-v3-compat", ["2048"]).state_dict(), place)


@pytest.mark.slow
def test_values_are_those_of_the_packages(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights at the named place: FID and KID of torchmetrics, and FID of pyiqa, on the same folders."""
    _needs("torchmetrics", "torch_fidelity", "pyiqa")
    import pyiqa
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    monkeypatch.setenv("TORCH_HOME", str(folders))
    feature_networks.network.cache_clear()
    weights = folders / "hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    _random_inception(weights)
    of_pyiqa = folders / "pyiqa/pt_inception-2015-12-05-6726825d.pth"
    of_pyiqa.parent.mkdir()
    of_pyiqa.write_bytes(weights.read_bytes())
    monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(of_pyiqa.parent))
    made, gt = ([image[..., ::-1] for image in _images(folders / name)] for name in ("dark", "gt"))

    def ours(metric: SetMetric) -> float:
        return metric.value(*(np.concatenate([metric.samples(image) for image in images]) for images in (made, gt)))

    reference = FrechetInceptionDistance(feature=2048)
    kid = KernelInceptionDistance(subset_size=6, subsets=1)
    for images, real in ((made, False), (gt, True)):
        batch = torch.from_numpy(np.stack([image[..., ::-1] for image in images])).permute(0, 3, 1, 2)
        reference.update(batch, real=real)
        kid.update(batch, real=real)
    assert ours(FID()) == pytest.approx(float(reference.compute()), rel=1e-3)
    assert ours(KID()) == pytest.approx(float(kid.compute()[0]), rel=1e-3, abs=1e-7)
    learned.say_licence.cache_clear()
    theirs = pyiqa.create_metric("fid", device=torch.device("cpu"))
    expected = float(theirs(str(folders / "dark"), str(folders / "gt"), num_workers=0, verbose=False))
    assert ours(FID(package="pyiqa")) == pytest.approx(expected, rel=1e-3)


def test_a_report_shows_the_value_of_the_set(
    folders: Path, stand_in: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    made, gt = str(folders / "dark"), str(folders / "gt")
    command = ["compare", f"mine={made}", f"other={folders / 'noisy'}", "--scale", "2", "--data", f"set={gt}"]
    command += ["--metrics", "fid", "psnr", "--report", str(folders / "page.html")]
    assert main(command) == 0
    page = (folders / "page.html").read_text()
    value = f"{_frechet(_describe(_images(folders / 'dark')), _describe(_images(folders / 'gt'))):.4f}"
    assert value in page
    assert json.dumps("nan") not in page
    assert ">nan<" not in page

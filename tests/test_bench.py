"""``safmn bench``: published data, counted cost, remembered scores, tables and plots; with a user's own network."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from safmn.archs import PEERS
from safmn.archs.complexity import complexity
from safmn.cli.bench import main
from safmn.errors import OptionError, WeightsError
from safmn.evaluation import paper_tables, quality, scatter, speed_sides
from safmn.evaluation.costs import cost_of, cost_table
from safmn.evaluation.methods import Method, import_files, open_methods, untrained
from safmn.evaluation.metric_choice import sections
from safmn.evaluation.published import SETS, TABLES, Figure, joined_row, published, rows
from safmn.evaluation.quality_notes import quality_note
from safmn.evaluation.score_cache import ScoreCache
from safmn.evaluation.scoring import SetResult
from safmn.evaluation.sizes import published_size, size_named, sizes
from safmn.evaluation.speed import Speed, measure, speed_table
from safmn.evaluation.speed_sides import Protocol
from safmn.evaluation.tables import Column, Table, write
from safmn.evaluation.timing import Timing
from safmn.imaging import imresize, mod_crop, read_rgb, rgb_to_y, write_image
from safmn.metrics import psnr

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "published_tables.tsv"

OWN = '''
"""A network of a user."""

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn


@ARCH_REGISTRY.register()
class {name}(nn.Module):
    def __init__(self, dim=8, up=2):
        super().__init__()
        self.head = nn.Conv2d(3, dim, 3, 1, 1)
        self.tail = nn.Sequential(nn.Conv2d(dim, 3 * up**2, 3, 1, 1), nn.PixelShuffle(up))

    def forward(self, x):
        return self.tail(self.head(x).relu())
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's network (``mine.py``), its weights, an option file, and a set of three images."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine_bench.py").write_text(OWN.format(name="MineBench"), encoding="utf-8")
    import_files([str(folder / "mine_bench.py")])
    torch.manual_seed(3)
    torch.save(open_methods(["MineBench()=" + _weights(folder)])[0].network.state_dict(), folder / "mine_x2.pth")
    (folder / "mine.yml").write_text(
        f"imports: [{folder / 'mine_bench.py'}]\nnetwork_g: {{type: MineBench, dim: 8}}\n"
        f"path: {{pretrain_network_g: {folder / 'mine_x2.pth'}}}\n",
        encoding="utf-8",
    )
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        gt = imresize(rng.integers(0, 256, (10, 12, 3), np.uint8), 4)
        write_image(folder / "sets" / "Tiny" / "HR" / f"{name}.png", gt)
        write_image(folder / "sets" / "Tiny" / "LR_bicubic" / "X2" / f"{name}x2.png", imresize(gt, 1 / 2))
    return folder


def _weights(folder: Path) -> str:
    """Write weights for the user's network."""
    from mine_bench import MineBench

    torch.manual_seed(3)
    torch.save(MineBench().state_dict(), folder / "first.pth")
    return str(folder / "first.pth")


# --- published data


def test_the_published_data_is_that_of_the_paper() -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is missing")
    with SHARED.open(encoding="utf-8") as file:
        expected = list(csv.DictReader(file, delimiter="\t"))
    ours = [row for row in rows() if row.table in TABLES]
    assert len(ours) == len(expected)
    names = {"params": "params", "madds": "madds_G", "acts": "acts_M", "memory": "gpu_mem_M", "time": "time_ms"}
    for row, cells in zip(ours, expected, strict=True):
        assert (row.table, row.scale, row.network) == (cells["table"], int(cells["scale"]), cells["method"])
        for ours_name, theirs in names.items():
            figure = getattr(row, ours_name)
            assert (figure.text if figure else "") == (cells[theirs] or "").replace("-", "")
        for name in SETS:
            found = (
                "{}/{:.4f}".format(f"{row.quality[name][0]:.2f}", row.quality[name][1]) if name in row.quality else ""
            )
            assert found == (cells[name] or "").replace("-", "")


def test_every_published_row_has_a_source() -> None:
    assert all(row.source for row in rows())
    assert len({(row.table, row.network, row.scale) for row in rows()}) == len(rows())


@pytest.mark.parametrize(
    ("text", "value", "near", "far"),
    [("240K", 240, 239.52, 239.3), ("43.90M", 43900, 43896, 43089), ("13.56", 13.56, 13.5549, 13.5)],
)
def test_rounding_is_no_difference(text: str, value: float, near: float, far: float) -> None:
    from safmn.evaluation.published import _figure

    figure = _figure(text)
    assert isinstance(figure, Figure)
    assert figure.value == pytest.approx(value)
    assert figure.agrees(near)
    assert not figure.agrees(far)


# --- cost


class Pooled(nn.Module):
    """Pooling and normalisation, which fvcore counts as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 1, 1)
        self.norm = nn.LayerNorm(8)
        self.plain = nn.LayerNorm(8, elementwise_affine=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.up = nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y = self.plain(self.norm(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.up(y * self.pool(y))


def test_pooling_normalisation_and_transposed_convolutions_count_as_in_fvcore() -> None:
    network = Pooled().eval()
    analysis = FlopCountAnalysis(network, torch.zeros(1, 3, 12, 20))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert complexity(network, (24, 40)).multiply_adds == analysis.total()  # its scale of 2 is found by trying


@pytest.mark.parametrize("size", [size for size in sizes() if size.type not in PEERS], ids=lambda size: size.name)
def test_the_cost_is_the_published_one_or_the_difference_has_a_reason(size) -> None:  # type: ignore[no-untyped-def]
    cost = cost_of(untrained(size))
    assert cost.values is not None
    assert cost.values[0] > 10
    if cost.differs():
        assert cost.row is not None
        assert cost.row.note


def test_the_cost_table_marks_what_is_published() -> None:
    costs = [cost_of(untrained(size_named(name))) for name in ("SAFMN x4", "EDSR x4", "SAFMNPP x4")]  # type: ignore[arg-type]
    table = cost_table(costs)
    headings = [column.heading for column in table.columns]
    assert headings[:4] == ["network", "params (K), measured", "params (K), published", "params (K), difference"]
    assert table.rows[0][1:4] == ["239.52", "240K", "rounding"]
    assert table.rows[1][1:4] == ["43,089.92", "43.90M", "-1.8%"]
    assert table.rows[2][2:4] == ["", ""]
    assert any("slip" in note for note in table.notes)


def test_published_sizes_are_recognised_from_sections() -> None:
    assert published_size({"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "upscale": 3}).name == "EDSR-baseline x3"  # type: ignore[union-attr]
    assert published_size({"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 48}) is None
    assert published_size({"type": "Unheard"}) is None


class Looking(nn.Module):
    """A user's network with windows, which looks at values."""

    window_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.scale = 2
        self.conv = nn.Conv2d(3, 12, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] % 8 == x.shape[3] % 8 == 0
        y: torch.Tensor = nn.functional.pixel_shuffle(self.conv(x), 2)
        return y / max(y.abs().max().item(), 1.0)


def test_a_network_that_looks_at_values_and_has_windows_is_counted() -> None:
    cost = cost_of(Method("mine", "network", 2, network=Looking()), (36, 50))
    assert cost.counted is not None
    assert cost.counted.multiply_adds == 24 * 32 * 12 * 27


def test_a_network_that_fails_is_named() -> None:
    with pytest.raises(OptionError, match="mine: its operations cannot be counted: "):
        cost_of(Method("mine", "network", 2, network=nn.Sequential(nn.Conv2d(5, 3, 3))))


# --- methods


def test_methods_of_every_kind(own: Path) -> None:
    (own / "made").mkdir(exist_ok=True)
    weights = own / "mine_x2.pth"
    texts = [
        f"MineBench={weights}",
        f"MineBench(dim=8)={weights}",
        str(own / "mine.yml"),
        f"{own / 'mine.yml'}={weights}",
    ]
    found = open_methods([*texts, "safmn-x2", "ours=safmn-x2", "bicubic", str(own / "made"), f"IMDN={own / 'made'}"])
    assert [method.kind for method in found] == ["network"] * 6 + ["bicubic", "images", "images"]
    assert {method.scale for method in found} == {2}
    assert [method.label for method in found[:4]] == ["MineBench", "MineBench(dim=8)", "mine", "mine (2)"]
    assert [method.published for method in found[4:]] == ["SAFMN", "SAFMN", "Bicubic", None, "IMDN"]
    assert found[5].label == "ours"
    identities = [method.identity() for method in found]
    assert identities[0] is not None
    assert identities[7] is None


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("safmn-x5", OptionError, "Did you mean 'safmn-x"),
        ("EDSR-baseline=", OptionError, "after '='"),
        ("Unheard(dim=3)=x.pth", OptionError, "no network named 'Unheard'"),
        ("MineBench(3)=x.pth", OptionError, "write arguments as in"),
        ("MineBench(dim=5)={weights}", WeightsError, "dim|do not fit"),
        ("MineBench={missing}", WeightsError, "nothing.pth"),
        ("bicubic", OptionError, "which scale"),
    ],
)
def test_mistakes_in_methods(own: Path, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_methods([text.format(weights=own / "mine_x2.pth", missing=own / "nothing.pth")])


def test_methods_of_another_scale_are_refused(own: Path) -> None:
    with pytest.raises(OptionError, match="for scale 2, but --scale is 4"):
        open_methods(["safmn-x2"], scale=4)
    both = open_methods(["safmn-x2", "safmn-x4", "bicubic"])
    assert [(method.label, method.scale) for method in both[2:]] == [("Bicubic", 2), ("Bicubic", 4)]


def test_the_identity_depends_on_weights_and_code(own: Path, tmp_path: Path) -> None:
    method = open_methods([f"MineBench={own / 'mine_x2.pth'}"])[0]
    before = method.identity()
    assert before == open_methods([f"MineBench={own / 'mine_x2.pth'}"])[0].identity()
    with torch.no_grad():
        next(method.network.parameters()).add_(1e-3)  # type: ignore[union-attr]
    assert method.identity() != before


# --- scores


def test_scores_are_those_of_safmn_test_and_are_remembered(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safmn.evaluation.image_sets import open_sets

    method = open_methods([f"MineBench={own / 'mine_x2.pth'}"])[0]
    (images,) = open_sets([str(own / "sets")], 2)
    found = quality.score(method, images, sections(["psnr"], 2), device=torch.device("cpu"))
    item = images.open()[1]
    with torch.no_grad():
        output = method.network(item["lq"][None])[0].clamp(0, 1).mul(255).round().byte()  # type: ignore[misc]
    expected = psnr(
        output.permute(1, 2, 0).numpy(), item["gt"].mul(255).round().byte().permute(1, 2, 0).numpy(), crop=2, y=True
    )
    assert found.per_image["b"]["psnr"] == pytest.approx(expected, abs=1e-9)
    measured: list[int] = []
    real = quality.evaluate
    monkeypatch.setattr(quality, "evaluate", lambda *a, **k: (measured.append(len(a[1])), real(*a, **k))[1])
    assert quality.score(method, images, sections(["psnr"], 2), device=torch.device("cpu")).per_image == found.per_image
    assert measured == []
    both = quality.score(method, images, sections(["psnr", "ssim"], 2), device=torch.device("cpu"))
    assert measured == [3]
    assert set(both.mean) == {"psnr", "ssim"}
    changed = own / "sets" / "Tiny" / "HR" / "c.png"
    content = changed.read_bytes()
    write_image(changed, np.zeros((40, 48, 3), np.uint8))
    quality.score(method, images, sections(["psnr"], 2), device=torch.device("cpu"))
    assert measured == [3, 1]
    changed.write_bytes(content)
    quality.score(method, images, sections(["psnr"], 4), device=torch.device("cpu"))
    assert measured == [3, 1, 3]


def test_a_damaged_cache_costs_only_the_damaged_line() -> None:
    cache = ScoreCache({"a": 1})
    cache.put("x", "psnr", 30.5)
    cache.put("y", "psnr", float("inf"))
    assert cache._lines._file is not None
    with cache._lines._file.open("a", encoding="utf-8") as file:
        file.write('\n{"image": "z", "metr')
    ScoreCache({"a": 1}).put("w", "psnr", 1.0)
    again = ScoreCache({"a": 1})
    assert [again.get(image, "psnr") for image in "xyzw"] == [30.5, float("inf"), None, 1.0]
    assert len(ScoreCache({"a": 2})) == 0


def test_what_differs_from_a_published_score_is_named_with_its_reason() -> None:
    row = rows("efficient", 4)[0]
    assert row.network == "Bicubic"
    scores = {"Set5": SetResult("Set5", {}, {"psnr": 28.43, "ssim": 0.8104}, 0.0)}
    (note,) = quality_note("Bicubic", row, scores, "MATLAB's rule")
    assert note.startswith("Bicubic: Set5 +0.010 dB from the published row: the paper reduces and enlarges Y")
    assert quality_note("Bicubic", row, {"Set5": SetResult("Set5", {}, {"psnr": 28.424}, 0.0)}, None) == []
    only_ssim = {"Set5": SetResult("Set5", {}, {"psnr": 28.42, "ssim": 0.8111}, 0.0)}
    assert "Set5 +0.0007 SSIM from" in quality_note("Bicubic", row, only_ssim, None)[0]
    vague = next(each for each in rows("efficient", 4) if each.network == "IMDN")
    mine = {"Set5": SetResult("Set5", {}, {"psnr": 30.0}, 0.0)}
    assert "(mine.pth)" in quality_note("IMDN", vague, mine, "mine.pth")[0]
    assert "safmn-x4 was trained for this package" in quality_note("SAFMN", vague, mine, "safmn-x4")[0]


def test_a_method_of_another_table_has_the_figures_of_all_tables() -> None:
    row = joined_row("RLFN", 4)
    assert row is not None
    assert set(row.quality) == {"Set5", "Set14", "B100"}
    assert row.madds is not None
    assert row.source == "arXiv 2302.13800; RLFN, CVPRW 2022"
    assert joined_row("TinyMine", 4) is None


def test_notes_name_the_rows_of_their_table() -> None:
    methods = open_methods(["Mine=VDSR"], scale=4)
    found = paper_tables.entries("efficient", 4, methods, {})
    notes = [note for note in paper_tables.paper_table("", found).notes if "rounds the activations to tens" in note]
    assert notes == ["VDSR x4: activations (M): the paper rounds the activations to tens"]


def test_the_published_bicubic_is_that_of_y(benchmark_dir: Path) -> None:
    """As the note of its row says: Y of 8 bits is reduced and enlarged, and the result has 8 bits."""
    for scale in (2, 3, 4):
        found = []
        for file in sorted((benchmark_dir / "Set5" / "HR").glob("*.png")):
            y = rgb_to_y(mod_crop(read_rgb(file), scale)).round()
            enlarged = imresize(imresize((y / 255).astype(np.float32), 1 / scale), scale)
            found.append(psnr(np.clip(enlarged * 255, 0, 255).round(), y, crop=scale))
        expected = published("Bicubic", scale, "Set5")
        assert expected is not None
        assert np.mean(found) == pytest.approx(expected[0], abs=0.006)


# --- tables and files


def _table() -> Table:
    columns = [Column("method"), Column("params (K)", "measured"), Column("params (K)", "published"), Column("empty")]
    return Table("A_b & c", columns, [["x_1", "1.50", "2K", ""], ["<y>", "-3", "", ""]], ["a note"])


def test_tables_in_every_format(tmp_path: Path) -> None:
    table = _table().without_empty_columns()
    for ending in (".md", ".tex", ".csv", ".html"):
        write([table], tmp_path / f"t{ending}")
    assert "| x_1      |" in (tmp_path / "t.md").read_text("utf-8")
    tex = (tmp_path / "t.tex").read_text("utf-8")
    assert r"\multicolumn{2}{c}{params (K)}" in tex
    assert r"x\_1 & 1.50 & 2K \\" in tex
    assert r"& $-$3 &" in tex
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        assert list(csv.reader(file))[1:] == [["x_1", "1.50", "2K"], ["<y>", "-3", ""]]
    page = (tmp_path / "t.html").read_text("utf-8")
    assert "&lt;y&gt;" in page
    assert '<th colspan="2">params (K)</th>' in page
    with pytest.raises(OptionError, match=r"\.md, \.tex, \.csv or \.html"):
        write([table], tmp_path / "t.xlsx")


def test_an_own_network_is_in_all_columns_of_a_table(own: Path, tmp_path: Path) -> None:
    arguments = ["--imports", str(own / "mine_bench.py"), f"MineBench={own / 'mine_x2.pth'}", "safmn-x2"]
    data = ["--data", str(own / "sets")]
    file = tmp_path / "table.csv"
    assert main(["table", "efficient", "--scale", "2", *arguments, *data, "-o", str(file)]) == 0
    with file.open(encoding="utf-8") as text:
        found = {row["method"]: row for row in csv.DictReader(text)}
    mine, safmn = found["MineBench"], found["SAFMN"]
    assert float(mine["params (K), measured"]) == pytest.approx(1.1, abs=0.01)
    assert mine["params (K), published"] == ""
    assert float(mine["Tiny PSNR / SSIM, measured"].split(" / ")[0]) > 0
    assert (safmn["params (K), measured"], safmn["params (K), published"]) == ("227.82", "228K")
    assert safmn["Set5 PSNR / SSIM, published"] == "38.00 / 0.9605"
    assert found["IMDN"]["Set5 PSNR / SSIM, published"] == "38.00 / 0.9605"


def test_quality_names_the_set_that_is_missing(own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "Other" / "HR" / "a.png", np.zeros((24, 24, 3), np.uint8))
    data = ["--data", str(own / "sets"), "--data", str(tmp_path)]
    assert main(["quality", "bicubic", "--scale", "2", *data, "-o", str(tmp_path / "q.csv")]) == 2
    out, err = capfd.readouterr()
    assert "Bicubic on Other" in err
    assert "safmn prepare lr" in err
    assert "Tiny psnr" in out
    assert (tmp_path / "q.csv").exists()


def test_a_folder_of_hr_images_is_reduced(own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def scores(data: str) -> str:
        assert main(["quality", "bicubic", "--scale", "2", "--data", data, "--again"]) == 0
        line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("| Bicubic"))
        return "|".join(line.split("|")[2:])

    assert scores(f"Tiny={own}/sets/Tiny/HR") == scores(str(own / "sets" / "Tiny"))


def test_the_plot_is_a_vector_file_and_repeatable(own: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["--imports", str(own / "mine_bench.py"), f"MineBench={own / 'mine_x2.pth'}", "--scale", "2"]
    arguments += ["--data", str(own / "sets"), "--set", "Tiny"]
    for name in ("a.svg", "b.svg", "a.pdf"):
        assert main(["plot", *arguments, "-o", str(tmp_path / name)]) == 0
    svg = (tmp_path / "a.svg").read_text("utf-8")
    assert "MineBench" in svg
    assert svg == (tmp_path / "b.svg").read_text("utf-8")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_published_points_are_in_the_plot(own: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["plot", "safmn-x4", "--data", str(own / "sets" / "Tiny" / "HR"), "-o", str(tmp_path / "p.svg")]) == 0
    svg = (tmp_path / "p.svg").read_text("utf-8")
    assert all(name in svg for name in ("VDSR", "IMDN", "ShuffleMixer", "SAFMN", "Set14, x4"))


def test_the_plot_shows_large_networks_whole_and_names_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [
        scatter.Point("a $x_1$ b", 20.0, 29.0, 3.0, measured=True),
        scatter.Point("EDSR", 9500.0, 31.0, 43000.0, measured=False),
        scatter.Point("EDSR", 9500.0, 31.001, 43000.0, measured=True),
    ]
    scatter.draw(points, tmp_path / "p.svg", set_name="Set5", scale=3, by_time=True)
    svg = (tmp_path / "p.svg").read_text("utf-8")
    assert "a $x_1$ b" in svg
    assert svg.count(">EDSR<") == 1  # one name for two circles that cover each other
    largest = max(scatter._area(point, scatter._unit(points)) for point in points)
    assert largest == scatter._MOST
    assert "40 M parameters" in svg


def test_times_are_kept_and_an_interrupted_measurement_goes_on(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = open_methods([f"MineBench={own / 'mine_x2.pth'}"])[0]
    protocol = Protocol(torch.device("cpu"), runs=4, warm_up=1, output=(32, 32), memory=False)
    calls: list[int] = []
    real = speed_sides.make_backend

    def counted(*arguments: object, **more: object) -> object:
        run = real(*arguments, **more)  # type: ignore[arg-type]

        def call(x: torch.Tensor) -> torch.Tensor:
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            calls.append(1)
            return run(x)

        return call

    monkeypatch.setattr(speed_sides, "make_backend", counted)
    stop_at = 4  # building, a warm-up, two timed runs
    with pytest.raises(KeyboardInterrupt):
        measure([method], protocol)
    stop_at = -1
    (found,), _ = measure([method], protocol)
    assert len(calls) == 4 + 1 + 1 + 2  # building, a warm-up, and the two runs that were missing
    assert len(found.timing.seconds) == 4
    assert found.since is not None
    assert measure([method], protocol)[0][0].timing == found.timing  # nothing is built or run
    assert len(calls) == 8
    measure([method], replace(protocol, output=(64, 64)))
    assert len(calls) == 8 + 6  # another size
    again = measure([method], replace(protocol, remember=False))[0][0]
    assert len(calls) == 14 + 6
    assert measure([method], protocol)[0][0].timing == again.timing


def test_published_times_are_beside_times_of_the_same_size_only() -> None:
    method = untrained(size_named("SAFMN x4"))  # type: ignore[arg-type]
    protocol = Protocol(torch.device("cpu"), runs=1, warm_up=0)
    timed = Speed(method, "eager", "fp32", (180, 320), Timing((0.1,)), others=1.5)
    table = speed_table([timed], protocol)
    assert "10.71" in table.rows[0]
    assert any("other programs used up to 1.5 of" in note for note in table.notes)
    small = speed_table([replace(timed, others=0.0)], replace(protocol, output=(144, 256)))
    assert "10.71" not in small.rows[0]
    assert any("published times are left out: they are for an output of 1280x720" in note for note in small.notes)
    assert not any("other programs" in note or "published:" in note for note in small.notes)


@pytest.mark.slow
def test_speed_times_all_sides_and_measures_memory(own: Path, tmp_path: Path) -> None:
    file = tmp_path / "speed.csv"
    arguments = ["--imports", str(own / "mine_bench.py"), f"MineBench={own / 'mine_x2.pth'}", "safmn-x2"]
    assert main(["speed", *arguments, "--runs", "2", "--size", "64x48", "-o", str(file)]) == 0
    with file.open(encoding="utf-8") as text:
        mine, safmn = csv.DictReader(text)
    assert mine["network"] == "MineBench"
    assert mine["input"] == "32x24"
    assert 0 < float(mine["time (ms), measured"]) < float(safmn["time (ms), measured"])
    assert float(safmn["memory (MB), measured"]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: safmn bench"),
        (["complexit"], "Did you mean 'complexity'?"),
        (["complexity", "--size", "big"], "--size big"),
        (["complexity", "bicubic", "--scale", "4"], "there is no network to count"),
        (["complexity", "--table", "effic"], "invalid choice"),
        (["quality", "-o", "t.doc"], "-o t.doc"),
        (["speed", "--runs", "0"], "--runs 0"),
        (["speed", "--backends", "nativ"], "Did you mean 'native'?"),
        (["plot", "-o", "p.bmp"], "-o p.bmp"),
        (["table", "efficient", "--scale", "5"], "no rows for scale 5"),
        (["quality", "safmn-x2", "--data", "nowhere"], "--data nowhere"),
        (["quality", "safmn-x2", "--imports", "nowhere.py"], "nowhere.py"),
        (["quality", "EDSR-baseline", "--scale", "4", "--data", "."], "there are no weights"),
    ],
)
def test_mistakes_end_with_status_2(
    arguments: list[str], message: str, own: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(own / "sets")
    try:
        status = main(arguments)
    except SystemExit as error:  # argparse
        status = error.code  # type: ignore[assignment]
    out, err = capfd.readouterr()
    assert status == 2
    assert message in out + err


def test_the_command_runs_in_a_users_folder(own: Path) -> None:
    command = [sys.executable, "-m", "safmn", "bench", "complexity", "-opt", "mine.yml", "-o", "cost.csv"]
    done = subprocess.run(command, cwd=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mine" in (own / "cost.csv").read_text("utf-8")


def test_published_pairs_keep_their_interface() -> None:
    assert published("EDSR", 2, "Set5") == (38.11, 0.9602)
    assert json.dumps(published("SMFANet", 4, "Set5")) == "[32.25, null]"

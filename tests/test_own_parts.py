"""The example of docs/components.md runs as printed; own parts of every kind are checked, saved and compared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
import yaml

import safmn.cli
from safmn import test as testing
from safmn.errors import OptionError
from safmn.imaging import read_rgb
from safmn.optim.optimizers import build_optimizer, find_optimizer, known_optimizers
from safmn.options import load_options
from safmn.registry import OPTIMIZER_REGISTRY, SCHEDULE_REGISTRY
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution
from safmn.train import main
from safmn.training import state_format
from safmn.training.experiment import own_commits
from safmn.training.models.trained_network import TrainedNetwork

DOCUMENT = Path(__file__).parent.parent / "docs" / "components.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two files of the example."""
    folder = tmp_path_factory.mktemp("example")
    for name, text in re.findall(r"```\w+\n# (my\S+)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
        (folder / name).write_text(text)
    assert {path.name for path in folder.iterdir()} == {"my_parts.py", "my.yml"}
    return folder


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> int:
    return safmn.cli.main(["train", "-opt", "my.yml", *arguments])


def prints(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "models").glob("*.pth"), *(folder / "training_states").rglob("*.*"), folder / "record.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_example_runs(inside: Path, images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is trained, resumed to the same bytes, tested, upscaled with and exported."""
    assert run() == 0
    mine = inside / "experiments/mine"
    whole = prints(mine)
    record = [line for line in (mine / "record.jsonl").read_text().splitlines() if '"edges"' in line]
    assert len(record) == 2
    shutil.move(mine, inside / "experiments/uninterrupted")
    assert run("--force_yml", "train:total_iter=10") == 0
    assert run("--auto_resume") == 0
    assert "resumed from" in (mine / "train_mine.log").read_text()
    again = prints(mine)
    assert again.keys() >= {"models/net_g_20.pth", "record.jsonl"}
    for name in again:
        if not name.endswith(("state.json", "manifest.json", "_10.pth")):
            assert again[name] == whole[name], name
    assert testing.main(["-opt", "my.yml"]) == 0
    assert "edges" in capfd.readouterr().out
    photo = next((images / "val/lr").glob("*.png"))
    for verb, output in (("upscale", "out.png"), ("export", "mine.pt")):
        arguments = [str(photo)] if verb == "upscale" else []
        assert safmn.cli.main([verb, *arguments, "-o", output, "-opt", "my.yml"]) == 0
        assert Path(output).is_file()
    assert read_rgb(Path("out.png")).shape == (64, 64, 3)


def test_the_folder_of_a_run_has_all_that_decides_it(inside: Path) -> None:
    """The complete options run again as they are, from the folder and from the log, to the same bytes."""
    mine = inside / "experiments/again"
    assert run("--force_yml", "name=again", "train:total_iter=4") == 0
    assert (mine / "option_file.yml").read_bytes() == (inside / "my.yml").read_bytes()
    assert (mine / "code/my_parts.py").read_bytes() == (inside / "my_parts.py").read_bytes()
    complete = yaml.safe_load((mine / "options.yml").read_text())
    assert complete["imports"] == ["my_parts.py"]
    assert complete["model"] == {"noise": 0.01}
    assert complete["train"]["total_iter"] == 4
    whole = prints(mine)
    logged = re.search(r"options of my\.yml:\n(.*?)\n\d{4}-", (mine / "train_again.log").read_text(), re.DOTALL)
    assert logged is not None
    for name, text in (("from_log.yml", logged[1]), ("from_folder.yml", (mine / "options.yml").read_text())):
        Path(name).write_text(text, encoding="utf-8")
        assert main(["-opt", name]) == 0
        found = prints(mine)
        assert found.keys() == whole.keys()
        different = [name for name in whole if found[name] != whole[name]]
        assert all(name.endswith(("state.json", "manifest.json")) for name in different)  # they have the options


def test_changed_code_is_refused_on_resume(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The message gives two ways to go on; both work. A file that the imported one imports counts, too."""
    monkeypatch.chdir(tmp_path)
    content = tiny_run.options(folder) | {"imports": ["changing_of_the_test.py"], "path": {}}
    tiny_run.make_images(folder)
    content["train"]["total_iter"] = 2
    tiny_run.write_options(tmp_path, content, "my.yml")
    Path("changing_of_the_test.py").write_text("import beside_of_the_test\n", encoding="utf-8")
    Path("beside_of_the_test.py").write_text("x = 1\n", encoding="utf-8")

    def resume(total: int, *arguments: str) -> int:
        monkeypatch.setattr("safmn.imports._imported", {})  # as in a new process
        return run("--auto_resume", "--force_yml", f"train:total_iter={total}", *arguments)

    assert resume(2) == 0
    log = Path("experiments/tiny/train_tiny.log").read_text(encoding="utf-8")
    assert len(re.findall(r"of_the_test\.py: SHA-256 \w{16}", log)) == 2
    Path("beside_of_the_test.py").write_text("x = 2\n", encoding="utf-8")
    assert resume(3) == 2
    err = capfd.readouterr().err
    assert "code of imports[0]" in err
    advice = re.search(r"--force_yml '(imports=\S+)'", err)
    assert advice is not None
    assert resume(3, advice[1]) == 0
    assert Path("experiments/tiny/code/beside_of_the_test.py").read_text(encoding="utf-8") == "x = 1\n"
    assert resume(4) == 2
    assert resume(4, "--allow-changes") == 0
    assert Path("experiments/tiny/code/beside_of_the_test.py").read_text(encoding="utf-8") == "x = 2\n"
    [kept] = Path("experiments/tiny").glob("code_archived_*")
    assert (kept / "beside_of_the_test.py").read_text() == "x = 1\n"


def test_the_commit_of_the_users_repository_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    monkeypatch.chdir(tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        if subprocess.run(["git", *arguments], capture_output=True).returncode:
            pytest.skip("git cannot make a repository here")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    found = {key: value for key, value in own_commits().items() if str(tmp_path.name) in key}
    assert list(found.values()) == [head]


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model:nois=1", "NoisyModel has no argument 'nois'. Did you mean 'noise'"),
        ("model:noise=much", "model.noise: expected a number"),
        ("train:scheduler:iteration=5", "HalfLife has no argument 'iteration'. Did you mean 'iterations'"),
        ("train:scheduler:type=HalfLive", "Did you mean 'HalfLife'"),
        ("train:optim_g:momentun=0.5", "SignSGD has no argument 'momentun'"),
        ("train:optim_g:momentum=big", "train.optim_g.momentum: expected a number"),
        ("train:optim_g:type=SignSDG", "Did you mean 'SignSGD'"),
        ("datasets:val:sides=5", "Waves has no key 'sides'. Did you mean 'side'"),
        ("datasets:train:period=long", "datasets.train.period: expected a number"),
        ("val:metrics:edges:crop=5", "edge_error has no argument 'crop'"),
    ],
)
def test_keys_of_own_parts_are_checked(override: str, words: str, inside: Path) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        load_options("my.yml", mode="train", overrides=[override])


def test_models_of_the_package_take_no_section_model(images: Path, tmp_path: Path) -> None:
    path = tiny_run.write_options(tmp_path, tiny_run.options(images) | {"model": {"noise": 1}})
    with pytest.raises(OptionError, match="SRModel has no argument 'noise'"):
        load_options(path, mode="train")


def assert_exact_resume(name: str, **arguments: Any) -> None:
    """Assert that an optimiser's state goes through a checkpoint: the continued one gives the same weights."""

    def network() -> TrainedNetwork:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.Conv2d(6, 3, 3))
        if name == "Muon" and "safmn" not in find_optimizer(name).__module__:
            pytest.skip("torch's Muon takes matrices only")
        return TrainedNetwork(
            layers, Execution(torch.device("cpu")), Ranks(), optimizer={"type": name, "lr": 1e-2, **arguments},
            schedule=lambda iteration, base: base / iteration,
        )  # fmt: skip

    def step(trained: TrainedNetwork, iteration: int) -> None:
        torch.manual_seed(iteration)
        trained.set_learning_rate(iteration)
        for image in trained.micro_batches([torch.rand(1, 3, 8, 8)], parts=1):
            trained.backward({"l1": trained.forward(image).square().mean()})
        trained.update()

    one, other = network(), network()
    before = one.bare[0].weight.detach().clone()  # type: ignore[index, operator]
    step(one, 1)
    step(one, 2)
    document, tensors = state_format.split(one.state())
    document = json.loads(json.dumps(document))
    other.load_state(state_format.join(document, {name: tensor.clone() for name, tensor in tensors.items()}))
    for trained in (one, other):
        step(trained, 3)
    assert all(torch.equal(*pair) for pair in zip(one.bare.parameters(), other.bare.parameters(), strict=True))
    assert not torch.equal(before, one.bare[0].weight)  # type: ignore[index, arg-type]


@pytest.mark.parametrize("name", [name for name in known_optimizers() if name in dir(torch.optim)])
def test_every_optimiser_of_torch_trains_and_resumes(name: str) -> None:
    assert_exact_resume(name)


@pytest.mark.parametrize(("name", "lr"), [("Lion", 1e-3), ("Prodigy", 1.0), ("Adan", 1e-3), ("DAdaptAdam", 1.0)])
def test_optimisers_of_pytorch_optimizer_train_and_resume(name: str, lr: float) -> None:
    """Prodigy and D-Adaptation keep their estimate of the learning rate in the groups."""
    pytest.importorskip("pytorch_optimizer")
    assert_exact_resume(name, lr=lr)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LBFGS", "several times"),
        ("SparseAdam", "sparse"),
        ("Adamm", "Did you mean 'Adam"),
        ("Optimizer", "base class"),
    ],
)
def test_optimisers_that_do_not_fit_are_refused(name: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        find_optimizer(name)


def test_optimisers_of_pytorch_optimizer(tmp_path: Path) -> None:
    """They keep their own state in the groups, which is restored; schedule-free ones are refused."""
    package = pytest.importorskip("pytorch_optimizer")
    assert find_optimizer("Lion") is package.Lion
    with pytest.raises(OptionError, match="schedule-free"):
        find_optimizer("ScheduleFreeAdamW")
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = build_optimizer({"type": "Prodigy", "lr": 1.0}, [weight])
    weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert not torch.equal(weight, torch.ones(3, 3))
    section: dict[str, Any] = {"type": "Lion", "lr": 1e-3, "betas": [0.9]}
    with pytest.raises(OptionError, match="Lion cannot be built"):
        build_optimizer(section, [weight])


def test_names_of_the_package_cannot_be_taken() -> None:
    def CosineAnnealingRestartLR() -> None: ...

    with pytest.raises(OptionError, match=r"CosineAnnealingRestartLR.*another name"):
        SCHEDULE_REGISTRY.register(CosineAnnealingRestartLR)
    with pytest.raises(OptionError, match=r"Muon.*another name"):
        OPTIMIZER_REGISTRY.register(type("Muon", (), {}))

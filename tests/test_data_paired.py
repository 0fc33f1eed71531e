"""Paired and single image data sets: equal to BasicSR's, aligned crops, and a clear message for every mistake."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from data_helpers import SIZES, make_folders, make_lmdb, paired_section

from safmn.data import SampleKey, build_dataset, sample_rng
from safmn.data.sources import LmdbReader, Pair, check_sizes, pairs_from_meta_info
from safmn.errors import DataError, OptionError
from safmn.imaging import write_image
from safmn.registry import find


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return make_folders(tmp_path)


@pytest.mark.parametrize("more", [{}, {"color": "y"}, {"mean": [0.4, 0.5, 0.6], "std": [0.5, 0.4, 0.3]}])
def test_validation_images_equal_basicsr(benchmark_dir: Path, more: dict[str, Any]) -> None:
    section = {
        **paired_section(benchmark_dir / "Set5" / "HR", benchmark_dir / "Set5" / "LR_bicubic" / "X3"),
        "filename_tmpl": "{}x3",
        **more,
    }
    ours = build_dataset(section, phase="val", scale=3)
    assert type(ours).__module__.startswith("safmn")
    theirs = DATASET_REGISTRY.get("PairedImageDataset")({**copy.deepcopy(section), "phase": "val", "scale": 3})
    by_path = {paths["gt_path"]: index for index, paths in enumerate(theirs.paths)}
    assert len(ours) == len(by_path) == 5
    for index in range(5):
        sample = ours[index]
        expected = theirs[by_path[sample["gt_path"]]]
        assert sample["lq_path"] == expected["lq_path"]
        for side in ("lq", "gt"):
            assert sample[side].dtype == torch.float32
            if more.get("color") == "y":  # the order of summation differs
                torch.testing.assert_close(sample[side], expected[side], rtol=0, atol=1e-7)
            else:
                assert torch.equal(sample[side], expected[side])


def test_single_images_equal_basicsr(benchmark_dir: Path) -> None:
    section = {
        "name": "set",
        "type": "SingleImageDataset",
        "dataroot_lq": str(benchmark_dir / "Set5" / "LR_bicubic" / "X2"),
        "io_backend": {"type": "disk"},
    }
    ours = build_dataset(section, phase="test", scale=2)
    theirs = DATASET_REGISTRY.get("SingleImageDataset")(copy.deepcopy(section))
    assert len(ours) == 5
    for index in range(5):
        assert ours[index]["lq_path"] == theirs[index]["lq_path"]
        assert torch.equal(ours[index]["lq"], theirs[index]["lq"])


def test_crops_of_gt_and_lq_show_the_same_place(folders: tuple[Path, Path]) -> None:
    dataset = build_dataset(paired_section(*folders), phase="train", scale=2)
    seen = set()
    for index in range(60):
        sample = dataset.sample(index % len(dataset), sample_rng(0, SampleKey(0, index)))
        lq, gt = ((sample[side] * 255).round().int() for side in ("lq", "gt"))
        assert lq.shape == (3, 16, 16)
        assert torch.equal(gt, lq.repeat_interleave(2, 1).repeat_interleave(2, 2))
        rows, columns = lq[0], lq[1]
        height, width = SIZES[int(lq[2, 0, 0])]
        assert rows.max() < height
        assert columns.max() < width
        steps = tuple(int(step) for step in (rows[1, 0] - rows[0, 0], rows[0, 1] - rows[0, 0]))
        signs = tuple(int(step) for step in (columns[1, 0] - columns[0, 0], columns[0, 1] - columns[0, 0]))
        assert {tuple(map(abs, steps)), tuple(map(abs, signs))} == {(1, 0), (0, 1)}
        seen.add((steps, signs))
    assert len(seen) == 8  # every flip and rotation


def test_use_hflip_and_use_rot_false_switch_augmentation_off(folders: tuple[Path, Path]) -> None:
    dataset = build_dataset(paired_section(*folders, use_hflip=False, use_rot=False), phase="train", scale=2)
    for index in range(20):
        lq = (dataset.sample(0, sample_rng(0, SampleKey(0, index)))["lq"] * 255).round().int()
        assert (lq[0, 1, 0] - lq[0, 0, 0], lq[1, 0, 1] - lq[1, 0, 0]) == (1, 1)


def test_images_are_ordered_by_name_without_ending(folders: tuple[Path, Path], tmp_path: Path) -> None:
    hr, lr = folders
    disk = build_dataset(paired_section(hr, lr), phase="val", scale=2)
    assert [Path(pair.gt).stem for pair in disk.pairs] == ["a", "a_long.name", "b", "b-1", "c"]
    lmdbs = {"dataroot_gt": str(make_lmdb(hr, tmp_path / "h.lmdb")), "io_backend": {"type": "lmdb"}}
    for name, ending in (("same", "x2"), ("templated", "")):
        lq = str(make_lmdb(lr, tmp_path / f"{name}.lmdb", ending))
        section = paired_section(hr, lr, **lmdbs, dataroot_lq=lq)
        lmdb = build_dataset(section, phase="val", scale=2)
        assert [pair.gt for pair in lmdb.pairs] == ["a", "a_long.name", "b", "b-1", "c"]
        for index in range(5):
            assert torch.equal(lmdb[index]["gt"], disk[index]["gt"])
            assert torch.equal(lmdb[index]["lq"], disk[index]["lq"])


def test_meta_info_sets_choice_and_order_of_images(folders: tuple[Path, Path], tmp_path: Path) -> None:
    meta = tmp_path / "meta.txt"
    meta.write_text("b.png (96,72,3)\na.png (72,72,3)\n\n")
    dataset = build_dataset(paired_section(*folders, meta_info_file=str(meta)), phase="val", scale=2)
    assert [Path(pair.lq).name for pair in dataset.pairs] == ["bx2.png", "ax2.png"]
    single = {"type": "SingleImageDataset", "dataroot_lq": str(folders[0]), "meta_info_file": str(meta)}
    assert len(build_dataset(single, phase="test", scale=2)) == 2
    meta.write_text("b.png (96,72,3)\nnone.png (72,72,3)\n")
    for section in (paired_section(*folders, meta_info_file=str(meta)), single):
        with pytest.raises(DataError, match=r"none\.png"):
            build_dataset(section, phase="val", scale=2)
    (tmp_path / "outside.png").write_bytes(b"x")
    for outside in (f"{tmp_path}/outside.png", "../outside.png", "x/../../outside.png"):
        meta.write_text(f"b.png (96,72,3)\n{outside} (72,72,3)\n")
        for section in (paired_section(*folders, meta_info_file=str(meta)), single):
            with pytest.raises(DataError, match=r"meta\.txt lists .*outside\.png.*below the folder"):
                build_dataset(section, phase="val", scale=2)
    with meta.open("r+b") as file:
        file.truncate(2**33)  # a sparse file, which takes no disk space
    with pytest.raises(DataError, match="not a list of images"):
        build_dataset(single, phase="test", scale=2)
    with pytest.raises(DataError, match=r"no such meta_info_file.*other\.txt"):
        build_dataset(paired_section(*folders, meta_info_file="other.txt"), phase="val", scale=2)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("a.png", "a.png"),
        ("a b.png (480,480,3)", "a b.png"),
        ("a.png (480,480,3) 1", "a.png"),
        ("a.png (480, 480)", "a.png"),
        ("photo (1).png (8,9,3)", "photo (1).png"),
        ("photo (1).png", "photo (1).png"),
        ("photo (1,2).png", "photo (1,2).png"),
        ("a (4,4,3) b.png (8,9,3) 1", "a (4,4,3) b.png"),
    ],
)
def test_names_in_meta_info(folders: tuple[Path, Path], tmp_path: Path, line: str, name: str) -> None:
    hr = tmp_path / "hr"
    hr.mkdir()
    shutil.copy(folders[0] / "a.png", hr / name)
    (tmp_path / "meta.txt").write_text(f"{line}\n")
    single = {"type": "SingleImageDataset", "dataroot_lq": str(hr), "meta_info_file": str(tmp_path / "meta.txt")}
    assert len(build_dataset(single, phase="test", scale=2)) == 1


def test_an_lq_image_of_two_gt_images_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    hr, lr = folders
    image = np.random.default_rng(0).integers(0, 256, (72, 72, 3), np.uint8)
    write_image(hr / "a.jpg", image)
    with pytest.raises(DataError, match=r"ax2\.png .*two GT images .* a\.(jpg|png) and a\.(jpg|png)"):
        build_dataset(paired_section(hr, lr), phase="val", scale=2)
    for part in ("p", "q"):
        write_image(hr / part / "1.png", image)
        write_image(lr / part / "1x2.png", image[::2, ::2])
    meta = tmp_path / "meta.txt"
    meta.write_text("\ufeffp/1.png (72,72,3)\nq/1.png (72,72,3)\n", encoding="utf-8")
    dataset = build_dataset(paired_section(hr, lr, meta_info_file=str(meta)), phase="val", scale=2)
    assert [Path(pair.lq).parent.name for pair in dataset.pairs] == ["p", "q"]


def test_images_may_differ_in_format(folders: tuple[Path, Path]) -> None:
    hr, lr = folders
    image = cv2.imread(str(hr / "c.png"))
    (hr / "c.png").unlink()
    cv2.imwrite(str(hr / "c.webp"), image, [cv2.IMWRITE_WEBP_QUALITY, 101])
    dataset = build_dataset(paired_section(hr, lr), phase="val", scale=2)
    assert Path(dataset.pairs[4].gt).name == "c.webp"
    assert torch.equal(dataset[4]["gt"], dataset[4]["lq"].repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_gt_may_exceed_a_multiple_of_lq(folders: tuple[Path, Path]) -> None:
    hr, lr = folders
    image = cv2.imread(str(hr / "a.png"))
    write_image(hr / "a.png", np.pad(image[..., ::-1], ((0, 1), (0, 1), (0, 0))))
    assert build_dataset(paired_section(hr, lr), phase="val", scale=2)[0]["gt"].shape == (3, 72, 72)


@pytest.mark.parametrize(
    ("gt", "training", "testing"),
    [
        ((24, 24), True, True),
        ((25, 25), True, True),
        ((26, 24), False, True),  # 26 cropped to a multiple of 12 is 24
        ((35, 35), False, True),
        ((36, 24), False, False),
        ((35, 23), False, False),
        ((24, 22), False, False),
    ],
)
def test_sizes_that_do_not_fit(gt: tuple[int, int], training: bool, testing: bool) -> None:
    arguments = (np.zeros((*gt, 3)), np.zeros((12, 12, 3)), 2, Pair("the_gt.png", "the_lq.png"))
    for fits, phase in ((training, True), (testing, False)):
        if fits:
            check_sizes(*arguments, training=phase)
        else:
            with pytest.raises(DataError, match=r"scale 2.*the_gt\.png is .*the_lq\.png is 12x12"):
                check_sizes(*arguments, training=phase)


def test_training_refuses_an_lq_image_with_missing_rows(folders: tuple[Path, Path]) -> None:
    hr, lr = folders
    image = cv2.imread(str(lr / "ax2.png"))
    write_image(lr / "ax2.png", image[2:, :, ::-1])
    dataset = build_dataset(paired_section(hr, lr), phase="train", scale=2)
    with pytest.raises(DataError, match=r"a\.png is 72x72.*ax2\.png is 36x34"):
        dataset.sample(0, np.random.default_rng(0))


def test_the_smallest_patch_can_be_flipped(folders: tuple[Path, Path]) -> None:
    dataset = build_dataset(paired_section(*folders, gt_size=2), phase="train", scale=2)
    for index in range(20):
        sample = dataset.sample(0, np.random.default_rng(index))
        assert torch.equal(sample["gt"], sample["lq"].expand(3, 2, 2))


@pytest.mark.parametrize("template", ["{", "{} {}", "{0}{1}", "{:d}", "}{", "{0!z}", "{x}", "x2"])
def test_a_template_without_exactly_one_plain_field_is_refused(folders: tuple[Path, Path], template: str) -> None:
    with pytest.raises(DataError, match=r"'set': filename_tmpl: .*\{\} once"):
        build_dataset(paired_section(*folders, filename_tmpl=template), phase="train", scale=2)


def test_a_meta_info_file_that_is_not_utf8_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    meta = tmp_path / "meta.txt"
    meta.write_bytes("café.png (480,480,3)\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"meta\.txt is not UTF-8 text \(byte 3\)"):
        build_dataset(paired_section(*folders, meta_info_file=str(meta)), phase="train", scale=2)


@pytest.mark.parametrize("damage", ["noise", "empty", "flipped", "cut to a page", "cut in half", "listing"])
def test_a_damaged_lmdb_is_named(folders: tuple[Path, Path], tmp_path: Path, damage: str) -> None:
    folder = make_lmdb(folders[0], tmp_path / "damaged.lmdb")
    data = (folder / "data.mdb").read_bytes()
    if damage == "listing":
        (folder / "meta_info.txt").write_bytes(b"\xff\xfe\x00")
    else:
        damaged = {
            "noise": np.random.default_rng(0).bytes(8192),
            "empty": b"",
            "flipped": data[:8192] + bytes(byte ^ 0xFF for byte in data[8192:]),
            "cut to a page": data[:8192],
            "cut in half": data[: len(data) // 2],
        }
        (folder / "data.mdb").write_bytes(damaged[damage])
    section = {"type": "SingleImageDataset", "dataroot_lq": str(folder), "io_backend": {"type": "lmdb"}}
    with pytest.raises(DataError, match=r"damaged\.lmdb.*(make it again|safmn prepare lmdb)"):
        list(build_dataset(section, phase="test", scale=2))


def test_mistakes_in_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    hr, lr = folders

    def refused(match: str, **more: Any) -> None:
        with pytest.raises(DataError, match=match) as raised:
            build_dataset(paired_section(hr, lr, **more), phase="train", scale=2)
        assert "'set'" in str(raised.value)

    refused("no_such_place", dataroot_gt=str(tmp_path / "no_such_place"))
    refused("no_such_place", dataroot_lq=str(tmp_path / "no_such_place"))
    (tmp_path / "empty").mkdir()
    refused("empty", dataroot_lq=str(tmp_path / "empty"))
    refused(r"5 of the 5.*a\.png.*and 2 more.*filename_tmpl", filename_tmpl="{}")
    refused(r"data\.mdb is missing", io_backend={"type": "lmdb"})
    shutil.copy(lr / "ax2.png", lr / "zx2.png")
    refused(r"without a GT image: zx2\.png")
    (lr / "zx2.png").unlink()
    (lr / "ax2.png").unlink()
    refused(r"1 of the 5.*ax2\.png")


def test_mistakes_in_lmdb(folders: tuple[Path, Path], tmp_path: Path) -> None:
    hr, lr = folders
    full = make_lmdb(hr, tmp_path / "full.lmdb")
    (hr / "a.png").unlink()
    less = make_lmdb(hr, tmp_path / "less.lmdb")
    backend = {"io_backend": {"type": "lmdb"}, "filename_tmpl": "{}"}
    for gt, lq, match in ((full, less, "lacks 1.*: a$"), (less, full, "1 images without.*: a$")):
        with pytest.raises(DataError, match=match):
            build_dataset(
                paired_section(hr, lr, dataroot_gt=str(gt), dataroot_lq=str(lq), **backend), phase="val", scale=2
            )
    with open(less / "meta_info.txt", "a", encoding="utf-8") as meta:
        meta.write("listed_only.png (1,1,3) 1\n")
    section = {"type": "SingleImageDataset", "dataroot_lq": str(less), "io_backend": {"type": "lmdb"}}
    with pytest.raises(DataError, match="listed_only"):
        list(build_dataset(section, phase="test", scale=2))


def test_mistakes_in_images(folders: tuple[Path, Path]) -> None:
    hr, lr = folders
    dataset = build_dataset(paired_section(hr, lr), phase="val", scale=4)
    with pytest.raises(DataError, match=r"scale 4.*a\.png is 72x72.*ax2\.png is 36x36"):
        dataset[0]
    large = build_dataset(paired_section(hr, lr, gt_size=76), phase="train", scale=2)
    with pytest.raises(DataError, match=r"ax2\.png is 36x36.*38x38.*gt_size"):
        large.sample(0, np.random.default_rng(0))
    (hr / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"HR.a\.png"):
        dataset[0]


def test_mistakes_in_options(folders: tuple[Path, Path]) -> None:
    def refused(match: str, phase: str = "train", **more: Any) -> None:
        section = {key: value for key, value in paired_section(*folders, **more).items() if value is not ...}
        with pytest.raises(OptionError, match=match):
            build_dataset(section, phase=phase, scale=2)

    refused("'set'.*gt_size.*needed", gt_size=None)
    refused("gt_size 33 .*multiple of scale 2", gt_size=33)
    refused("'set'.*`int.*`str`.*gt_size", gt_size="large")
    refused("missing key `dataroot_gt`", dataroot_gt=...)
    refused("tape", io_backend={"type": "tape"})
    refused("Did you mean 'PairedImageDataset'", type="PairedImageDatset")
    refused("dataroot_lq", type="SingleImageDataset", dataroot_lq=...)


def test_mistakes_in_basicsr_data_sets_are_option_errors(folders: tuple[Path, Path]) -> None:
    section = {"name": "set", "type": "FFHQDataset", "dataroot_gt": str(folders[0])}
    with pytest.raises(OptionError, match=r"'set'.*FFHQDataset.*io_backend"):
        build_dataset(section, phase="train", scale=2)


def test_sections_are_not_modified(folders: tuple[Path, Path]) -> None:
    for kind in ("PairedImageDataset", "RealESRGANPairedDataset"):  # the second, BasicSR's, pops and adds keys
        section = paired_section(*folders, type=kind)
        before = copy.deepcopy(section)
        build_dataset(section, phase="val", scale=2)[0]
        assert section == before


def test_data_sets_can_be_pickled_after_use(folders: tuple[Path, Path], tmp_path: Path) -> None:
    hr, _ = folders
    section = {"type": "SingleImageDataset", "dataroot_lq": str(make_lmdb(hr, tmp_path / "x.lmdb"))}
    dataset = build_dataset({**section, "io_backend": {"type": "lmdb"}}, phase="test", scale=2)
    expected = dataset[0]["lq"]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0]["lq"], expected)


def test_our_data_sets_take_precedence_over_those_of_basicsr() -> None:
    for name in ("PairedImageDataset", "SingleImageDataset", "PatchStore"):
        assert find(DATASET_REGISTRY, name).__module__.startswith("safmn.data")
    assert find(DATASET_REGISTRY, "FFHQDataset").__module__.startswith("basicsr")


def test_listed_images_in_subfolders_have_their_lq_images_in_the_same_subfolders(tmp_path: Path) -> None:
    for folder, value in (("s1", 10), ("s2", 20)):
        write_image(tmp_path / "G" / folder / "a.png", np.full((8, 8, 3), value, np.uint8))
        write_image(tmp_path / "L" / folder / "a.bmp", np.full((4, 4, 3), value, np.uint8))
    (tmp_path / "list.txt").write_text("s1/a.png (8,8,3)\ns2/a.png (8,8,3)\n")
    folders = [str(tmp_path / name) for name in ("G", "L", "list.txt")]
    expected = [str(tmp_path / "L" / folder / "a.bmp") for folder in ("s1", "s2")]
    assert [pair.lq for pair in pairs_from_meta_info(*folders)] == expected
    write_image(tmp_path / "L" / "a.png", np.zeros((4, 4, 3), np.uint8))  # belongs to neither GT image
    assert [pair.lq for pair in pairs_from_meta_info(*folders)] == expected
    with pytest.raises(DataError, match="no such folder"):
        pairs_from_meta_info(folders[0], str(tmp_path / "nowhere"), folders[2])


def test_an_lmdb_with_an_impossible_header_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The lmdb library divides by the page size, so a page size of 0 would end the process."""
    folder = make_lmdb(folders[0], tmp_path / "odd.lmdb")
    content = (folder / "data.mdb").read_bytes()
    for place, value in ((40, 0), (40, 3), (40, 2**31), (16, 0), (20, 9)):
        changed = bytearray(content)
        changed[place : place + 4] = value.to_bytes(4, "little")
        (folder / "data.mdb").write_bytes(changed)
        with pytest.raises(DataError, match=r"odd\.lmdb/data\.mdb is damaged"):
            LmdbReader(folder).read("a")
    (folder / "data.mdb").write_bytes(content)
    assert LmdbReader(folder).read("a").ndim == 3


def test_several_folders_are_read_one_after_the_other(folders: tuple[Path, Path], tmp_path: Path) -> None:
    hr, lr = folders
    more = make_folders(tmp_path / "more", sizes=SIZES[:2])
    lists = paired_section([hr, more[0]], [lr, more[1]])  # type: ignore[arg-type]
    lists |= {"dataroot_gt": [str(hr), str(more[0])], "dataroot_lq": [str(lr), str(more[1])]}
    dataset = build_dataset(lists, phase="train", scale=2)
    assert [pair.gt for pair in dataset.pairs] == [
        *(pair.gt for pair in build_dataset(paired_section(hr, lr), phase="train", scale=2).pairs),
        *(pair.gt for pair in build_dataset(paired_section(*more), phase="train", scale=2).pairs),
    ]
    made = build_dataset({**lists, "dataroot_lq": None, "filename_tmpl": "{}"}, phase="train", scale=2)
    assert len(made) == len(dataset) == len(SIZES) + 2
    for keys, words in (
        ({"dataroot_lq": [str(lr)]}, "must be lists of equally many folders"),
        ({"dataroot_lq": str(lr)}, "must be lists of equally many folders"),
        ({"meta_info_file": "list.txt"}, "work with io_backend disk and without meta_info_file"),
        ({"io_backend": {"type": "lmdb"}}, "work with io_backend disk and without meta_info_file"),
    ):
        with pytest.raises(OptionError, match=words):
            build_dataset({**lists, **keys}, phase="train", scale=2)
    with pytest.raises(DataError, match="nowhere"):
        build_dataset({**lists, "dataroot_gt": [str(hr), str(tmp_path / "nowhere")]}, phase="train", scale=2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_small_images_are_enlarged_where_the_file_asks_for_it(dtype: type, tmp_path: Path) -> None:
    """HAT does this for ImageNet. The result is OpenCV's bilinear interpolation, and its bicubic reduction."""
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (21, 50, 3)).astype(dtype)
    write_image(tmp_path / "HR" / "small.png", image)
    section = paired_section(tmp_path / "HR", tmp_path, dataroot_lq=None, filename_tmpl="{}")
    section |= {"use_hflip": False, "use_rot": False}
    refusing = build_dataset(section, phase="train", scale=2)
    with pytest.raises(DataError, match="smaller than the 16x16 crop"):
        refusing.sample(0, sample_rng(0, SampleKey(0, 0)))
    dataset = build_dataset({**section, "lq": {"enlarge": True}}, phase="train", scale=2)
    sample = dataset.sample(0, sample_rng(0, SampleKey(0, 0)))
    assert (sample["gt"].shape, sample["lq"].shape) == ((3, 32, 32), (3, 16, 16))
    large = cv2.resize(image[:20], (50, 32), interpolation=cv2.INTER_LINEAR) / np.iinfo(dtype).max
    found = [
        left
        for left in range(0, 20, 2)
        if np.allclose(sample["gt"].permute(1, 2, 0).numpy(), large[:, left : left + 32], atol=1e-6)
    ]
    assert len(found) == 1
    assert dataset[0]["gt"].shape == (3, 20, 50)  # whole images, for validation, stay as they are

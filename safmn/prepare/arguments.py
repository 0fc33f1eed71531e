"""The arguments of ``safmn prepare <verb>``. This module imports no more than that: mistakes are answered at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from safmn.system.console import ArgumentParser

DATA_SETS = {
    "df2k": "DIV2K and Flickr2K, 3450 HR images for training (24 GB to download)",
    "div2k": "800 HR images for training (3.5 GB)",
    "flickr2k": "2650 HR images for training (20 GB)",
    "div2k-val": "the 100 validation images of DIV2K, HR and LR x2, x3, x4 (0.7 GB)",
    "benchmark": "Set5, Set14, B100 and Urban100, HR and LR (0.25 GB)",
}
"""What can be downloaded, with a description."""
SIDE, STEP, THRESH = 480, 240, 0
"""How sub-images are cut, as published: see :class:`safmn.prepare.subimages.SubimageCut`."""


def download() -> argparse.ArgumentParser:
    """Return the parser of ``safmn prepare download``."""
    sets = "\n".join(f"  {name:10s} {about}" for name, about in DATA_SETS.items())
    parser = ArgumentParser(
        prog="safmn prepare download",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Download data sets from their official hosts into the layout of datasets/README.md:\n\n"
        f"{sets}\n\nExisting files are not downloaded again; an interrupted download resumes where it stopped.",
    )
    parser.add_argument(
        "sets", nargs="+", choices=DATA_SETS, metavar="SET", help=f"one or more of {', '.join(DATA_SETS)}"
    )
    parser.add_argument("--root", type=Path, default=Path("datasets"), metavar="DIR", help="default: datasets")
    parser.add_argument("--keep", action="store_true", help="keep the archives in DIR/downloads")
    return parser


def lr() -> argparse.ArgumentParser:
    """Return the parser of ``safmn prepare lr``."""
    parser = ArgumentParser(
        prog="safmn prepare lr",
        description="Make LR images from HR images with MATLAB's bicubic, bit for bit, in the layout "
        "LR_bicubic/X4/namex4.png. A second run makes only images that are missing, damaged or older than their HR "
        "image.",
    )
    parser.add_argument("--hr", type=Path, required=True, metavar="DIR", help="folder of HR images")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="output folder (default: LR_bicubic beside the HR folder)"
    )
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 3, 4], metavar="S", help="default: 2 3 4")
    parser.add_argument(
        "--border",
        choices=["symmetric", "replicate"],
        default="symmetric",
        help="replicate: like MATLAB before about 2015 (BSD100 of SelfExSR)",
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="images at a time (default: all cores)")
    return parser


def subimages() -> argparse.ArgumentParser:
    """Return the parser of ``safmn prepare subimages``."""
    parser = ArgumentParser(
        prog="safmn prepare subimages",
        description="Cut HR images (and, with --scales, their LR images) into overlapping squares, HR_sub and "
        "LR_bicubic_sub/X<s>, with equal names. A second run makes only squares that are missing or damaged.",
    )
    parser.add_argument("--hr", type=Path, required=True, metavar="DIR", help="folder of HR images")
    parser.add_argument(
        "--scales", type=int, nargs="+", default=[], metavar="S", help="cut the LR images of these scales"
    )
    parser.add_argument(
        "--lr", type=Path, metavar="DIR", help="folder with X2, X3, ... (default: LR_bicubic beside --hr)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: the HR folder's name + _sub")
    parser.add_argument("--lr-output", type=Path, metavar="DIR", help="default: the LR folder's name + _sub")
    parser.add_argument("--crop", type=int, default=SIDE, metavar="N", help="side of a square in HR (default: 480)")
    parser.add_argument("--step", type=int, default=STEP, metavar="N", help="distance of squares (default: 240)")
    parser.add_argument(
        "--thresh", type=int, default=THRESH, metavar="N", help="drop a remainder of up to N pixels (default: 0)"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="images at a time (default: all cores)")
    return parser


def meta() -> argparse.ArgumentParser:
    """Return the parser of ``safmn prepare meta``."""
    parser = ArgumentParser(
        prog="safmn prepare meta",
        description="Write a meta-info file with a line 'name.png (height,width,channels)' for each image of a folder, "
        "for the option meta_info_file (paired sets) or meta_info (real-world training).",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of images")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: meta_info_<DIR>.txt beside the folder"
    )
    parser.add_argument("--recursive", action="store_true", help="include the images in subfolders")
    parser.add_argument("--jobs", type=int, metavar="N", help="images at a time (default: all cores)")
    return parser


def lmdb() -> argparse.ArgumentParser:
    """Return the parser of ``safmn prepare lmdb``."""
    parser = ArgumentParser(
        prog="safmn prepare lmdb",
        description="Put the images of a folder into one lmdb database in BasicSR's format (io_backend: type: lmdb). "
        "Run the command again to resume a stopped build.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of images")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: <DIR>.lmdb beside the folder")
    parser.add_argument(
        "--drop",
        default="",
        metavar="ENDING",
        help="remove this ending from the keys, e.g. x4: BasicSR needs equal keys for HR and LR",
    )
    parser.add_argument("--compression", type=int, default=1, choices=range(10), metavar="0..9", help="default: 1")
    parser.add_argument("--jobs", type=int, metavar="N", help="images at a time (default: all cores)")
    parser.add_argument("--restart", action="store_true", help="first delete an unfinished build")
    return parser


def store() -> argparse.ArgumentParser:
    """Return the parser of ``safmn prepare store``."""
    parser = ArgumentParser(
        prog="safmn prepare store",
        description="Decode HR and LR images into one file for data sets of type PatchStore, or only HR images for "
        "RealESRGANDataset. Use full images: the store makes sub-images unnecessary. Run the command again to resume a "
        "stopped build; a store that is up to date is kept.",
    )
    parser.add_argument("--hr", type=Path, metavar="DIR", help="folder of HR (GT) images")
    parser.add_argument(
        "--lr", type=Path, metavar="DIR", help="folder of LR images (default: made with MATLAB's bicubic)"
    )
    parser.add_argument("--filename-tmpl", default="{}", metavar="T", help="name of the LR image of HR image {}")
    parser.add_argument(
        "--meta-info", type=Path, metavar="FILE", help="use the images that this file lists, in its order"
    )
    parser.add_argument("--scale", type=int, metavar="S", help="HR size / LR size")
    parser.add_argument("--gt-only", action="store_true", help="store only HR images, for training that degrades them")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the store to make")
    parser.add_argument("--jobs", type=int, metavar="N", help="threads (default: all cores)")
    parser.add_argument("--verify", type=Path, metavar="FILE", help="instead: check all pixels of a store")
    return parser


def samples() -> argparse.ArgumentParser:
    """Return the parser of ``safmn prepare samples``."""
    parser = ArgumentParser(
        prog="safmn prepare samples",
        description="Write a contact sheet of the GT patches that training would see, with crops, flips and drawings: "
        "those of an option file, or drawings of the given kinds.",
    )
    parser.add_argument("-opt", "--opt", metavar="FILE", help="training option file")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="A:B=C", help="override options of the file")
    parser.add_argument(
        "--tolerant", action="store_true", help="warn about unknown keys of the file instead of refusing it"
    )
    parser.add_argument(
        "--kinds", nargs="+", metavar="KIND", help="instead: these kinds of drawings, one row each; all: every kind"
    )
    parser.add_argument("--side", type=int, default=192, metavar="N", help="of a drawing, with --kinds; default: 192")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the contact sheet (.png)")
    parser.add_argument(
        "--grid", default="8x5", metavar="8x5", help="columns x rows; with --kinds only the columns count"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="default: the option file's manual_seed, or 0")
    parser.add_argument("--epoch", type=int, default=0, metavar="E", help="default: 0")
    return parser


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "download": download,
    "lr": lr,
    "subimages": subimages,
    "meta": meta,
    "lmdb": lmdb,
    "store": store,
    "samples": samples,
}
"""The parser of each verb."""

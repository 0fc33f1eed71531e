"""``safmn options``: list the option files that come with the package, or print one to edit.

``safmn options`` lists them with a line each, ``safmn options peers`` those of other networks. ``safmn options train_x4
> my.yml`` gives one to edit. ``-opt`` of the other commands takes a name of these lists or a file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from safmn.errors import OptionError, did_you_mean, exit_status
from safmn.system.console import ArgumentParser, say


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="safmn options", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this file; peers: list those of other networks")
    return parser


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """List the option files or print one; return the exit status."""
    name = _parser().parse_args(argv).name
    from safmn.options.shipped import PEERS, content, description, peer_files, shipped_files

    files = shipped_files()
    if name == PEERS:
        files = peer_files()
    elif name is not None:
        files |= peer_files()
        stem = name.removesuffix(".yml")
        if stem not in files:
            near = did_you_mean(stem, files)
            raise OptionError(f"no option file is named {name!r}.{near} `safmn options` lists them.")
        sys.stdout.write(content(files[stem]))
        return 0
    width = max(map(len, files))
    for file, path in files.items():
        say(f"{file:{width}}  {description(path)}")
    if name is None:
        say(f"\nRecipes of {len(peer_files())} more networks and scales: safmn options {PEERS}")
    say("\nPrint one to edit it: safmn options train_x4 > my.yml. Use one as it is: safmn train -opt train_x4")
    return 0

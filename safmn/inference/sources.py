"""The network that a command works with: weights alone (``--weights``), or an option file (``-opt``)."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safmn.errors import OptionError, located

if TYPE_CHECKING:
    import torch
    from torch import nn

    from safmn.options import Options

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Add ``--weights``, ``-opt``, ``--force_yml`` and ``--imports``.

    Args:
        default: name of the weights to use if neither is given, for the help text.
    """
    group = parser.add_argument_group("the network")
    otherwise = f" (default: {default})" if default else ""
    group.add_argument(
        "--weights",
        metavar="W",
        help=f".pth or .safetensors file, or a name from `safmn zoo`{otherwise}; with -opt: the weights of its network",
    )
    group.add_argument(
        "-opt",
        metavar="FILE",
        help="option file (YAML): its network_g, with the weights of its run, or those of path.pretrain_network_g",
    )
    group.add_argument("--force_yml", nargs="+", default=(), metavar="A:B=C", help="with -opt: replace values")
    group.add_argument(
        "--tolerant", action="store_true", help="with -opt: warn about unknown keys instead of refusing the file"
    )
    group.add_argument(
        "--imports",
        nargs="+",
        default=(),
        metavar="FILE.py",
        help="your own code that registers the network of --weights: files or modules. It is run",
    )


def show_choices() -> None:
    """Show on stderr which of a file's weights are used, what a network's traits are, and which back end runs it."""
    for name in ("safmn.weights", "safmn.backend", __name__):
        logging.getLogger(name).setLevel(logging.INFO)


def load_named(
    weights: str | None,
    option_file: str | None = None,
    *,
    overrides: Iterable[str] = (),
    imports: Sequence[str] = (),
    device: str | torch.device = "cpu",
    scale: int | None = None,
    tolerant: bool = False,
) -> nn.Module:
    """Load the network that a command's arguments name; see :func:`add_arguments`.

    Args:
        weights, option_file, overrides, imports, tolerant: those arguments.
        device: the device of the network.
        scale: the scale that the network must have; weights that serve several need it.

    Returns:
        The network in evaluation mode, without gradients, with ``scale``, ``window`` and ``halo``.

    Raises:
        OptionError: the option file has a mistake, or there are no weights.
        WeightsError: the weights cannot be read or do not fit.
    """
    from safmn import weights as files
    from safmn.inference.choices import DEFAULT_WEIGHTS

    if option_file is None:
        source = weights or DEFAULT_WEIGHTS
        try:
            return files.load_network(source, device=device, imports=imports, scale=scale)
        except files.OtherScaleError as error:
            message = f"{source}: the network is for scale {error.found}, but --scale is {scale}"
            raise files.OtherScaleError(message, error.found) from error
    options = options_named(option_file, overrides=overrides, imports=imports, scale=scale, tolerant=tolerant)
    return network_from_options(options, weights, device=device)


def options_named(
    option_file: str,
    *,
    overrides: Iterable[str] = (),
    imports: Sequence[str] = (),
    scale: int | None = None,
    tolerant: bool = False,
    debug: bool = False,
) -> Options:
    """Load an option file for its network.

    Args:
        option_file, overrides, imports, tolerant: see :func:`add_arguments`.
        debug: see :func:`safmn.options.load_options`.
        scale: the scale that the network must have.

    Raises:
        OptionError: the option file has a mistake, or another scale.
    """
    from safmn import weights as files
    from safmn.options import load_options

    files.import_code(imports)
    options = load_options(option_file, mode="network", overrides=overrides, tolerant=tolerant, debug=debug)
    if scale not in (None, options.scale):
        raise OptionError(f"{option_file}: the network is for scale {options.scale}, but --scale is {scale}")
    return options


def network_from_options(
    options: Options, weights: str | os.PathLike[str] | None = None, *, device: str | torch.device = "cpu"
) -> nn.Module:
    """Build ``network_g`` of an option file and load its weights.

    Args:
        options: the option file, loaded in any mode.
        weights: the weights; None: see :func:`weights_of`.
        device: the device of the network.

    Returns:
        See :func:`load_named`.

    Raises:
        OptionError: there are no weights, or the network cannot be built.
        WeightsError: the weights cannot be read or do not fit.
    """
    from safmn import weights as files
    from safmn.registry import ARCH_REGISTRY, build

    with located(f"{options.source}: network_g"):
        network: nn.Module = build(ARCH_REGISTRY, options.network_g)
    source = weights if weights is not None else weights_of(options)
    if source is not None:
        files.load_into(
            network,
            source,
            param_key=options.path.param_key_g,
            strict=options.path.strict_load_g,
            section=options.network_g,
        )
    elif any(True for _ in network.parameters()):
        raise OptionError(f"{options.source}: there are no weights: give --weights, or set path.pretrain_network_g")
    origin = files.origin_of(options.network_g, scale=options.scale, train_set=options.datasets.get("train"))
    network = network.to(device).eval().requires_grad_(False)
    wrapped = files.with_interface(network, section=options.network_g, mean=origin.mean, std=origin.std)
    if int(wrapped.scale) != options.scale:  # type: ignore[arg-type]
        raise OptionError(f"{options.source}: scale is {options.scale}, but the network's is {wrapped.scale}")
    return wrapped


def weights_of(options: Options) -> str | Path | None:
    """Return the weights of an option file: for training, the newest of its run; else ``path.pretrain_network_g``.

    In debug mode, they are those of the debug run, or of the real run if there was no debug run.
    """
    latest = newest_weights(options.path.experiments_root, options.name)
    if options.debug and not latest.is_file():
        latest = newest_weights(options.path.experiments_root, options.name.removeprefix("debug_"))
    if options.train is not None and latest.is_file():
        logger.info("%s: using the newest weights of its run, %s", options.source, latest)
        return latest
    source = options.path.pretrain_network_g
    if options.train is not None and source is not None:
        logger.warning("%s: there is no %s; using path.pretrain_network_g, %s", options.source, latest, source)
    return source


def newest_weights(experiments_root: str | None, name: str) -> Path:
    """Return the path of the newest weights of a training run, whether they exist or not."""
    return Path(experiments_root or "experiments").expanduser() / name / "models" / "net_g_latest.pth"

"""Methods: everything that makes a super-resolved image and can be scored, counted, timed or compared.

A method is written as text, on the command line or from Python:

- ``bicubic``: MATLAB's bicubic enlargement;
- a weight file, or the name of weights that come with the package (``safmn-x4``);
- a network without weights, to be counted and timed: a published size (``EDSR-baseline``), or a registered network with
  its arguments (``Tiny(dim=8)``);
- an option file (``my.yml``): its network, with the newest weights of its run, or those of its
  ``path.pretrain_network_g``;
- a folder of images that other code made;
- ``LEFT=RIGHT``, where RIGHT is one of the above. If LEFT is a network (registered, or a published size such as
  ``EDSR-baseline``) or an option file, the weights of RIGHT are loaded into it; ``Tiny(dim=8)`` gives arguments.
  Otherwise LEFT is the name in tables.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from safmn import weights
from safmn.archs.peers import bare, in_form
from safmn.archs.probing import scale_of
from safmn.errors import OptionError, UserError, WeightsError, did_you_mean, located
from safmn.evaluation.sizes import Size, published_size, size_named, sizes
from safmn.inference.sources import newest_weights
from safmn.options import plugins
from safmn.options.components import check_network
from safmn.options.inheritance import inherited
from safmn.options.problems import Problems, apply_edits
from safmn.options.reader import read_document
from safmn.options.shipped import find_option_file
from safmn.registry import ARCH_REGISTRY, build, names
from safmn.weights import zoo
from safmn.weights.digest import network_digest

BICUBIC = "bicubic"


@dataclass(frozen=True)
class Method:
    """Something that makes super-resolved images.

    Attributes:
        label: name of its row in tables.
        kind: a network, a folder of images, or bicubic.
        scale: output pixels per input pixel, along each side; 0 for images, which have that of the data.
        published: name of its row in published tables; None if it has none.
        network: the network, in evaluation mode.
        section: type and arguments of the network, if they are known.
        folder: the folder of images.
        source: where the weights or images come from; None for an untrained network.
        text: the text that :func:`open_methods` opens again.
    """

    label: str
    kind: Literal["network", "images", "bicubic"]
    scale: int = 0
    published: str | None = None
    network: nn.Module | None = None
    section: Mapping[str, Any] | None = None
    folder: Path | None = None
    source: str | None = None
    text: str = ""

    @property
    def key(self) -> str:
        """Label and scale: unique among the methods that were opened together."""
        return f"{self.label} x{self.scale}"

    @property
    def trained(self) -> bool:
        """Whether it makes meaningful images."""
        return self.kind != "network" or self.source is not None

    def identity(self) -> str | None:
        """Return a text that is equal for methods that make the same images; None if there is none (images)."""
        if self.kind == "bicubic":
            return f"bicubic x{self.scale}"
        if self.network is None:
            return None
        try:
            digest = network_digest(self.network)
        except (RuntimeError, TypeError, NotImplementedError):  # tensors without plain values
            return None
        return json.dumps([digest, self.scale, dict(self.section or {})], sort_keys=True, default=str)


def import_files(names_: Iterable[str]) -> None:
    """Import a user's files and modules, as ``imports`` of an option file does, so that their networks are known.

    Raises:
        OptionError: a file is missing or raises an exception.
    """
    problems = Problems("--imports")
    data = {"imports": list(names_)}
    plugins.check_files(data, problems)
    problems.raise_all()
    plugins.import_all(data, problems)
    problems.raise_all()


def open_methods(
    texts: Sequence[str],
    *,
    scale: int | None = None,
    device: torch.device | str = "cpu",
    with_values: bool = False,
    tolerant: bool = False,
) -> list[Method]:
    """Open the methods that ``texts`` name (see the module), on a device; labels are made unique.

    Args:
        texts: the methods.
        scale: choose this scale where a file or name leaves a choice; also that of bicubic and of images. Without it,
            that of the networks, if they agree.
        device: device of the networks.
        with_values: give networks without weights random ones; otherwise they may be on the meta device.
        tolerant: warn about arguments in an option file that its network does not have, instead of refusing them.

    Raises:
        OptionError: a text names nothing, an option file has a mistake, or bicubic or images have no scale.
        WeightsError: weights cannot be read or do not fit.
    """
    how = _How(scale, torch.device(device), with_values, tolerant)
    found = [replace(_open(text, how), text=text) for text in texts]
    scales = sorted({method.scale for method in found if method.kind == "network"} if scale is None else {scale})
    result = []
    for method in found:
        if method.kind == "network":
            if scale is not None and method.scale != scale:
                raise OptionError(f"{method.text}: this network is for scale {method.scale}, but --scale is {scale}")
            result.append(method)
        elif len(scales) == 1 or (scales and method.kind == "bicubic"):
            result += [replace(method, scale=each) for each in scales]
        else:
            raise OptionError(f"{method.text}: which scale? Add --scale 2, 3 or 4")
    return _with_unique_labels(result)


def untrained(size: Size, *, with_values: bool = False) -> Method:
    """Return the network of a published size as a method, without weights; see :meth:`Size.build`."""
    network = _with_scale(in_form(size.build(with_values=with_values)), size.scale)
    section = {"type": size.type, **size.arguments}
    return Method(size.name, "network", size.scale, size.method, network, section, text=size.name)


class _How(NamedTuple):
    """How methods are opened; see :func:`open_methods`."""

    scale: int | None
    device: torch.device
    with_values: bool
    tolerant: bool


def _open(text: str, how: _How) -> Method:
    left, equals, right = _split(text)
    if not equals:
        return _plain(text, how)
    if not right:
        raise OptionError(f"{text}: give a weight file, folder or option file after '='")
    networks = _named_networks(left, how)
    if not networks or Path(right).expanduser().is_dir():  # a label; a folder holds images
        method = _plain(right, how)
        return replace(method, label=left, published=method.published or _published_as(left))
    errors: list[UserError] = []
    for label, published, section in networks:
        try:
            return _loaded(label, published, section, right, how.scale, how.device)
        except WeightsError as error:  # another scale may fit
            errors.append(error)
    raise errors[0]


def _split(text: str) -> tuple[str, str, str]:
    """Split ``LEFT=RIGHT`` at the first ``=`` outside of parentheses, unless the whole text is a file."""
    if Path(text).exists():
        return text, "", ""
    depth = 0
    for place, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "=" and depth == 0:
            return text[:place], "=", text[place + 1 :]
    return text, "", ""


def _plain(text: str, how: _How) -> Method:
    """Open a method without ``=``."""
    scale, device = how.scale, how.device
    path = Path(text).expanduser()
    if text.lower() == BICUBIC:
        return Method("Bicubic", "bicubic", scale or 0, "Bicubic", source="MATLAB's rule")
    if path.is_dir():
        return Method(path.name, "images", scale or 0, folder=path, source=str(path))
    if path.suffix in (".yml", ".yaml"):
        return _from_option_file(text, device, tolerant=how.tolerant)
    if path.is_file() or text in zoo.entries():
        network = _network_of(text, scale, device)
        return _of_network(path.stem if path.is_file() else text, network, section_of(network), text)
    size = size_named(text, scale)
    if size is not None:
        return untrained(size, with_values=how.with_values)
    if networks := _named_networks(text, how):
        return _without_weights(*networks[0])
    known = [*zoo.entries(), *dict.fromkeys(size.method for size in sizes()), BICUBIC]
    hint = did_you_mean(text, known)
    raise OptionError(
        f"{text}: no such file, folder, option file, network or weights.{hint} Networks with published sizes: "
        f"{', '.join(dict.fromkeys(size.method for size in sizes()))}; weights: {', '.join(zoo.entries())}"
    )


def _without_weights(label: str, published: str | None, section: Mapping[str, Any]) -> Method:
    """Return a registered network, with random values from seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(ARCH_REGISTRY, section)
    return _of_network(label, network, section, None, published)


def _named_networks(left: str, how: _How) -> list[tuple[str, str | None, Mapping[str, Any]]]:
    """Return label, published name and section of every network that ``left`` may name; empty if it is a label."""
    if Path(left).suffix in (".yml", ".yaml"):
        section = _described(left, how.tolerant).section
        return [(Path(left).stem, _published_name(section), section)]
    known = names(ARCH_REGISTRY)
    call = re.fullmatch(r"(\w+)\((.*)\)", left)
    if call:
        if call[1] not in known:
            raise OptionError(f"{left}: no network named {call[1]!r} is registered.{did_you_mean(call[1], known)}")
        section = {"type": call[1], **_keywords(left)}
        return [(left, _published_name(section), section)]
    found = [size for size in sizes() if left.lower() in (size.name.lower(), size.method.lower())]
    if how.scale is not None and any(size.scale == how.scale for size in found):
        found = [size for size in found if size.scale == how.scale]
    named: list[tuple[str, str | None, Mapping[str, Any]]] = [
        (size.method, size.method, {"type": size.type, **size.arguments}) for size in found
    ]
    if left in known:  # recognised from the file if possible, otherwise built with its default arguments
        named += [(left, None, {"type": left})]
    return named


def _keywords(call: str) -> dict[str, Any]:
    """Return the keyword arguments of ``Tiny(dim=8)``."""
    try:
        parsed = ast.parse(call, mode="eval").body
        if not isinstance(parsed, ast.Call) or parsed.args:
            raise ValueError
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in parsed.keywords}
    except (SyntaxError, ValueError) as error:
        raise OptionError(f"{call}: write arguments as in Tiny(dim=8, upscaling_factor=4)") from error


def _network_of(file: str, scale: int | None, device: torch.device) -> nn.Module:
    """Return the network that weights show; ``scale`` chooses where they serve several, and may be wrong otherwise."""
    try:
        return weights.load_network(file, device=device, scale=scale)
    except weights.OtherScaleError:  # open_methods says so
        return weights.load_network(file, device=device)


def _loaded(
    label: str,
    published: str | None,
    section: Mapping[str, Any],
    file: str,
    scale: int | None,
    device: torch.device,
) -> Method:
    """Load ``file`` into the network of ``section``, or, if that is just a type, into the one that the file shows."""
    if len(section) == 1:
        with contextlib.suppress(WeightsError):
            network = _network_of(file, scale, device)
            if weights.kind_of(network) == section["type"]:
                return _of_network(label, network, section_of(network), file)
    with located(label):
        network = build(ARCH_REGISTRY, section)
    weights.load_into(network, file, section=section)
    whole = weights.with_interface(network.to(device).eval(), section=section)
    return _of_network(label, whole, section, file, published)


def _from_option_file(text: str, device: torch.device, *, tolerant: bool = False) -> Method:
    described = _described(text, tolerant)
    section, file = described.section, described.weights
    with located(f"{text}: network_g"):
        network = build(ARCH_REGISTRY, section)
    if file is not None:
        with located(f"{text}: path.pretrain_network_g"):
            weights.load_into(network, file, param_key=described.key, section=section)
    origin = weights.origin_of(section, scale=0, train_set=described.train_set)
    whole = weights.with_interface(network.to(device).eval(), section=section, mean=origin.mean, std=origin.std)
    return _of_network(Path(text).stem, whole, section, file, _published_name(section))


class _Described(NamedTuple):
    """What an option file says of its network.

    Attributes:
        section: ``network_g``.
        weights: file of the weights, or None.
        key: which of the file's weights are used; None: the default.
        train_set: the section of the training set, whose normalisation the network needs.
    """

    section: dict[str, Any]
    weights: str | None
    key: str | None
    train_set: dict[str, Any]


def _described(text: str, tolerant: bool) -> _Described:
    """Read what an option file says of its network. Its ``imports`` are imported; the rest of the file is not checked.

    Raises:
        OptionError: the file cannot be read, an import fails, or there is no network.
    """
    file = find_option_file(text)
    problems = Problems(file)
    document = read_document(file, problems)
    problems.lines = document.lines
    data = inherited(document.data, file, problems)
    plugins.check_files(data, problems)
    section = data.get("network_g")
    if not isinstance(section, dict) or "type" not in section:
        problems.add(("network_g",), "expected a section with a type: the network")
    problems.raise_all()
    plugins.import_all(data, problems)
    problems.raise_all()
    assert isinstance(section, dict)
    problems.tolerant = tolerant or data.get("tolerant") is True
    check_network(section, ("network_g",), problems)
    problems.raise_all()
    problems.log_warnings()
    apply_edits(data, problems.edits)
    places, sets = _section(data, "path"), _section(data, "datasets")
    source, key = places.get("pretrain_network_g"), places.get("param_key_g")
    if data.get("train") is not None:  # then those are the weights that the run starts from
        newest = newest_weights(places.get("experiments_root"), str(data.get("name")))
        source, key = (newest, None) if newest.is_file() else (source, key)
    return _Described(section, None if source is None else str(Path(source).expanduser()), key, _section(sets, "train"))


def _section(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section of plain data; empty if it is missing or something else."""
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _of_network(
    label: str, network: nn.Module, section: Mapping[str, Any] | None, source: str | None, published: str | None = None
) -> Method:
    network = in_form(network).eval().requires_grad_(False)
    with located(label):
        scale = scale_of(network)
    name = published or (_published_name(section) if section else None)
    return Method(label, "network", scale, name, _with_scale(network, scale), section, source=source)


def _with_scale(network: nn.Module, scale: int) -> nn.Module:
    """Give a network of other people's the attribute ``scale``, which counting and timing need."""
    if getattr(network, "scale", None) != scale:
        network.scale = scale  # type: ignore[assignment]
    return network


def section_of(network: nn.Module) -> dict[str, Any] | None:
    """Return the section of a network that was recognised from its weights; None if it is not known."""
    if isinstance(network, weights.WrappedNetwork):
        return None if network.section is None else dict(network.section)
    found = weights.recognise(bare(network).state_dict(), scale=int(network.scale))  # type: ignore[arg-type]
    return {"type": found.type, **found.kwargs}


def _published_name(section: Mapping[str, Any]) -> str | None:
    size = published_size(section)
    return None if size is None else size.method


def _published_as(label: str) -> str | None:
    """Return the name in published tables that a user gave as the label, for images of a published method."""
    from safmn.evaluation.published import rows

    return next((row.network for row in rows() if row.network.lower() == label.lower()), None)


def _with_unique_labels(methods: Sequence[Method]) -> list[Method]:
    """Return the methods; of several with one label at a scale, the later ones get a number."""
    seen: dict[str, int] = {}
    result = []
    for method in methods:
        count = seen[method.key] = seen.get(method.key, 0) + 1
        result.append(method if count == 1 else replace(method, label=f"{method.label} ({count})"))
    return result

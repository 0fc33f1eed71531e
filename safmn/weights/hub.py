"""Weights on the Hugging Face hub: fetch them by ``hf:owner/name[/file][@revision]``, and publish them with a card."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safmn.errors import WeightsError, first_line
from safmn.system.extras import EXTRAS

logger = logging.getLogger(__name__)

PREFIX = "hf:"
_FORM = re.compile(r"(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?")
_ENDINGS = (".safetensors", ".pth", ".pt")
_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "requests", "urllib3")  # of the versions of huggingface_hub
_WEIGHTS = "model.safetensors"
_LICENCES = {"cc by-sa 4.0": "cc-by-sa-4.0", "cc by 4.0": "cc-by-4.0", "cc0": "cc0-1.0", "mit": "mit"}

Answer = TypeVar("Answer")


class Address(NamedTuple):
    """A repository on the hub; without ``file``, its only weight file; without ``revision``, its newest state."""

    repository: str
    file: str | None
    revision: str | None

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"{PREFIX}{self.repository}{file}{f'@{self.revision}' if self.revision else ''}"


def parse(text: str) -> Address:
    """Return the address that ``hf:owner/name[/file][@revision]`` means.

    Raises:
        WeightsError: the text has another form.
    """
    match = _FORM.fullmatch(text.removeprefix(PREFIX))
    if not text.startswith(PREFIX) or match is None:
        raise WeightsError(f"{text}: expected {PREFIX}owner/name, with /file and @revision if needed")
    return Address(f"{match['owner']}/{match['name']}", match["file"], match["revision"])


def fetch(text: str) -> Path:
    """Return the local file for an address; it is downloaded into the cache of huggingface_hub if it is not there.

    Raises:
        WeightsError: there is no such repository or file, several files fit, or the hub cannot be reached.
    """
    address, hub = parse(text), _hub()
    file = address.file or _only_weights(address, hub)
    logger.info("%s: %s from the Hugging Face hub, kept in its cache.", text, file)
    path = _asked(
        text,
        lambda: hub.hf_hub_download(address.repository, file, revision=address.revision, endpoint=_endpoint()),
    )
    return Path(path)


def _only_weights(address: Address, hub: Any) -> str:
    names = _asked(
        str(address),
        lambda: hub.HfApi(endpoint=_endpoint()).list_repo_files(address.repository, revision=address.revision),
    )
    found = sorted((name for name in names if name.endswith(_ENDINGS)), key=lambda name: not name.endswith(_ENDINGS[0]))
    safe = [name for name in found if name.endswith(_ENDINGS[0])] or found
    if len(safe) != 1:
        listed = ", ".join(found) or "none"
        raise WeightsError(
            f"{address}: name the file, as {PREFIX}{address.repository}/FILE; weight files there: {listed}"
        )
    return safe[0]


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        requirement = EXTRAS["hub"].packages["huggingface_hub"]
        raise WeightsError(f"weights of the Hugging Face hub need a package: pip install '{requirement}'") from error
    return huggingface_hub


def _asked(what: str, ask: Callable[[], Answer]) -> Answer:
    """Return the hub's answer; its errors become one sentence that says what to do."""
    from huggingface_hub import errors

    try:
        return ask()
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise WeightsError(
            f"{what}: there is no such repository, or it is private. For private ones: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{what}: the repository has no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        raise WeightsError(_unreachable(what, error)) from error
    except errors.EntryNotFoundError as error:
        raise WeightsError(f"{what}: the repository has no such file") from error
    except errors.HfHubHTTPError as error:
        raise WeightsError(f"{what}: the hub refused: {first_line(error)}. To log in: hf auth login") from error
    except (errors.HFValidationError, ValueError) as error:
        raise WeightsError(f"{what}: {first_line(error)}") from error
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _HTTP_LIBRARIES:
            raise
        raise WeightsError(_unreachable(what, error)) from error


def _unreachable(what: str, error: Exception) -> str:
    cause = error.__cause__ or error
    return (
        f"{what}: the hub cannot be reached ({type(cause).__name__}: {first_line(cause)}). Without a network, download "
        "the file elsewhere and give its path"
    )


def push(source: str, target: str, *, private: bool, licence: str | None, folder: Path | None = None) -> str:
    """Publish weights with a model card, or write what would be published into a folder.

    Args:
        source: a weight file, or the name of weights that come with the package.
        target: ``hf:owner/name``; the repository is made if it does not exist.
        private: make a new repository private.
        licence: the licence of the weights; None: that of the file's metadata.
        folder: write the files here and publish nothing.

    Returns:
        The address of the repository, or the folder.

    Raises:
        WeightsError: the file is no weight file, a licence is missing, or the hub refuses.
    """
    address = parse(target)
    if address.file is not None or address.revision is not None:
        raise WeightsError(f"{target}: publish to {PREFIX}owner/name, without file and revision")
    with tempfile.TemporaryDirectory() as made:
        place = Path(made) if folder is None else folder
        place.mkdir(parents=True, exist_ok=True)
        _write_files(source, address, place, licence)
        if folder is not None:
            return str(folder)
        api = _hub().HfApi(endpoint=_endpoint())
        _asked(target, lambda: api.create_repo(address.repository, private=private, exist_ok=True))
        answer = _asked(
            target,
            lambda: api.upload_folder(
                repo_id=address.repository, folder_path=str(place), commit_message=f"Upload {Path(source).name}"
            ),
        )
    return str(getattr(answer, "commit_url", answer))


def _write_files(source: str, address: Address, folder: Path, licence: str | None) -> None:
    from safmn.weights.files import load_state_dict, locate, metadata_of, save_weights
    from safmn.weights.recognise import recognise

    path = locate(source)
    notes = {key: _parsed(text) for key, text in metadata_of(path).items() if key != "format"}
    state = load_state_dict(path)
    if "type" not in notes:
        try:
            found = recognise(state)
        except WeightsError as error:
            logger.warning("%s: the card cannot name the network: %s", source, error)
        else:
            notes |= {"type": found.type, "arguments": found.kwargs, "scale": found.scale}
    if licence:
        notes["licence"] = licence
    if "licence" not in notes:
        raise WeightsError(f"{source}: state the licence of the weights with --licence, for example 'CC BY-SA 4.0'")
    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in notes.items()}
    save_weights(folder / _WEIGHTS, params=state, metadata=header)
    parameters = sum(tensor.numel() for tensor in state.values())
    (folder / "README.md").write_text(card(address, notes, parameters), encoding="utf-8", newline="\n")


def card(address: Address, notes: Mapping[str, Any], parameters: int) -> str:
    """Return the model card, Markdown with the hub's header, for weights that are described by their metadata."""
    licence = str(notes["licence"])
    name = _LICENCES.get(licence.lower())
    head = ["license: " + (name or "other"), *([] if name else [f"license_name: {json.dumps(licence)}"])]
    head += ["library_name: safmn", "pipeline_tag: image-to-image", "tags: [super-resolution, safmn]"]
    facts = {
        "Network": " ".join(
            [str(notes.get("type", "unknown")), ", ".join(f"{k}={v}" for k, v in _mapping(notes, "arguments").items())]
        ).strip(),
        "Scale": notes.get("scale"),
        "Parameters": f"{parameters:,}",
        "Iterations": notes.get("iterations"),
        "Training data": notes.get("data"),
        "Option file": notes.get("option_file"),
        "Commit": notes.get("commit"),
        "Licence": licence,
    }
    lines = ["---", *head, "---", "", f"# {address.repository.split('/')[1]}", ""]
    lines += ["Weights for image super-resolution with [SAFMN](https://github.com/sunny2109/SAFMN).", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {key} | {_cell(value)} |" for key, value in facts.items() if value)]
    metrics = _mapping(notes, "metrics")
    if metrics:
        columns = list(dict.fromkeys(key for values in metrics.values() for key in values))
        lines += ["", "## Quality", "", "| set | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
        lines += [
            f"| {_cell(name)} | " + " | ".join(f"{values[key]:.4f}" if key in values else "" for key in columns) + " |"
            for name, values in metrics.items()
        ]
    command = f"safmn upscale photo.png -o out --weights {PREFIX}{address.repository}"
    return "\n".join([*lines, "", "## Use", "", "```sh", command, "```", ""])


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _mapping(notes: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = notes.get(key)
    return dict(value) if isinstance(value, Mapping) else {}


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")

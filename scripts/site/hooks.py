"""Hooks of MkDocs: pages from files outside of docs/, the API reference, and the notebook as a page.

Documents link to files of the repository, such as option files and scripts. These are copied into the site, below
``repository/``, and the links lead there; a link to a folder becomes plain text.
"""

from __future__ import annotations

import base64
import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent.parent
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md", "safmn/weights/zoo/NOTICE.md")
_API = {
    "Upscaling": ["safmn.inference.upscaler.Upscaler", "safmn.weights.load_network"],
    "Scores": ["safmn.evaluation.scoring.evaluate", "safmn.evaluation.scoring.SetResult", "safmn.metrics.fidelity"],
    "Images": ["safmn.imaging.resize", "safmn.imaging.io", "safmn.imaging.patches"],
    "Options": ["safmn.options.load.load_options", "safmn.options.differences"],
    "Data": ["safmn.data.build_dataset", "safmn.data.loader.TrainingLoader"],
    "Training": ["safmn.training.build", "safmn.training.trainer.Trainer", "safmn.training.reporter.Reporter"],
    "Export": ["safmn.inference.export.export_network"],
    "Reports": ["safmn.report.page.Page", "safmn.report.widgets", "safmn.report.build"],
    "Errors": ["safmn.errors"],
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of docs/, and every file of the repository that a page links to."""
    for name, text in {
        "index.md": (ROOT / "README.md").read_text(encoding="utf-8"),
        "api.md": api(),
        "notebook.md": notebook(ROOT / "docs" / "start.ipynb"),
        **{f"repository/{page}": (ROOT / page).read_text(encoding="utf-8") for page in _PAGES},
    }.items():
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "site.css", content=(ROOT / "scripts" / "site" / "site.css").read_bytes()))
    pages = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for uri, text in pages.items():
        for _, target, _ in _LINK.findall(text):
            path = _in_repository(uri, target)
            if path is not None and path.is_file() and files.get_file_from_path(_site_uri(path)) is None:
                place = {"content": path.read_bytes(), "inclusion": InclusionLevel.NOT_IN_NAV}
                files.append(File.generated(config, _site_uri(path), **place))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead the links of a page to where their targets are in the site."""
    here = page.file.src_uri

    def moved(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = _in_repository(here, target)
        if path is None:
            return found[0]
        uri = _site_uri(path)
        if files.get_file_from_path(uri) is None:
            return text if path.is_dir() else found[0]
        return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"

    return _LINK.sub(moved, markdown)


def _in_repository(page: str, target: str) -> Path | None:
    """Return what a relative link of a page means in the repository; None for other links."""
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    source = "README.md" if page == "index.md" else page.removeprefix("repository/")
    home = ROOT if source == "README.md" or page.startswith("repository/") else ROOT / "docs"
    return Path(os.path.normpath((home / source).parent / target))


def _site_uri(path: Path) -> str:
    """Return where a file of the repository is in the site."""
    inside = path.relative_to(ROOT).as_posix()
    if inside == "README.md":
        return "index.md"
    if inside == "docs/start.ipynb":
        return "notebook.md"
    if inside.startswith("docs/browser/"):
        return f"repository/{inside}"
    return inside.removeprefix("docs/") if inside.startswith("docs/") else f"repository/{inside}"


def api() -> str:
    """Return the page of the API reference, for mkdocstrings."""
    parts = ["# Python API\n\nWhat is public and used by the commands. Everything is typed.\n"]
    for heading, names in _API.items():
        parts.append(f"## {heading}\n")
        parts += [f"::: {name}\n    options:\n      heading_level: 3\n" for name in names]
    return "\n".join(parts)


def notebook(path: Path) -> str:
    """Return a notebook with its outputs as Markdown; pictures are embedded."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            kind = next((kind for kind in ("image/jpeg", "image/png") if kind in data), None)
            if kind is not None:
                content = base64.b64encode(base64.b64decode("".join(data[kind]))).decode()
                parts.append(f'<img alt="Output" src="data:{kind};base64,{content}">')
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"

"""The commands in README and docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "datasets/README.md", *(REPOSITORY / "docs").rglob("*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LANGUAGES = ("", "sh", "bash", "text")
_PROGRAMS = ("safmn", "python", "torchrun", "make", "pip", "apt", "npm", "srun", "git", "sbatch", "cp", "export", "for")
_ASSIGNMENT = re.compile(r"^(?:[A-Z_]+=\S+ )*")
_INLINE = re.compile(r"`(safmn [a-z]+ [^`]+)`")


class Command(NamedTuple):
    """A line of a document: the page, and the line without comment, with continued lines joined."""

    page: str
    line: str

    @property
    def name(self) -> str:
        """The page and the line."""
        return f"{self.page}: {self.line}"

    def matches(self, pattern: str) -> bool:
        """Return whether a pattern is found in the name."""
        return re.search(pattern, self.name) is not None


def commands_of(page: Path) -> list[Command]:
    """Return the commands in the blocks of a page."""
    found = []
    for language, block in _FENCE.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines() if language in _LANGUAGES else ():
            text = re.sub(r"\s+(#|> ).*", "", " ".join(line.split()))  # without comment and redirection
            words = _ASSIGNMENT.sub("", text).split()
            if len(words) > 1 and words[0] in _PROGRAMS and not words[1].endswith(":"):
                found.append(Command(page.relative_to(REPOSITORY).as_posix(), text))
    return found


def inline_commands_of(page: Path) -> list[str]:
    """Return the commands with arguments in the text of a page."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(found.split()) for found in _INLINE.findall(text)]

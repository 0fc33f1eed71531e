"""What a check finds, and the three lists that the findings make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple


class State(Enum):
    """How a finding is judged. The value is the heading of its list."""

    FINE = "fine"
    FAILS = "will fail, because"
    BETTER = "better so"


class Finding(NamedTuple):
    """One result of a check.

    Attributes:
        state: the judgement.
        subject: what was looked at, in one or two words.
        text: what was found and, unless it is fine, what to do.
    """

    state: State
    subject: str
    text: str


def lists(findings: Sequence[Finding]) -> str:
    """Return the findings as text: one list for each state, without the empty ones."""
    width = max(len(finding.subject) for finding in findings)
    blocks = []
    for state in State:
        lines = [f"  {subject:{width}}  {text}" for found, subject, text in findings if found is state]
        if lines:
            blocks.append("\n".join([f"{state.value}:", *lines]))
    return "\n\n".join(blocks)


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings as JSON: ``fine``, ``fails`` and ``better``, each a list of ``{subject, text}``."""
    listed: dict[str, list[dict[str, str]]] = {state.name.lower(): [] for state in State}
    for state, subject, text in findings:
        listed[state.name.lower()].append({"subject": subject, "text": text})
    return json.dumps(listed, indent=2, ensure_ascii=False)

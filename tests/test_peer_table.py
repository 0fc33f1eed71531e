"""The table of the networks of others in docs/peers.md is up to date."""

from __future__ import annotations

import pytest

from safmn.archs.peers import PEERS
from safmn.archs.peers.table import PAGE, page


def test_the_table_is_up_to_date() -> None:
    pytest.importorskip("basicsr")
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run python -m safmn.archs.peers.table"
    assert all(f"| `{name}` |" in text for name in PEERS)

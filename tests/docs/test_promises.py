"""What the documentation promises names the test that proves it, and that test is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROOF = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
PROMISING = (
    "system.md",
    "watching.md",
    "semantics.md",
    "security.md",
    "reliability.md",
    "options.md",
    "drivers.md",
    "interoperation.md",
    "looking.md",
    "stores.md",
    "scale.md",
)


@pytest.mark.parametrize("name", PROMISING)
def test_every_test_that_is_named_is_there(name: str) -> None:
    named = PROOF.findall((ROOT / "docs" / name).read_text())
    assert named
    for path, function in named:
        text = (ROOT / path).read_text() if (ROOT / path).exists() else ""
        assert re.search(rf"^(async )?def {function}\(", text, re.MULTILINE), f"{path}::{function}"


def test_every_guarantee_has_a_proof() -> None:
    """Each item of a list in semantics.md, up to what is not promised, names a test."""
    promised, _, _ = (ROOT / "docs/semantics.md").read_text().partition("\n## Not promised")
    items = re.findall(r"^- .*(?:\n  .*)*", promised, re.MULTILINE)
    assert len(items) > 15
    for item in items:
        assert PROOF.search(item), item

"""What the documents name exists: files, modules, pages and their headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PACKAGE = ROOT / "src" / "edgewise"


def prose(document: Path) -> str:
    """The text without fenced code."""
    return re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.S | re.M)


def anchors(document: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def named_files(text: str) -> Iterator[str]:
    """`fleet/table.py`, `live/node/`, `docs/design.md` …: paths in backticks."""
    for name in re.findall(r"`([\w./-]+)`", text):
        if re.fullmatch(r"[\w-]+(/[\w-]+)*(/|/[\w-]+\.(py|md|yaml))", name):
            yield name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        page = document.parent / file if file else document
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), target


@pytest.mark.parametrize(
    "document",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "design.md"],
    ids=lambda path: path.name,
)
def test_files_that_are_named_exist(document: Path) -> None:
    names = set(named_files(prose(document)))
    assert document.name == "README.md" or names
    for name in names:
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


def test_the_checks_can_fail() -> None:
    assert list(named_files("see `fleet/nowhere.py`, `a/b/` and `x.y`")) == [
        "fleet/nowhere.py",
        "a/b/",
    ]
    assert "design-decisions" in anchors(ROOT / "docs" / "design.md")

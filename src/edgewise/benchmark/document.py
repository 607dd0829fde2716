"""Sections of a Markdown file that commands rewrite in place.

A section is between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``. Everything outside is
written by people and is not changed.
"""

from __future__ import annotations

from pathlib import Path

from edgewise.errors import BadInput
from edgewise.files import write_atomically


def rewrite(path: Path, section: str, text: str) -> None:
    """Replace a section's content by `text`; append the section if the file does not have it.

    Raises BadInput if only one of the two markers is there, or one of them twice.
    """
    write_atomically(path, _replaced(path, section, text).encode())


def is_current(path: Path, section: str, text: str) -> bool:
    """Whether `rewrite` would leave the file as it is. Raises BadInput as `rewrite` does."""
    return path.exists() and _replaced(path, section, text) == path.read_text(encoding="utf-8")


def _replaced(path: Path, section: str, text: str) -> str:
    """The content of the file after `rewrite`."""
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    block = f"{begin}\n\n{text.strip()}\n\n{end}"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    count = (old.count(begin), old.count(end))
    if count == (0, 0):
        return f"{old.rstrip()}\n\n{block}\n" if old.strip() else f"{block}\n"
    if count == (1, 1) and old.index(begin) < old.index(end):
        head, _, rest = old.partition(begin)
        return head + block + rest.partition(end)[2]
    raise BadInput(f"{path}: expected one {begin} and one {end} after it, got {count}")

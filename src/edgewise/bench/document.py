"""Sections of a Markdown file that commands rewrite in place.

A section stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``; what is outside is
written by people and left alone.
"""

from __future__ import annotations

from pathlib import Path

from edgewise.errors import BadInput


def rewrite(path: Path, section: str, text: str) -> None:
    """Put `text` in place of a section's content; a file without the section gets it at its end.

    Raises BadInput if only one of the two markers is there, or one of them twice.
    """
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    block = f"{begin}\n\n{text.strip()}\n\n{end}"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    count = (old.count(begin), old.count(end))
    if count == (0, 0):
        new = f"{old.rstrip()}\n\n{block}\n" if old.strip() else f"{block}\n"
    elif count == (1, 1) and old.index(begin) < old.index(end):
        head, _, rest = old.partition(begin)
        new = head + block + rest.partition(end)[2]
    else:
        raise BadInput(f"{path}: expected one {begin} and one {end} after it, got {count}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(new, encoding="utf-8")

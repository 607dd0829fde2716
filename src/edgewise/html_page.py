"""An HTML page that needs no other file: the frame that all our reports share."""

from __future__ import annotations

import html
from collections.abc import Sequence

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto; padding: 1.5rem;
       max-width: 1200px }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.about { color: #555; margin-top: 0 } code { background: #f3f3f3; padding: .1em .3em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #e5e5e5;
         white-space: nowrap }
th:first-child, td:first-child { text-align: left } .scroll { overflow-x: auto }
.better { color: #00704f } .worse { color: #b33a00 } details { margin: .4rem 0 }
svg { max-width: 100%; height: auto }
"""


def html_page(title: str, body: Sequence[str], *, head: str = "") -> str:
    """The page with the elements of `body`; `head` is for scripts."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>{head}</head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the cells of `rows` are HTML already."""
    head = "".join(f"<th>{html.escape(each)}</th>" for each in headings)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{lines}</table></div>'

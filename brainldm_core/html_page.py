"""Pages that stand alone: one file, pictures inside, no other host asked. Every text from outside is escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from .records import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c1e21; --soft: #5a6068; --line: #d5d9de; --mark: #fff1d6;
  --warn: #9a3b00; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --text: #e8eaed; --soft: #a5abb3; --line: #3a3f45;
  --mark: #3a2c12; --warn: #ffb469; } }
body { background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 84rem; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, li, dl { max-width: 48rem; } .soft { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .4rem .6rem; text-align: left; vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 9rem; } th small { display: block; font-weight: 400;
  color: var(--soft); }
p.caption { margin: 1.2rem 0 .3rem; font-size: .9rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.number small { display: block; color: var(--soft); }
td.reason { min-width: 10rem; overflow-wrap: anywhere; } tr.look { background: var(--mark); }
tr.look .reason { color: var(--warn); font-weight: 600; } td img { display: block; width: 21rem; max-width: none; }
.warn { background: var(--mark); border-left: .3rem solid var(--warn); padding: .5rem .8rem; max-width: 48rem; }
.warn p { margin: .2rem 0; } figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; background: #fff; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 48rem; } dt { font-weight: 600; margin-top: .5rem; }
dd { margin: 0 0 0 1rem; overflow-wrap: anywhere; }
"""
# A second wall behind the escaping: nothing but our own style and embedded pictures is ever loaded or run.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(path: Path, title: str, body: str) -> None:
    """Write a page; ``body`` is HTML whose texts are escaped already."""
    write_text(
        path,
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
""",
    )


def table(head: Sequence[str], rows: Iterable[str], caption: str) -> str:
    """A table under its caption, which scrolls on its own where the page is narrow; ``rows`` are HTML."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<p class="soft caption">{escape(caption)}</p><div class="wide"><table>\n'
        f"<thead><tr>{cells}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def number_row(name: str, cells: Iterable[str | tuple[str, str]]) -> str:
    """A row of numbers under a name; a pair is a number with a smaller one under it."""
    shown = "".join(
        f'<td class="number">{escape(cell)}</td>'
        if isinstance(cell, str)
        else f'<td class="number">{escape(cell[0])}<small>{escape(cell[1])}</small></td>'
        for cell in cells
    )
    return f'<tr><th scope="row">{escape(name)}</th>{shown}</tr>'


def paragraphs(texts: Iterable[str]) -> str:
    """A paragraph a text."""
    return "\n".join(f"<p>{escape(text)}</p>" for text in texts)


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Terms with what they mean."""
    return "<dl>" + "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in pairs) + "</dl>"


def picture(png: bytes, alt: str) -> str:
    """An image that lies inside the page."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{b64encode(png).decode()}">'


def figure(drawn: Figure, alt: str, caption: str) -> str:
    """A figure of matplotlib with its caption."""
    with BytesIO() as file:
        drawn.savefig(file, dpi=130, format="png", bbox_inches="tight", metadata={"Software": None})
        return f"<figure>{picture(file.getvalue(), alt)}<figcaption>{escape(caption)}</figcaption></figure>"

"""Pieces of a self-contained HTML page: everything is in the file, nothing is fetched and nothing is run."""

from __future__ import annotations

import base64
import html
import io
import re
import zlib
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from flashrt_ros.evaluation.page.style import CSS


def text(value: object) -> str:
    """Any value as text that may stand in HTML."""
    return html.escape(str(value))


def page(title: str, head: str, links: Sequence[tuple[str, str]], body: Iterable[str]) -> str:
    """head: HTML of the banner. links: (anchor, label) of the navigation."""
    navigation = ''.join(f'<a href="#{text(anchor)}">{text(label)}</a>' for anchor, label in links)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{text(title)}</title><style>{CSS}</style></head><body>'
        f'<header><div>{head}</div></header><nav><div>{navigation}</div></nav>'
        f'<main>{"".join(body)}</main></body></html>\n'
    )


def svg(figure: Figure, label: str) -> str:
    """A figure as inline SVG. label: for those who cannot see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format='svg', dpi=150, metadata={'Date': None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index('<svg') :]
    drawn = re.sub(r'<metadata>.*?</metadata>', '', drawn, flags=re.DOTALL)
    # Two figures of one page must not share ids.
    mark = f'f{zlib.crc32(drawn.encode())}'
    drawn = re.sub(r'(id="|href="#|url\(#)', rf'\g<1>{mark}_', drawn)
    return drawn.replace('<svg ', f'<svg role="img" aria-label="{text(label)}" ', 1)


def jpeg(data: bytes, label: str) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img src="data:image/jpeg;base64,{encoded}" alt="{text(label)}">'


def card(content: str) -> str:
    return f'<div class="card">{content}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; one that begins with '<td' is taken as it is."""
    top = ''.join(f'<th>{cell}</th>' for cell in head)
    lines = (
        '<tr>' + ''.join(cell if cell.startswith('<td') else f'<td>{cell}</td>' for cell in row) + '</tr>'
        for row in rows
    )
    return f'<table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def tile(figure: str, unit: str, label: str, between: str = '') -> str:
    """One headline figure."""
    note = f'<span>{between}</span>' if between else ''
    return (
        f'<div class="tile"><b>{figure} <small>{text(unit)}</small></b><span>{text(label)}</span>{note}</div>'
    )

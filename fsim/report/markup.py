"""HTML made of elements: text is always escaped, so that no file can add markup to a page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

LONGEST = 300
"""Characters of a name that a page shows; what a hostile file adds is cut out."""

_VOID = {"meta", "br", "hr", "col"}


class Html(str):
    """Markup that is finished: the only text that `el` does not escape."""

    __slots__ = ()


def plain(value: object, longest: int = LONGEST) -> str:
    """Text of a file as one printable line: no control characters, no surrogates, not endless."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    if len(text) > longest:
        half = longest // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text


def el(tag: str, *children: object, **attributes: object) -> Html:
    """One element.

    children    Html as it is, iterables one by one, None left out, all else escaped
    attributes  class_ for class, data_x for data-x; None and False are left out
    """
    given = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        text = "" if value is True else f'="{escape(str(value), quote=True)}"'
        given.append(f" {name}{text}")
    head = f"<{tag}{''.join(given)}>"
    return Html(head if tag in _VOID else f"{head}{join(children)}</{tag}>")


def join(children: Iterable[object]) -> Html:
    """Several pieces one after the other."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(escape(child, quote=False))
        elif isinstance(child, Iterable):
            parts.append(join(child))
        else:
            parts.append(escape(str(child), quote=False))
    return Html("".join(parts))


def table(head, rows, right=(), caption: str | None = None) -> Html:
    """A table that scrolls by itself where the page is narrow.

    head   names of the columns; right: those aligned to the right (numbers)
    rows   of cells; the first cell of a row is its heading
    """
    flush = [name in set(right) for name in head]
    lines = [
        el("tr", [
            el("th" if not at else "td", cell, scope="row" if not at else None,
               class_="n" if to_right else None)
            for at, (cell, to_right) in enumerate(zip(row, flush))
        ])
        for row in rows
    ]  # fmt: skip
    names = [
        el("th", name, scope="col", class_="n" if to_right else None)
        for name, to_right in zip(head, flush)
    ]
    return el(
        "div",
        el("table", el("caption", caption) if caption else None, el("thead", el("tr", names)),
           el("tbody", lines)),
        class_="scroll", tabindex="0", role="region", aria_label=caption or "Table",
    )  # fmt: skip

"""One campaign's part of a page, and the pictures that are drawn for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .markup import Html, el
from .pictures import Picture

MOST_ROWS = 400
"""Rows of a table in a page; the file of the same numbers has all."""


@dataclass
class Section:
    """One campaign's part of a page under way.

    numbers  of `numbers.campaign_numbers`; prefix of its pictures' names
    files    whether pictures are needed as files too
    pictures all that were drawn
    """

    numbers: dict
    prefix: str = ""
    files: bool = True
    pictures: list[Picture] = field(default_factory=list)
    _names: dict[str, int] = field(default_factory=dict)

    def show(self, drawn: Picture, caption: object, behind: Html | None = None) -> Html:
        """A picture with its caption and the numbers behind it."""
        self.pictures.append(drawn)
        return figure(drawn, caption, behind)

    def named(self, name: str) -> str:
        """A name of a picture that no other has: names of a file may differ in signs alone."""
        name = f"{self.prefix}{name}"
        self._names[name] = self._names.get(name, 0) + 1
        return name if self._names[name] == 1 else f"{name}-{self._names[name]}"


def figure(drawn: Picture, caption: object, behind: Html | None = None) -> Html:
    """A picture in a page: it scrolls where it would become too small to read."""
    least = round(0.81 * drawn.width)  # letters of 11 units are then 9 pixels high
    return el(
        "figure",
        el("div", drawn.inline, class_="scroll", tabindex="0", role="group",
           aria_label=drawn.title, style=f"--least:{least}px;--most:{drawn.width}px"),
        el("figcaption", caption),
        el("details", el("summary", "The numbers"), behind) if behind is not None else None,
    )  # fmt: skip


def slug(name: str) -> str:
    """A name as part of a file name: letters, digits and dashes."""
    text = "".join(c if c.isascii() and c.isalnum() else "-" for c in name)[:40].strip("-")
    return text.lower() or "x"

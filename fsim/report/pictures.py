"""Drawings as pictures: inside the page, where they follow its colours, and as files beside it.

A drawing is a matplotlib figure of one unit a CSS pixel. Artists whose gid begins with
"tip:" show the rest of it when a pointer rests on them.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from xml.etree import ElementTree

from .markup import Html, plain
from .palette import LIGHT

DPI = 72
"""Units of an SVG per inch: a drawing of 640 / DPI inches is 640 units wide."""

_SVG = "http://www.w3.org/2000/svg"
_LINK = "http://www.w3.org/1999/xlink"

_SETTINGS = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 12,
    "axes.titlesize": 12, "axes.labelsize": 12, "xtick.labelsize": 11, "ytick.labelsize": 11,
    "legend.fontsize": 11, "legend.frameon": False,
    "text.color": LIGHT["ink"], "axes.labelcolor": LIGHT["ink"], "axes.titlecolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["axis"], "axes.facecolor": LIGHT["card"], "axes.linewidth": 0.8,
    "figure.facecolor": LIGHT["card"], "xtick.color": LIGHT["axis"], "ytick.color": LIGHT["axis"],
    "xtick.labelcolor": LIGHT["ink"], "ytick.labelcolor": LIGHT["ink"],
    "grid.color": LIGHT["line"], "grid.linewidth": 0.8, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 1.0,
    "svg.fonttype": "none", "svg.hashsalt": "fsim",
    "text.parse_math": False, "text.usetex": False, "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False, "path.simplify": False,
}  # fmt: skip
"""A layer may be called "$x$": nothing is read as a formula."""


@dataclass(frozen=True)
class Picture:
    """One drawing in all its forms.

    name   of its files; width: its natural width in CSS pixels
    title  one line; alt: what it shows, in words
    inline SVG for the page; svg, png: bytes of files
    """

    name: str
    title: str
    alt: str
    width: int
    inline: Html
    svg: bytes
    png: bytes


@contextmanager
def style() -> Iterator[None]:
    """matplotlib set up for reports, and as it was afterwards."""
    import matplotlib
    from matplotlib.backends import backend_agg, backend_svg  # noqa: F401

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name may hold letters that the font lacks; its picture has boxes then.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def figure(width: float, height: float):
    """An empty figure of so many units; no window is ever opened."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI)


def picture(name: str, title: str, alt: str, drawn, files: bool = True) -> Picture:
    """The forms of a figure. files=False leaves out what only files need."""
    svg = _bytes(drawn, "svg")
    png = _bytes(drawn, "png") if files else b""
    width = round(drawn.get_figwidth() * DPI)
    title, alt = plain(title), plain(alt, 2000)
    return Picture(name, title, alt, width, _inline(svg, name, title, alt, width), svg, png)


def _bytes(drawn, kind: str) -> bytes:
    """A file's content, the same whenever it is made."""
    stream = io.BytesIO()
    if kind == "svg":
        drawn.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    else:
        drawn.savefig(stream, format="png", dpi=2 * DPI, metadata={"Software": None})
    return stream.getvalue()


def _inline(svg: bytes, name: str, title: str, alt: str, width: int) -> Html:
    """The SVG as part of a page: variables for colours, tips, ids of its own, no style."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    prefix = re.sub(r"\W", "-", name)
    for node in root.iter():
        given = node.attrib.pop("id", None)
        if given is None:
            pass
        elif given.startswith("tip:"):
            tip = ElementTree.Element(f"{{{_SVG}}}title")
            tip.text = given[4:]
            node.insert(0, tip)
        elif given in used:
            node.set("id", f"{prefix}-{given}")
        for key, value in list(node.attrib.items()):
            if key == f"{{{_LINK}}}href" and value.startswith("#"):
                node.set(key, f"#{prefix}-{value[1:]}")
            elif key in ("style", "clip-path"):
                value = value.replace("url(#", f"url(#{prefix}-")
                node.set(key, _coloured(value) if key == "style" else value)
        if node.get("style") == "fill: var(--card)":  # the page's own ground shows through
            node.set("style", "fill: none")
        if node.get("fill") in _NAMES:  # the ground of a hatch; variables work in styles alone
            node.set("style", f"fill: var(--{_NAMES[node.attrib.pop('fill')]})")
    height = float(root.get("viewBox").split()[3]) * width / float(root.get("viewBox").split()[2])
    root.set("width", f"{width}")
    root.set("height", f"{height:.0f}")
    root.set("role", "img")
    root.set("aria-label", f"{title}. {alt}")
    return Html(re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode")))


_NAMES = {colour: name for name, colour in LIGHT.items()}


def _coloured(css: str) -> str:
    """A style attribute with variables for colours, and with the font of the page."""
    css = re.sub(r"#[0-9a-f]{6}", lambda m: f"var(--{_NAMES[m[0]]})" if m[0] in _NAMES else m[0],
                 css)  # fmt: skip
    css = re.sub(r"\bfont: ([\d.]+px)[^;]*", r"font-size: \1", css)
    return re.sub(r"font-family: [^;]*;?\s*", "", css)

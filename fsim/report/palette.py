"""Colours of pictures and pages, light and dark, under one set of names.

Pictures are drawn in the light colours, no two of which are equal; a picture inside a page
has each of them replaced by the style-sheet variable of its name, so that it follows the
reader's choice of light or dark.

Contrast (WCAG 2.2): text at least 4.5 : 1 and marks at least 3 : 1 on `card` in both; the
steps of the heat scale grow evenly in lightness, so that they are told apart without hue.
tests/test_report.py computes all of these.
"""

from __future__ import annotations

STEPS = 7
"""Colours of the heat scale."""

LIGHT = {
    "page": "#f6f7f9", "card": "#ffffff", "ink": "#16191e", "soft": "#565d68",
    "line": "#d4d9e0", "axis": "#7d8590", "link": "#0b57a4", "warn": "#8a5200",
    "masked": "#848d99", "benign": "#b56f00", "critical": "#c0222f", "due": "#2463c4",
    "hang": "#7d3fc0", "corrected": "#18793f", "band": "#c0222e", "good": "#1f6fb3",
    "h0": "#f1ece2", "h1": "#f5d7a6", "h2": "#f0b26c", "h3": "#e38748", "h4": "#bd5131",
    "h5": "#9c2f2f", "h6": "#641326",
    "t0": "#16191f", "t1": "#16191d", "t2": "#16191c", "t3": "#16191b", "t4": "#fffffe",
    "t5": "#fffffd", "t6": "#fffffc",
}  # fmt: skip

DARK = {
    "page": "#101317", "card": "#181c22", "ink": "#e8ebef", "soft": "#a2abb7",
    "line": "#353c46", "axis": "#737c88", "link": "#7db7f5", "warn": "#f0b35a",
    "masked": "#7f8995", "benign": "#e0a030", "critical": "#f4666e", "due": "#6aa3f5",
    "hang": "#b98af0", "corrected": "#4fbf7c", "band": "#f4666e", "good": "#5fb0f0",
    "h0": "#262b33", "h1": "#45303a", "h2": "#702f3c", "h3": "#a03c3c", "h4": "#d4683f",
    "h5": "#ea9550", "h6": "#fbd58c",
    "t0": "#e8ebef", "t1": "#f2f4f6", "t2": "#f8f9fa", "t3": "#ffffff", "t4": "#101317",
    "t5": "#101317", "t6": "#101317",
}  # fmt: skip

OUTCOMES = {
    "masked": "masked", "corrected": "corrected", "sdc_benign": "benign",
    "sdc_critical": "critical", "due": "due", "hang": "hang",
}  # fmt: skip
"""Outcome -> its colour."""


def variables(colours: dict[str, str]) -> str:
    """The colours as style-sheet variables."""
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2, definition of relative luminance)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)

"""A report as files: the page, and beside it its pictures and tables."""

from __future__ import annotations

from pathlib import Path

from fsim.errors import ConfigError
from fsim.files import atomic_write

from .page import Page


def places(out: str | Path) -> tuple[Path, Path]:
    """(page, folder of pictures and tables) for what --out names.

    NAME.html, with NAME_files beside it; or a folder, which then holds report.html.
    """
    out = Path(out)
    if out.suffix.lower() in (".html", ".htm"):
        return out, out.with_name(f"{out.stem}_files")
    if out.is_file():
        raise ConfigError(f"--out must be a .html file or a folder, got the file {out}")
    return out / "report.html", out


def write(out: str | Path, made: Page, tables: dict[str, bytes], pictures: bool) -> list[Path]:
    """Write a page, its tables and, if asked, its pictures; the paths, the page last."""
    at, beside = places(out)
    content: dict[Path, bytes] = {}
    if pictures:
        for one in made.pictures:
            content[beside / "pictures" / f"{one.name}.svg"] = one.svg
            content[beside / "pictures" / f"{one.name}.png"] = one.png
    for name, table in tables.items():
        content[beside / "tables" / name] = table
    content[at] = made.html.encode("utf-8", "replace")
    for path, data in content.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(data)
    return list(content)

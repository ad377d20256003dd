"""The beginning of a plug-in: an accelerator family that works, to change into another."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
from contextlib import suppress
from pathlib import Path

from fsim.accel_models.families import family_names
from fsim.accel_models.load import list_accels
from fsim.errors import ConfigError

_FILES = Path(__file__).resolve().parent / "skeleton_files"

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")

_FOLDERS = ("tests", "test", "src", "build", "dist", "docs")
"""Names that a folder of every project may have."""


def write_skeleton(name: str, folder: Path) -> list[Path]:
    """Write the distribution of a new family called `name` into `folder`, which must not exist.

    The package is called as the family, with `_` for `-`; fsim_NAME if the name is one word.
    A folder of the package's own name would hide it from Python whoever is beside it.

    Returns the files written. ConfigError for a name that is taken or that Python or a
    distribution cannot have, and for a folder that cannot be made: then nothing is left of it.
    """
    if not _NAME.fullmatch(name) or name.endswith("-") or "--" in name:
        raise ConfigError(
            "a new family's name must be 1 to 40 lower-case letters, digits and single dashes, "
            f"a letter first, got {name!r}"
        )
    if name in family_names() or name in list_accels():
        raise ConfigError(f"a new family's name must not be taken, got {name!r} (fsim accel list)")
    module = name.replace("-", "_")
    package = module if "-" in name else f"fsim_{name}"
    if keyword.iskeyword(module) or any(importlib.util.find_spec(m) for m in (module, package)):
        raise ConfigError(f"a new family's name must not be that of a Python module, got {name!r}")
    if name in _FOLDERS:
        raise ConfigError(f"a new family's name must not be {', '.join(_FOLDERS)}, got {name!r}")
    if not str(folder).isprintable() or folder.name in ("", package):
        raise ConfigError(
            "the folder of a new family must have a name that is printable and not that of its "
            f"package, {package}, got {str(folder)!r}"
        )
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"the folder of a new family must not exist yet, got {folder}")
    words = {"@NAME@": name, "@PACKAGE@": package, "@DIST@": f"fsim-{name}"}
    places = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "test_contract.py": "tests/test_contract.py",
        "__init__.py": f"{package}/__init__.py",
        "schedule.py": f"{package}/schedule.py",
        "cycle.py": f"{package}/cycle.py",
        "preset.yaml": f"{package}/presets/{name}.yaml",
    }
    written = []
    above = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True)
        for source, place in places.items():
            text = (_FILES / f"{source}.in").read_text(encoding="utf-8")
            for mark, word in words.items():
                text = text.replace(mark, word)
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            written.append(target)
    except BaseException as error:
        if not isinstance(error, FileExistsError):  # somebody else has just made it
            shutil.rmtree(folder, ignore_errors=True)
            for parent in above:
                with suppress(OSError):
                    parent.rmdir()
        if not isinstance(error, (OSError, ValueError)):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"the skeleton cannot be written: {reason} ({folder})") from None
    return written

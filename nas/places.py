"""Where data sets and checkpoints are looked for."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache folder: $FSIM_CACHE, else ~/.cache/fsim. It need not exist."""
    return Path(os.environ.get("FSIM_CACHE") or Path.home() / ".cache" / "fsim")


def _checkout_data() -> list[Path]:
    """shared/data beside a development checkout, if there is one."""
    root = Path(__file__).resolve().parent.parent
    folder = root.parent / "shared" / "data"
    return [folder] if (root / "setup.cfg").is_file() and folder.is_dir() else []


def data_places(data_dir: str | os.PathLike | None = None) -> list[Path]:
    """Base folders of data sets, in the order in which they are searched.

    The folder given, $FSIM_DATA, the cache folder, and shared/data beside a
    development checkout.
    """
    places = [Path(data_dir)] if data_dir is not None else []
    if os.environ.get("FSIM_DATA"):
        places.append(Path(os.environ["FSIM_DATA"]))
    return [*places, cache_dir(), *_checkout_data()]


def model_places(folder: str | os.PathLike | None = None) -> list[Path]:
    """Folders of checkpoints, in the order in which they are searched."""
    places = [Path(folder)] if folder is not None else []
    if os.environ.get("FSIM_DATA"):
        base = Path(os.environ["FSIM_DATA"])
        places += [base / "models", base]
    return [*places, cache_dir() / "models", *(p / "models" for p in _checkout_data())]

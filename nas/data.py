"""Data sets by name or file, as uint8 images and labels; found, read, never guessed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsim.errors import ConfigError
from fsim.nas.data_files import read_npz
from fsim.nas.digits import digits_split
from fsim.nas.published import PUBLISHED, check_labels, locate, read_published
from fsim.parse import nearest

NAMES = ("digits", *PUBLISHED)
SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and what they show.

    images       (n, channels, height, width): uint8 as published (digits: 0..16), or
                 float32 from an .npz that holds network input already
    labels       (n,) int64, from 0
    name         name or path it was loaded by
    split        "train", "test", or "all" (an .npz without splits)
    num_classes  of the whole data set, also where `labels` is a part of it
    sha256       of shape, type and values of `images` and `labels`: the same data
                 has the same hash whatever file they came from
    source       where they were found
    """

    images: np.ndarray
    labels: np.ndarray
    name: str
    split: str
    num_classes: int
    sha256: str
    source: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixel_max(self) -> int | None:
        """The largest value that a pixel can have; None for float images."""
        if self.images.dtype.kind == "f":
            return None
        return 16 if self.name == "digits" else 255


def load_data(
    name_or_path: str | os.PathLike,
    split: str = "test",
    data_dir: str | os.PathLike | None = None,
    limit: int | None = None,
) -> Dataset:
    """A split of a data set by name (NAMES), or the images of an .npz file.

    data_dir  searched first for cifar10 and fashion-mnist; then `places.data_places`
    limit     only the first so many images

    An .npz holds `images` (n, c, h, w) or (n, h, w), uint8 or float, and `labels`
    (n,) integers; or `train_images`, `train_labels`, `test_images`, `test_labels`.
    Without splits of its own it gives the same images, as "all", for both.

    Raises ConfigError for an unknown name, a data set that is not found (with every
    place that was searched), and files that are damaged or of another kind.
    """
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit of images must be >= 1, got {limit}")
    name = os.fspath(name_or_path)
    if name == "digits":
        images, labels = digits_split(split)
        return _dataset(images, labels, name, split, 10, "the package", limit)
    if name in PUBLISHED:
        (images, labels), folder = read_published(name, split, data_dir, limit)
        return _dataset(images, labels, name, split, 10, str(folder), limit)
    if name.endswith(".npz"):
        return _from_npz(Path(name), split, limit)
    raise ConfigError(
        f"data must be one of {', '.join(NAMES)} or an .npz file, got {name!r}"
        + nearest(name, NAMES)
    )


def where(name: str, split: str, data_dir: str | os.PathLike | None = None) -> str | None:
    """Folder that holds a split of a data set of NAMES, None if there is none. Reads nothing."""
    if name == "digits":
        return "the package"
    found = locate(name, split, data_dir)
    return None if found is None else str(found[0])


def _dataset(
    images: np.ndarray,
    labels: np.ndarray,
    name: str,
    split: str,
    num_classes: int,
    source: str,
    limit: int | None,
) -> Dataset:
    images = np.ascontiguousarray(images[:limit])
    labels = np.ascontiguousarray(labels[:limit], dtype=np.int64)
    sha = hashlib.sha256()
    for array in (images, labels):
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(array)
    return Dataset(images, labels, name, split, num_classes, sha.hexdigest(), source)


def _from_npz(path: Path, split: str, limit: int | None) -> Dataset:
    if not path.is_file():
        raise ConfigError(f"data file {path} does not exist or is not a file")
    keys = tuple(f"{prefix}{what}" for prefix in ("", f"{split}_") for what in ("images", "labels"))
    arrays = read_npz(path, (keys[0], keys[2]), limit)
    arrays |= read_npz(path, (keys[1], keys[3]))  # every label: they tell the number of classes
    found = split if keys[2] in arrays else "all"
    prefix = f"{split}_" if keys[2] in arrays else ""
    try:
        images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    except KeyError as error:
        raise ConfigError(
            f"{path}: must hold arrays 'images' and 'labels', or '{split}_images' and "
            f"'{split}_labels'; {error} is missing"
        ) from None
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in images.shape:
        raise ConfigError(
            f"{path}: images must have shape (n, c, h, w) or (n, h, w), none of them 0, "
            f"got {images.shape}"
        )
    if images.shape[3] in (1, 3) and images.shape[1] not in (1, 3) and images.shape[2] > 3:
        raise ConfigError(
            f"{path}: images must be (n, c, h, w), got {images.shape}, which looks like "
            "(n, h, w, c); transpose them with images.transpose(0, 3, 1, 2)"
        )
    if images.dtype.kind == "f":
        images = _finite_float32(images, path)
    elif images.dtype != np.uint8:
        raise ConfigError(f"{path}: images must be uint8 or float, got {images.dtype}")
    whole = len(labels) if labels.ndim else 0
    if (
        labels.ndim != 1
        or labels.dtype.kind not in "iu"
        or min(whole, limit or whole) != len(images)
    ):
        raise ConfigError(
            f"{path}: labels must be integers, one an image, got {labels.dtype} {labels.shape} "
            f"for images {images.shape}"
        )
    num_classes = int(labels.max()) + 1
    check_labels(labels, min(max(num_classes, 1), 1 << 20), path)
    return _dataset(images, labels, str(path), found, num_classes, str(path), limit)


def _finite_float32(images: np.ndarray, path: Path) -> np.ndarray:
    with np.errstate(over="ignore"):
        out = images.astype(np.float32)
    if not np.isfinite(out).all():
        raise ConfigError(f"{path}: images must be finite float32 numbers, got NaN or infinity")
    return out

"""CIFAR-10 and Fashion-MNIST: several published forms, several places they may be in."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsim.errors import ConfigError
from fsim.files import atomic_write
from fsim.nas.data_files import read_cifar_binary, read_cifar_pickle, read_idx, read_npy
from fsim.nas.places import cache_dir, data_places

Arrays = tuple[np.ndarray, np.ndarray]


def _cifar_batches(split: str, suffix: str) -> list[str]:
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    return [name + suffix for name in names]


def _cifar_binary(folder: Path, split: str, limit: int | None) -> Arrays:
    return _read_batches(folder, _cifar_batches(split, ".bin"), read_cifar_binary)


def _cifar_pickle(folder: Path, split: str, limit: int | None) -> Arrays:
    return _read_batches(folder, _cifar_batches(split, ""), read_cifar_pickle)


def _read_batches(folder: Path, names: list[str], read: Callable[[Path], Arrays]) -> Arrays:
    """CIFAR-10 batches of one of the two official versions, one after the other."""
    parts = [read(_present(folder, name)) for name in names]
    images = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    check_labels(labels, 10, folder)
    return images, labels


def _cifar_stems(split: str) -> list[str]:
    return [f"train_{i}" for i in range(1, 6)] if split == "train" else ["test"]


def _cifar_npy(folder: Path, split: str, limit: int | None) -> Arrays:
    """`test_images.npy`, `test_labels.npy`, `train_1_images.npy` .. 5; each also as .npy.xz."""
    images, labels, wanted = [], [], limit
    for stem in _cifar_stems(split):
        if wanted == 0:
            break
        pixels = _read_cached(_npy_file(folder, f"{stem}_images"), wanted)
        classes = read_npy(_npy_file(folder, f"{stem}_labels"), wanted)
        where = folder / f"{stem}_images"
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (3, 32, 32):
            raise ConfigError(
                f"{where}: images must be uint8 (n, 3, 32, 32), got {pixels.dtype} {pixels.shape}"
            )
        if classes.shape != (len(pixels),) or classes.dtype.kind not in "iu":
            raise ConfigError(
                f"{where}: there must be one integer label an image, got labels "
                f"{classes.dtype} {classes.shape} for {len(pixels)} images"
            )
        check_labels(classes, 10, where)
        images.append(pixels)
        labels.append(classes)
        wanted = None if wanted is None else wanted - len(pixels)
    return np.concatenate(images), np.concatenate(labels)


def _npy_file(folder: Path, stem: str) -> Path:
    packed = folder / f"{stem}.npy.xz"
    return packed if packed.is_file() else _present(folder, f"{stem}.npy")


def _present(folder: Path, name: str) -> Path:
    """The file, or ConfigError: other files of the data set were seen in the folder."""
    if not (folder / name).is_file():
        raise ConfigError(f"{folder / name} is missing; other files of the data set are there")
    return folder / name


def check_labels(labels: np.ndarray, num_classes: int, where: Path) -> None:
    """ConfigError unless all labels (n,) lie in 0..num_classes - 1."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ConfigError(
            f"{where}: labels must be 0..{num_classes - 1}, got {labels.min()}..{labels.max()}"
        )


def _read_cached(path: Path, limit: int | None) -> np.ndarray:
    """`read_npy`, keeping what an .xz file holds decompressed in the cache folder.

    The copy is named by the hash of the compressed file, so it can never be
    stale. Where the cache cannot be written there is none, and no error.
    """
    if path.suffix != ".xz":
        return read_npy(path, limit)
    try:
        with open(path, "rb") as file:
            key = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    copy = cache_dir() / "arrays" / f"{key}.npy"
    if copy.is_file():
        try:
            return read_npy(copy, limit)
        except ConfigError:
            pass  # a damaged copy is written anew from the original
    array = read_npy(path)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(copy) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)
    except OSError:
        pass  # read-only or full: next time it is decompressed again
    return array[:limit]


def _fashion_files(split: str) -> tuple[str, str]:
    stem = "t10k" if split == "test" else "train"
    return f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"


def _fashion_idx(folder: Path, split: str, limit: int | None) -> Arrays:
    images, labels = (
        read_idx(
            folder / name if (folder / name).is_file() else _present(folder, f"{name}.gz"), limit
        )
        for name in _fashion_files(split)
    )
    if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ConfigError(
            f"{folder}: images must be (n, 28, 28) with n labels, "
            f"got {images.shape} and {labels.shape}"
        )
    check_labels(labels, 10, folder)
    return images[:, None], labels


@dataclass(frozen=True)
class Form:
    """One form in which a data set is published.

    files  split -> file names, any of which shows that a folder holds this form
    read   (folder, split, limit) -> images and labels of at least `limit` images
    """

    files: Callable[[str], list[str]]
    read: Callable[[Path, str, int | None], Arrays]


@dataclass(frozen=True)
class Published:
    """Where a data set may lie below a place, and in which forms."""

    folders: tuple[str, ...]
    forms: tuple[Form, ...]


PUBLISHED = {
    "cifar10": Published(
        ("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py"),
        (
            Form(
                lambda split: [
                    f"{stem}_images.npy{end}" for stem in _cifar_stems(split) for end in ("", ".xz")
                ],
                _cifar_npy,
            ),
            Form(lambda split: _cifar_batches(split, ".bin"), _cifar_binary),
            Form(lambda split: _cifar_batches(split, ""), _cifar_pickle),
        ),
    ),
    "fashion-mnist": Published(
        ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw"),
        (
            Form(
                lambda split: [name + end for name in _fashion_files(split) for end in ("", ".gz")],
                _fashion_idx,
            ),
        ),
    ),
}


def locate(name: str, split: str, data_dir: str | os.PathLike | None) -> tuple[Path, Form] | None:
    """The first folder that holds the split, and its form; nothing is read."""
    for place in data_places(data_dir):
        folders = [place / sub for sub in PUBLISHED[name].folders]
        # MNIST's files are called like those of Fashion-MNIST: a place counts
        # itself only if its name says what it holds.
        if name == "cifar10" or "fashion" in str(place.resolve()).lower():
            folders.append(place)
        for folder in folders:
            for form in PUBLISHED[name].forms:
                if any((folder / file).is_file() for file in form.files(split)):
                    return folder, form
    return None


def read_published(
    name: str, split: str, data_dir: str | os.PathLike | None, limit: int | None
) -> tuple[Arrays, Path]:
    """Images (n, c, h, w) uint8 and labels (n,) of a name in PUBLISHED, and their folder.

    Raises ConfigError, naming every place searched, if they are nowhere.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ConfigError(f"the data folder must exist, got {data_dir}")
    found = locate(name, split, data_dir)
    if found is None:
        places = ", ".join(str(place) for place in data_places(data_dir))
        raise ConfigError(
            f"data set {name} ({split}) was not found in {places}, each with its sub-folders "
            f"{', '.join(PUBLISHED[name].folders)}; download it with 'fsim data fetch {name}', "
            "or name its folder with --data-dir or $FSIM_DATA"
        )
    folder, form = found
    return form.read(folder, split, limit), folder

"""Download the published data sets, checked against their published checksums."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fsim.errors import ConfigError
from fsim.files import atomic_write
from fsim.nas.places import cache_dir
from fsim.parse import nearest

TIMEOUT_S = 30.0
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Download:
    """One file of a publisher.

    url      where it is
    md5      as the publisher states it
    limit    bytes it may have at most; more means it is another file
    members  names to unpack from it and their size in bytes; empty: kept as it is
    """

    url: str
    md5: str
    limit: int
    members: tuple[tuple[str, int], ...] = ()


_FASHION = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
_CIFAR_BATCH = 10_000 * 3073

DOWNLOADS: dict[str, tuple[Download, ...]] = {
    # https://www.cs.toronto.edu/~kriz/cifar.html states the checksum
    "cifar10": (
        Download(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            200_000_000,
            tuple(
                (f"cifar-10-batches-bin/{name}.bin", _CIFAR_BATCH)
                for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
            ),
        ),
    ),
    # https://github.com/zalandoresearch/fashion-mnist, "Get the Data"
    "fashion-mnist": tuple(
        Download(f"{_FASHION}{name}-ubyte.gz", md5, 40_000_000)
        for name, md5 in (
            ("train-images-idx3", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("train-labels-idx1", "25c81989df183df01b3e8a0aad5dffbe"),
            ("t10k-images-idx3", "bef4ecab320f06d8554ea6380940ec79"),
            ("t10k-labels-idx1", "bb300cfdad3c16e7a12a480ee83cd310"),
        )
    ),
}

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes so far and the bytes in all (None: not told)."""


def fetch(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    progress: Progress | None = None,
    downloads: dict[str, tuple[Download, ...]] = DOWNLOADS,
) -> list[Path]:
    """Download a data set into data_dir/NAME (default: the cache folder); the files written.

    Each file is written under a temporary name, compared with its checksum and
    only then given its name: what is there is complete. Files that are there
    already are kept as they are.

    Raises ConfigError if there is nothing to download for the name, the server
    cannot be reached or the checksum differs; OSError if the folder cannot be written.
    """
    if name not in downloads:
        raise ConfigError(
            f"a data set to download must be one of {', '.join(downloads)}, got {name!r}"
            + nearest(name, downloads)
        )
    folder = (cache_dir() if data_dir is None else Path(data_dir)) / name
    folder.mkdir(parents=True, exist_ok=True)
    return [path for download in downloads[name] for path in _fetch_one(download, folder, progress)]


def _targets(download: Download, folder: Path) -> list[Path]:
    names = [member for member, _ in download.members] or [download.url]
    return [folder / name.rsplit("/", 1)[1] for name in names]


def _fetch_one(download: Download, folder: Path, progress: Progress | None) -> list[Path]:
    targets = _targets(download, folder)
    if all(target.is_file() for target in targets):
        return []
    with tempfile.TemporaryFile(dir=folder) as archive:
        _download(download, folder, archive, progress)
        archive.seek(0)
        if download.members:
            _unpack(download, archive, targets)
        else:
            with atomic_write(targets[0]) as file:
                while piece := archive.read(_CHUNK):
                    file.write(piece)
    return targets


def _download(download: Download, folder: Path, file: IO[bytes], progress: Progress | None) -> None:
    """Copy the body of the answer to `file`; it has the right checksum or this raises."""
    name = download.url.rsplit("/", 1)[1]
    by_hand = (
        f"offline, put {name} "
        f"{'unpacked ' if download.members else ''}into {folder} from another machine"
    )
    md5 = hashlib.md5(usedforsecurity=False)
    got = 0
    for piece, total in _pieces(download.url, by_hand):
        got += len(piece)
        if got > download.limit:
            raise ConfigError(f"{download.url} must have at most {download.limit} bytes, got more")
        md5.update(piece)
        file.write(piece)
        if progress is not None:
            progress(name, got, total)
    if md5.hexdigest() != download.md5:
        raise ConfigError(
            f"{download.url}: MD5 must be {download.md5}, got {md5.hexdigest()} for {got} bytes; "
            f"nothing was kept; {by_hand}"
        )


def _pieces(url: str, by_hand: str) -> Iterator[tuple[bytes, int | None]]:
    """What the server sends, piece by piece, and how much it says there will be."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            length = answer.headers.get("Content-Length")
            total = int(length) if length and length.isdecimal() else None
            while piece := answer.read(_CHUNK):
                yield piece, total
    except (http.client.HTTPException, OSError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"cannot download {url}: {reason}; {by_hand}") from error


def _unpack(download: Download, archive: IO[bytes], targets: list[Path]) -> None:
    """Write the members named in `download`, and nothing else, to `targets`."""
    try:
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            for (member, size), target in zip(download.members, targets):
                info = tar.getmember(member)
                source = tar.extractfile(info) if info.isreg() and info.size == size else None
                if source is None:
                    raise ConfigError(
                        f"{download.url}: {member} must be a file of {size} bytes, "
                        f"got {info.size} bytes"
                    )
                with atomic_write(target) as file:
                    while piece := source.read(_CHUNK):
                        file.write(piece)
    except (tarfile.TarError, KeyError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{download.url} cannot be unpacked: {error}") from error

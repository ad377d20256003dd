"""Writing files so that a reader sees the whole of one or none of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from .errors import ConfigError


def check_output(path: str | Path) -> None:
    """ConfigError unless `path` may become a file: nothing there, or a regular file."""
    if not Path(path).name or str(path) in ("", ".", ".."):
        raise ConfigError(f"an output must be the name of a file, got {str(path)!r}")
    real = Path(os.path.realpath(path))
    if (real.exists() and not real.is_file()) or real.is_symlink():
        raise ConfigError(
            f"an output must be a regular file, got a folder, device or circle of links ({path})"
        )


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` only once it is complete.

    It is written beside `path` under a temporary name, flushed to the disk and
    renamed; on any error (a full disk, an interrupt) it is removed and what was
    at `path` before stays as it was. A symbolic link keeps pointing where it did.

    ConfigError if `path` is a folder, a device or a pipe, which a rename would
    replace; OSError, with `path` as its file name, if the system refuses.
    """
    target = Path(os.path.realpath(path))
    if (target.exists() and not target.is_file()) or target.is_symlink():
        raise ConfigError(
            f"the output must be a regular file, got a folder, device or circle of links ({path})"
        )
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            # A failed write names no file or our temporary one; other errors are the caller's.
            if error.errno is not None and error.filename in (None, str(temporary)):
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_write_all(*paths: str | Path) -> Iterator[list[IO[bytes]]]:
    """Several files as `atomic_write`: all of them take their names, or none does.

    All are flushed to the disk before the first is renamed.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_write(path)) for path in paths]
        yield files
        for path, file in zip(paths, files):
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error

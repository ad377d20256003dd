"""The folder of a run: its checkpoint is of one configuration, and whole or not there."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fsim.errors import ConfigError
from fsim.files import atomic_write

CHECKPOINT = "checkpoint.pt"


def first_difference(saved: dict, wanted: dict, path: str = "") -> str | None:
    """What differs between two configurations, as "field: saved, wanted"; None: nothing."""
    for key in sorted(set(saved) | set(wanted)):
        one, other = saved.get(key), wanted.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found = first_difference(one, other, f"{path}{key}.")
            if found:
                return found
        elif one != other:
            return f"{path}{key}: {_short(one)} there, {_short(other)} asked for"
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Lock:
    """On a folder, until `release`, the end of the object or of the process.

    Two runs in one folder would write over each other. Where folders cannot be locked
    (Windows, some network file systems) nothing is.
    """

    def __init__(self, path: Path):
        self.file: int | None = None
        try:
            import fcntl

            self.file = os.open(path, os.O_RDONLY)
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another run must not write into {path} at the same time") from None
        except (ImportError, OSError):
            pass

    def release(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None

    __del__ = release


def _read(checkpoint: Path) -> dict:
    """What `torch.save` wrote, tensors on the CPU, without running code of the file."""
    content = io.BytesIO(checkpoint.read_bytes())
    # torch.load does not compare checksums: a changed weight would go unnoticed.
    try:
        with zipfile.ZipFile(content) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile:
        raise ValueError("a file of another kind or a part of one") from None
    if broken:
        raise ValueError(f"a wrong checksum of {broken}")
    content.seek(0)
    try:
        saved = torch.load(content, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        # torch's own text recommends to run the code.
        raise ValueError("one with more in it than tensors and numbers") from None
    if not isinstance(saved, dict) or not isinstance(saved.get("identity"), str):
        raise ValueError("one without an identity")
    return saved


class RunFolder:
    """Where a run keeps what it needs to go on after a kill.

    path      is made
    identity  JSON-ready: everything that decides the result
    command   that writes such runs
    take      given, the run goes on: it is called with what `save` was given last, tensors
              on the CPU

    ConfigError if there is a run already and none is to go on, if there is none to go on
    from, and unless its checkpoint is whole, of this command and of this identity.
    """

    def __init__(
        self, path: Path, identity: dict, command: str, take: Callable[[dict], None] | None = None
    ):
        self.path, self.command = path, command
        self.identity = json.loads(json.dumps(identity))
        checkpoint = path / CHECKPOINT
        if take is not None:
            self._resume(checkpoint, take)
        else:
            self._check_free(checkpoint)
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _Lock(path)
        if take is None:  # what began while this one was being made
            self._check_free(checkpoint)

    @staticmethod
    def _check_free(checkpoint: Path) -> None:
        if checkpoint.exists():
            raise ConfigError(
                f"{checkpoint} holds a run already: --resume it or name another folder"
            )

    @contextmanager
    def running(self, history: list) -> Iterator[None]:
        """While epochs are added to `history`: somebody who stops the run is told what is
        kept, and in the end another run may have the folder."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception):  # stopped from outside
                error.add_note(self.hint(len(history)))
            raise
        finally:
            self.release()

    def release(self) -> None:
        """Let another run have the folder."""
        self._lock.release()

    def hint(self, epochs: int) -> str:
        """What to tell somebody who stops the run."""
        kept = f"{epochs} epoch{'s' * (epochs != 1)} of it are" if epochs else "nothing of it is"
        return f"{kept} kept in {self.path}" + (": go on with --resume" if epochs else "")

    def _resume(self, checkpoint: Path, take: Callable[[dict], None]) -> None:
        if not checkpoint.is_file():
            raise ConfigError(f"--resume needs the checkpoint of a run, got none at {checkpoint}")
        try:
            saved = _read(checkpoint)
            there = json.loads(saved.pop("identity"))
            difference = first_difference(there, self.identity)
            if not difference:
                take(saved)
        except Exception as error:  # torch raises many kinds on damaged files
            line = (str(error).splitlines() or [type(error).__name__])[0]
            why = f"one without {line}" if isinstance(error, KeyError) else line[:200]
            raise ConfigError(
                f"the checkpoint must be one of {self.command}, got {why} ({checkpoint})"
            ) from error
        if difference:
            raise ConfigError(
                f"the checkpoint is of another configuration: {difference} ({checkpoint})"
            )

    def save(self, state: dict) -> None:
        """Write the checkpoint: tensors, and values that `torch.load` takes without code."""
        buffer = io.BytesIO()
        torch.save({"identity": json.dumps(self.identity), **state}, buffer)
        self.write(CHECKPOINT, buffer.getvalue())

    def write(self, name: str, content: bytes) -> None:
        """A file of the folder, whole or not at all."""
        with atomic_write(self.path / name) as file:
            file.write(content)

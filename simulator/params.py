"""Scales of the user's own: `--quant-params FILE`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsim.errors import ConfigError

_LARGEST_FILE = 32 << 20


@dataclass(frozen=True)
class Given:
    """What the user says of one tensor; None is left to calibration.

    scale  a number, or for weights a tuple with one a channel
    """

    scale: float | tuple[float, ...]
    signed: bool | None = None
    bits: int | None = None


@dataclass(frozen=True)
class Params:
    """tensors by name; weights by the name of their layer."""

    tensors: dict[str, Given]
    weights: dict[str, Given]


def load_params(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError if there is none."""
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"quantisation parameters must be under 32 MiB ({path})")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(
            f"quantisation parameters must be a JSON file, got: {error} ({path})"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"quantisation parameters must be one JSON object, got {type(found).__name__} ({path})"
        )
    return found


def read_params(params: Mapping[str, Any], tensors: set[str], channels: dict[str, int]) -> Params:
    """Check everything; raise one ConfigError with all problems.

    tensors   names that have a scale of their own
    channels  layer with weights -> output channels
    """
    problems: list[str] = []
    found = Params({}, {})
    for name, entry in params.items():
        layer = name.removesuffix(".weight")
        is_weight = layer != name and layer in channels
        if not is_weight and name not in tensors:
            problems.append(f"{name}: no tensor of the network has this name and its own scale")
            continue
        if not isinstance(entry, dict):
            problems.append(
                f"{name}: must be an object with scale, signed, bits, got {entry!r:.40}"
            )
            continue
        allowed = {"scale", "bits"} if is_weight else {"scale", "signed", "bits"}
        before = len(problems)
        for key in sorted(set(entry) - allowed):
            problems.append(f"{name}.{key}: must be one of {', '.join(sorted(allowed))}")
        scale = _scale(
            name, entry.get("scale"), channels.get(layer) if is_weight else None, problems
        )
        bits = entry.get("bits")
        if bits is not None and not (type(bits) is int and 2 <= bits <= 16):
            problems.append(f"{name}.bits: must be an integer from 2 to 16, got {bits!r:.40}")
        signed = entry.get("signed")
        if signed is not None and type(signed) is not bool:
            problems.append(f"{name}.signed: must be true or false, got {signed!r:.40}")
        if len(problems) == before:
            target = found.weights if is_weight else found.tensors
            target[layer if is_weight else name] = Given(scale, signed, bits)
    if problems:
        raise ConfigError("quantisation parameters are not valid: " + "; ".join(problems))
    return found


def _scale(name: str, value, channels: int | None, problems: list[str]):
    """A positive number, or `channels` of them where that is not None."""
    if isinstance(value, list) and channels is not None:
        if len(value) != channels:
            problems.append(f"{name}.scale: must have {channels} entries, got {len(value)}")
            return None
        values = value
    else:
        values = [value]
    for at, v in enumerate(values):
        good = type(v) in (int, float) and math.isfinite(v) and 1e-30 <= v <= 1e30
        if not good:
            where = f"{name}.scale" + (f"[{at}]" if isinstance(value, list) else "")
            problems.append(f"{where}: must be a number from 1e-30 to 1e30, got {v!r:.40}")
            return None
    return tuple(float(v) for v in values) if isinstance(value, list) else float(value)

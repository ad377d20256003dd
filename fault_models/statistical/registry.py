"""Models from configurations: a dict, or a TOML or JSON file, and back."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

from fsim.errors import ConfigError
from fsim.parse import nearest

from .compat import COMPAT, AwnasBitFlip
from .features import IBB, IBF, MiBB
from .model import FaultModel
from .parameters import choice
from .weights import AdSAF, AdSAFBits, LogNormalVariation, ReciprocalNormalVariation

MODELS: dict[str, type[FaultModel]] = {
    model.name: model
    for model in (
        *(MiBB, IBB, IBF, AdSAF, AdSAFBits),
        *(LogNormalVariation, ReciprocalNormalVariation, AwnasBitFlip),
    )
}
"""Name in a configuration -> class."""

MAX_FILE_BYTES = 1 << 20


def model_from_config(config: Mapping[str, object]) -> FaultModel:
    """The model that e.g. {"model": "mibb", "p_m": 1e-4} describes.

    Keys besides "model" are the fields of its class. "compat" names a mode of the
    reference implementation, which fixes the model and some of its parameters.
    Raises ConfigError for an unknown, missing or contradicting key or a value out
    of range.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"a fault model must be a table with the key 'model', got {str(config)[:80]!r}"
        )
    values = dict(config)
    if "compat" in values:
        mode = choice("compat", values.pop("compat"), COMPAT)
        for key, fixed in COMPAT[mode].items():
            if values.setdefault(key, fixed) != fixed:
                raise ConfigError(f"{key} must be {fixed!r} in {mode}, got {values[key]!r}")
    if "model" not in values:
        raise ConfigError(
            f"a fault model must have the key 'model' ({', '.join(MODELS)}) or 'compat', "
            f"got the keys {', '.join(map(str, values)) or 'none'}"
        )
    kind = MODELS[choice("model", values.pop("model"), MODELS)]
    fields = dataclasses.fields(kind)
    names = [field.name for field in fields]
    for key in values:
        if key not in names:
            raise ConfigError(
                f"a parameter of {kind.name} must be one of {', '.join(names)}, got "
                f"{str(key)[:80]!r}" + nearest(str(key), names)
            )
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in values:
            raise ConfigError(f"{kind.name} must be given {field.name}, got no such key")
    return kind(**values)


def config_of(model: FaultModel) -> dict[str, object]:
    """The configuration of a model, complete: `model_from_config` gives an equal one."""
    return {"model": model.name, **dataclasses.asdict(model)}


def load_models(path: str | Path) -> tuple[FaultModel, ...]:
    """The models of a .toml or .json file.

    The file is one model's table, or has the key "models" with a list of tables. Raises
    ConfigError, naming the file, for what is not valid.
    """
    path = Path(path)
    value = _read(path)
    tables = [value]
    if isinstance(value, dict) and "models" in value:
        tables = value["models"]
        extra = [key for key in value if key != "models"]
        if extra or not isinstance(tables, list) or not tables:
            raise ConfigError(
                f"a file with 'models' must have a list of tables there and no other key, "
                f"got {', '.join(extra) or str(tables)[:80]!r} ({path})"
            )
    try:
        return tuple(model_from_config(table) for table in tables)
    except ConfigError as error:
        raise ConfigError(f"{error} ({path})") from None


def _distinct(items: list[tuple[str, object]]) -> dict:
    """A JSON object whose keys differ: of two equal ones JSON would keep the last."""
    found = dict(items)
    if len(found) < len(items):
        raise ValueError("a key given twice")
    return found


def _read(path: Path) -> object:
    if path.suffix not in (".toml", ".json"):
        raise ConfigError(f"a fault configuration must be a .toml or .json file, got {path}")
    if not path.is_file():
        raise ConfigError(f"a fault configuration must be a file that exists, got {path}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"a fault configuration must be at most 1 MiB, got more ({path})")
    kind = path.suffix[1:].upper()
    try:
        text = path.read_text("utf-8")
        if kind == "TOML":
            return tomllib.loads(text)
        return json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"a fault configuration must be {kind}, got {error} ({path})") from None

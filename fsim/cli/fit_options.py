"""What the user of `fsim fit` states: options, and the YAML file that may hold them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fsim.cli.campaign_options import MAX_PLAN_BYTES, _loader
from fsim.errors import ConfigError
from fsim.parse import nearest, parse_assignments

FILE_KEYS = ("fit_per_mbit", "mbit", "rates", "duty", "occupancy", "derate", "bits", "lifetime",
             "mechanisms")  # fmt: skip
MECHANISM_KEYS = ("name", "components", "coverage", "fit", "self_coverage", "reported")
MBIT = {"decimal": 1_000_000, "binary": 1 << 20}


def number(value, what: str) -> float:
    """A number that was written as text or in a file; ConfigError for anything else."""
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{what} must be a number, got {str(value)[:60]!r}") from None


def named_numbers(items: Iterable[str], option: str) -> dict[str, float]:
    """NAME=NUMBER of a repeated option."""
    found = parse_assignments(items)
    return {name: number(value, f"{option} {name}") for name, value in found.items()}


def read_file(path: Path | None) -> dict:
    """Values of the keys FILE_KEYS of a YAML file; ConfigError for others."""
    if path is None:
        return {}
    import yaml

    if not path.is_file():
        raise ConfigError(f"a file of assumptions must exist, got {path}")
    if path.stat().st_size > MAX_PLAN_BYTES:
        raise ConfigError(f"a file of assumptions must be at most 1 MiB ({path})")
    try:
        value = yaml.load(path.read_text("utf-8"), _loader())
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        said = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise ConfigError(f"a file of assumptions must be YAML, got {said} ({path})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"a file of assumptions must hold key: value lines ({path})")
    for key in value:
        if key not in FILE_KEYS:
            raise ConfigError(
                f"{path} must have keys of {', '.join(FILE_KEYS)}, got {key!r}"
                + nearest(str(key), FILE_KEYS)
            )
    for key in ("rates", "occupancy", "derate", "bits"):
        given = value.get(key, {})
        if not isinstance(given, dict):
            raise ConfigError(f"{key} of {path} must be name: number lines, got {given!r}"[:200])
        value[key] = {str(n): number(v, f"{key} of {n}") for n, v in given.items()}
    if not isinstance(value.get("mechanisms", []), list):
        raise ConfigError(f"mechanisms of {path} must be a list")
    if value.get("mbit", "decimal") not in MBIT:
        raise ConfigError(f"mbit of {path} must be decimal or binary, got {value['mbit']!r}")
    return value


def mechanisms_of(file: dict, options: Iterable[str]) -> list:
    """The safety mechanisms of a file and of options, as `fsim.simulator.safety.Mechanism`s.

    An option is key=value,...: components are joined by +.
    """
    found = [_mechanism(one) for one in file.get("mechanisms", [])]
    for text in options:
        values = parse_assignments(text.split(","))
        if "components" in values:
            values["components"] = [name.strip() for name in values["components"].split("+")]
        found.append(_mechanism(values))
    return found


def _mechanism(values):
    from fsim.simulator.safety import COVERAGES, Mechanism

    if not isinstance(values, dict):
        raise ConfigError(f"a safety mechanism must be key: value lines, got {values!r}"[:200])
    for key in values:
        if key not in MECHANISM_KEYS:
            raise ConfigError(
                f"a key of a safety mechanism must be one of {', '.join(MECHANISM_KEYS)}, "
                f"got {key!r}" + nearest(str(key), MECHANISM_KEYS)
            )
    for key in MECHANISM_KEYS[:3]:
        if key not in values:
            raise ConfigError(f"a safety mechanism must have a {key}, got {sorted(values)}")
    name, components = str(values["name"]), values["components"]
    if not isinstance(components, list):
        raise ConfigError(f"components of {name} must be a list of names, got {components!r}")
    shares = {}
    for key in ("coverage", "self_coverage", "reported"):
        if key in values:
            given = values[key]
            word = COVERAGES.get(given) if isinstance(given, str) else None
            shares[key] = number(given, f"{key} of {name}") if word is None else word
    rate = number(values.get("fit", 0.0), f"fit of {name}")
    return Mechanism(name, tuple(str(c) for c in components), rate=rate, **shares)

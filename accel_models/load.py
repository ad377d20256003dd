"""Accelerator descriptions from presets and from users' files.

A file is read defensively: it must be regular, small, plain text, without
aliases, duplicate keys or deep nesting, and everything that is wrong with its
content is reported in one error.
"""

from __future__ import annotations

import difflib
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

import yaml

from fsim.accel_models.accel import MEMORIES, Accel
from fsim.accel_models.families import broken_plugins, family, plugin_names
from fsim.accel_models.schema import BUFFER_OPTIONS, BufferPart, Description, check
from fsim.accel_models.schema import NAME as _NAME
from fsim.errors import ConfigError

PRESETS = Path(__file__).resolve().parent / "presets"

MAX_BYTES = 1_000_000
MAX_DEPTH = 12
SUFFIXES = (".yaml", ".yml", ".toml")

OVERRIDES: dict[str, str] = {
    "rows": "array.rows",
    "cols": "array.cols",
    "operand_bits": "bits.operand",
    "product_bits": "bits.product",
    "acc_bits": "bits.acc",
    "overflow": "overflow",
    "unsigned_acts": "unsigned_acts",
    **{
        f"buffers.{memory}.{key}": f"buffers.{memory}.{key}"
        for memory in MEMORIES
        for key in ("kib", *BUFFER_OPTIONS)
    },
}
"""Names that `overrides` and `--set` take -> key of the description; `parameters.NAME` too."""


def presets() -> dict[str, Path]:
    """Name -> file of every preset, sorted; those of plug-ins too, fsim's own names first.

    A plug-in that does not load has none: `broken_plugins` says why.
    """
    found = {path.stem: path for path in PRESETS.glob("*.yaml")}
    for name in plugin_names():
        try:
            folder = family(name).presets
        except ConfigError:
            continue
        for path in sorted(Path(folder).glob("*.yaml")) if folder else ():
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def list_accels() -> list[str]:
    """Names of the presets, sorted."""
    return list(presets())


def load_accel(
    name_or_path: str | Path,
    dataflow: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Accel:
    """The accelerator of a preset's name or of a user's .yaml or .toml file.

    dataflow   one of the family's, instead of the description's own
    overrides  keys of OVERRIDES -> value; text is read as YAML would read it,
               so values of the command line can be passed on as they are.
               The source of an overridden number becomes "set by the user".

    ConfigError lists every problem with file and key.
    """
    return load_description(name_or_path, dataflow, overrides).to_accel()


def load_description(
    name_or_path: str | Path,
    dataflow: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Description:
    """As `load_accel`; the description that the accelerator is made of."""
    path, label = _find(name_or_path)
    return read_description(path, label, dataflow, overrides)


def description_yaml(description: Description) -> str:
    """The text of a .yaml file that reads as this description again."""
    data = description.model_dump()
    for key in ("about", "parameters", "sources"):
        if not data[key]:
            del data[key]
    fields = BufferPart.model_fields
    for buffer in data["buffers"].values():
        if buffer["kib"].is_integer():
            buffer["kib"] = int(buffer["kib"])
        for key in BUFFER_OPTIONS[1:]:
            if buffer[key] == fields[key].default:
                del buffer[key]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=88)


def read_description(
    path: Path,
    label: str,
    dataflow: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Description:
    """The checked description in `path`; messages call the file `label`."""
    data = _read(path, label)
    changed = _apply(data, dataflow, overrides or {}) if isinstance(data, dict) else {}
    description, problems = check(data)
    if description is None:
        lines = []
        for key, text in problems:
            origin = f"{label}: {key}" if key else label
            if key in changed:
                origin = f"{changed[key]} on {label}: {key}"
            lines.append(f"{text} ({origin})")
        raise ConfigError("\n".join(lines))
    return description


def _find(name_or_path: str | Path) -> tuple[Path, str]:
    """(path, what messages call it) of a preset or a user's file."""
    text = str(name_or_path)
    own = PRESETS / f"{text}.yaml"
    if isinstance(name_or_path, str) and _NAME.fullmatch(text):
        path = own if own.is_file() else presets().get(text)
        if path is not None:
            return path, f"{text}.yaml"
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or path.suffix in SUFFIXES or len(path.parts) > 1:
        return path, text
    names = list_accels()
    near = difflib.get_close_matches(text, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    # Who asks for the machine of a plug-in that does not load must hear why.
    broken = [f"; {problem}" for problem in broken_plugins().values()]
    raise ConfigError(
        f"accelerator must be one of {', '.join(names)} or the path of a .yaml or .toml file, "
        f"got {text!r}{hint}{''.join(broken)}"
    )


def _read(path: Path, label: str) -> object:
    """The plain values a description file holds."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raw = None
        else:
            with path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot read the accelerator description: {reason} ({label})") from None
    if raw is None:
        raise ConfigError(f"an accelerator description must be a regular file ({label})")
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            f"an accelerator description must be at most {MAX_BYTES} bytes, got more ({label})"
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"an accelerator description must be UTF-8 text, got byte "
            f"0x{raw[error.start]:02x} at offset {error.start} ({label})"
        ) from None
    if path.suffix == ".toml":
        return _read_toml(text, label)
    return _read_yaml(text, label)


def _read_toml(text: str, label: str) -> object:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"the file must be valid TOML: {reason} ({label})") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that also refuses aliases, deep nesting and duplicate keys.

    Aliases let a few lines stand for billions of values, nesting exhausts the
    interpreter's stack, and of two equal keys YAML would silently keep the last.
    """

    depth = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases are not allowed", self.peek_event().start_mark
            )
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"nested deeper than {MAX_DEPTH}", self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key!r} is given twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str, label: str) -> object:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: builds plain values only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
        reason = f"{error.problem} at {where}"
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
    raise ConfigError(f"the file must be valid YAML: {reason} ({label})")


def _apply(data: dict, dataflow: str | None, overrides: Mapping[str, object]) -> dict[str, str]:
    """Write dataflow and overrides into `data`; key path -> who changed it."""
    changed = {}
    if dataflow is not None:
        data["dataflow"] = dataflow
        changed["dataflow"] = f"dataflow={dataflow}"
    unknown = [key for key in overrides if _path(key) is None]
    if unknown:
        raise ConfigError("\n".join(_unknown_override(key) for key in unknown))
    for key, value in overrides.items():
        path = _path(key)
        *parents, last = path.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                break  # the check will say that this part must be a mapping
        else:
            place[last] = _value(value)
            changed[path] = f"{key}={value}"
            sources = data.setdefault("sources", {})
            if isinstance(sources, dict):
                sources[path] = f"set by the user ({key}={value})"
    return changed


def _path(key: object) -> str | None:
    """The key of the description that an override changes; a family's own by their name."""
    if isinstance(key, str) and key.startswith("parameters."):
        return key
    return OVERRIDES.get(key)


def _unknown_override(key: object) -> str:
    near = difflib.get_close_matches(str(key), OVERRIDES, 1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"an override must be one of {', '.join(OVERRIDES)}, got {key!r}{hint}"


def _value(value: object) -> object:
    """A command-line text as the value it stands for; anything else unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    for convert in (int, float):
        try:
            return convert(text) if "_" not in text else text
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)

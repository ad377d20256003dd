"""Genotype files: TOML or JSON that a person can read and edit.

    name = "example"

    [space]
    primitives = "adsaf"        # or a list of operations
    layout = "N N R N N R N N"

    [normal]
    2 = ["relu_conv_bn_3x3 from 0", "conv_1x1 from 1"]
    ...

Keys of [space] are the fields of CellSpace, each with the paper's value if left out; a node's
key is its number. JSON has the same keys.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
from pathlib import Path

from fsim.errors import ConfigError
from fsim.files import atomic_write
from fsim.parse import nearest

from .definition import ADSAF_PRIMITIVES, CELL_NAMES, SPACES, CellSpace
from .genotype import (
    INPUT_NODES,
    Architecture,
    Edge,
    Genotype,
    Step,
    cell_problems,
    text_problems,
)

PACKAGED = Path(__file__).parent / "genotypes"
"""Genotypes that come with the package."""

_MOST_BYTES = 1 << 20
_SUFFIXES = (".toml", ".json")
_KEYS = ("name", "source", "space", *CELL_NAMES.values())
_SPACE_KEYS = tuple(field.name for field in dataclasses.fields(CellSpace))
_EDGE = re.compile(r"\s*(\S+)\s+from\s+([0-9]{1,9})\s*")


def packaged_genotypes() -> list[str]:
    """Names of the genotypes that come with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.toml"))


def load_architecture(name_or_path: str | os.PathLike) -> Architecture:
    """A genotype by name (`packaged_genotypes`) or from a .toml or .json file.

    ConfigError, in one line, lists everything that is wrong with the file.
    """
    name = os.fspath(name_or_path)
    if name in packaged_genotypes():
        return read_architecture(PACKAGED / f"{name}.toml")
    if Path(name).suffix not in _SUFFIXES:
        names = packaged_genotypes()
        raise ConfigError(
            f"genotype must be one of {', '.join(names)} or a {' or '.join(_SUFFIXES)} file, "
            f"got {name!r}{nearest(name, names)}"
        )
    return read_architecture(Path(name))


def read_architecture(path: str | os.PathLike) -> Architecture:
    """The architecture in a .toml or .json file; ConfigError as `load_architecture`."""
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"a genotype file must be {' or '.join(_SUFFIXES)}, got {path}")
    if not path.is_file():
        raise ConfigError(f"genotype file {path} does not exist or is not a file")
    with open(path, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: a genotype file must have at most {_MOST_BYTES} bytes")
    try:
        text = content.decode()
        tree = tomllib.loads(text) if path.suffix == ".toml" else _loads_json(text)
    except (ValueError, RecursionError) as error:  # both formats' errors are ValueErrors
        raise ConfigError(f"{path} is not readable {path.suffix[1:].upper()}: {error}") from None
    try:
        return _architecture(tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def write_architecture(path: str | os.PathLike, architecture: Architecture) -> None:
    """Write a .toml or .json file that `read_architecture` gives back as it was."""
    suffix = Path(path).suffix
    if suffix not in _SUFFIXES:
        raise ConfigError(f"a genotype file must be {' or '.join(_SUFFIXES)}, got {path}")
    text = _to_toml(architecture) if suffix == ".toml" else _to_json(architecture)
    with atomic_write(path) as file:
        file.write(text.encode())


# --- reading -----------------------------------------------------------------------------


def _loads_json(text: str):
    def once(pairs):
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError(f"a key stands twice among {', '.join(keys)[:200]}")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def _architecture(tree) -> Architecture:
    if not isinstance(tree, dict):
        raise ConfigError(f"must be a table with keys {', '.join(_KEYS)}")
    problems: list[str] = []
    _refuse_unknown(tree, _KEYS, "", problems)
    name, source = tree.get("name", ""), tree.get("source", "")
    problems += text_problems(name, source)
    space = _space(tree.get("space", {}), problems)
    cells = {}
    for kind, cell in CELL_NAMES.items():
        # Where an input cannot be read, this one stands for it: it is valid, so that the
        # mistake is named once.
        filler = Edge((space.primitives if space else ADSAF_PRIMITIVES)[0], 0)
        cells[cell] = _cell(cell, tree.get(cell, {}), filler, problems)
        if space and cells[cell] is not None:
            problems += cell_problems(kind, cells[cell], space)
    if problems:
        raise ConfigError("; ".join(problems))
    return Architecture(Genotype(**cells), space, name, source)


def _refuse_unknown(table: dict, known: tuple[str, ...], where: str, problems: list[str]) -> None:
    for key in table:
        if key not in known:
            problems.append(
                f"{where}key must be one of {', '.join(known)}, got {key[:40]!r}"
                + nearest(key[:40], known)
            )


def _space(table, problems: list[str]) -> CellSpace | None:
    if not isinstance(table, dict):
        problems.append(f"space must be a table, got {type(table).__name__}")
        return None
    _refuse_unknown(table, _SPACE_KEYS, "space: ", problems)
    values = {key: value for key, value in table.items() if key in _SPACE_KEYS}
    named = values.get("primitives")
    if isinstance(named, str):
        if named in SPACES:
            # The set's own preprocessing, unless the file names another.
            values = {"preprocess": SPACES[named].preprocess} | values
            values["primitives"] = SPACES[named].primitives
        else:
            problems.append(
                f"space: primitives must be a list or one of {', '.join(SPACES)}, "
                f"got {named[:40]!r}{nearest(named[:40], SPACES)}"
            )
            return None
    elif isinstance(named, list):
        values["primitives"] = tuple(
            item if isinstance(item, str) else str(item)[:40] for item in named
        )
    if isinstance(values.get("layout"), str):
        values["layout"] = values["layout"].replace(" ", "")
    try:
        return CellSpace(**values)
    except ConfigError as error:
        problems.append(f"space: {error}")
        return None


def _cell(name: str, table, filler: Edge, problems: list[str]) -> tuple[Step, ...] | None:
    """The steps of one kind of cell; None if not even their number is known."""
    if not isinstance(table, dict):
        problems.append(f"{name} must be a table of nodes, got {type(table).__name__}")
        return None
    nodes = [str(INPUT_NODES + i) for i in range(len(table))]
    if set(table) != set(nodes):
        problems.append(
            f"{name}: nodes must be numbered from {nodes[0]} without gaps, "
            f"got {', '.join(key[:20] for key in table)[:200]}"
        )
        return None
    return tuple(
        _step(f"{name} cell, node {node}", table[node], filler, problems) for node in nodes
    )


def _step(where: str, inputs, filler: Edge, problems: list[str]) -> Step:
    if not isinstance(inputs, list):
        problems.append(f'{where}: must be a list like ["conv_1x1 from 0", "none from 1"]')
        return (filler, filler)
    edges = []
    for item in inputs:
        match = _EDGE.fullmatch(item) if isinstance(item, str) else None
        if not match:
            problems.append(
                f"{where}: an input must be like 'conv_1x1 from 0', got {str(item)[:40]!r}"
            )
        edges.append(Edge(match[1], int(match[2])) if match else filler)
    return tuple(edges)


# --- writing -----------------------------------------------------------------------------


def as_tree(architecture: Architecture) -> dict:
    """What a genotype file says of the architecture, as tables, lists, texts and numbers."""
    space = dataclasses.asdict(architecture.space)
    names = [name for name, known in SPACES.items() if known.primitives == space["primitives"]]
    space["primitives"] = names[0] if names else list(space["primitives"])
    space["layout"] = " ".join(space["layout"])
    tree = {"name": architecture.name, "source": architecture.source, "space": space}
    for name in CELL_NAMES.values():
        steps = getattr(architecture.genotype, name)
        tree[name] = {
            str(node): [str(edge) for edge in step] for node, step in enumerate(steps, INPUT_NODES)
        }
    return tree


def _to_json(architecture: Architecture) -> str:
    return json.dumps(as_tree(architecture), indent=2, ensure_ascii=False) + "\n"


def _to_toml(architecture: Architecture) -> str:
    lines = []
    for key, value in as_tree(architecture).items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]"]
            if key == CELL_NAMES["N"]:
                lines.append("# node = the two inputs it sums; 0 and 1 are the cell's own inputs")
            lines += [f"{name} = {_toml_value(entry)}" for name, entry in value.items()]
        else:
            lines.append(f"{key} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def _toml_value(value) -> str:
    # Strings here are printable, of which JSON escapes only " and \, as TOML does.
    return json.dumps(value, ensure_ascii=False)

"""The form of an accelerator description, and every rule it must keep.

`problems` returns all that is wrong with a description at once, each as
"what must hold, what was got" and the key it is about. Reading files is the
matter of `load.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fsim.accel_models.accel import MEMORIES, Accel, Buffer
from fsim.accel_models.families import Family, family, family_names

NUMBERS = (
    "array.rows",
    "array.cols",
    "bits.operand",
    "bits.product",
    "bits.acc",
    *(f"buffers.{memory}.kib" for memory in MEMORIES),
)
"""Keys that hold a number; each preset names where every one of them is from."""

BUFFER_OPTIONS = (
    "double_buffered",
    "protection",
    "word_bits",
    "banks",
    "interleave",
    "columns",
    "scrub_cycles",
    "scrub_inferences",
)
"""Keys of a buffer that may be left out."""

CHOICES = (
    "dataflow",
    "overflow",
    "unsigned_acts",
    *(f"buffers.{memory}.{key}" for memory in MEMORIES for key in BUFFER_OPTIONS),
)
"""Keys without a number that may name a source too."""

MAX_ACC_BITS = 48
"""Kernels add in int64: 48 bits leave room for 2^15 summands of full scale."""

MAX_KIB = 1 << 20

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a machine may be called."""

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def _yaml_float(value: object) -> object:
    """YAML 1.1 reads 1e3 as text, since it wants a point; take it as the number it is."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value


def _plain_text(value: object) -> object:
    """Refuse control characters: descriptions are printed on terminals."""
    if isinstance(value, str) and not all(c.isprintable() or c in "\n\t" for c in value):
        raise ValueError("must be printable text")
    return value


Text = Annotated[str, Field(min_length=1, max_length=2000), BeforeValidator(_plain_text)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ArrayPart(_Part):
    """PEs of the array."""

    rows: int = Field(ge=1, le=1024)
    cols: int = Field(ge=1, le=1024)


class BitsPart(_Part):
    """Widths of an operand code, of the multiplier's output and of a partial sum."""

    operand: int = Field(ge=2, le=16)
    product: int = Field(ge=4, le=MAX_ACC_BITS)
    acc: int = Field(ge=4, le=MAX_ACC_BITS)


class BufferPart(_Part):
    """One on-chip memory: see `accel.Buffer`, which has the same keys."""

    kib: Annotated[float, BeforeValidator(_yaml_float)] = Field(
        gt=0, le=MAX_KIB, allow_inf_nan=False
    )
    double_buffered: bool = False
    protection: Literal["none", "parity", "secded"] = "none"
    word_bits: int = Field(default=64, ge=4, le=64)
    banks: int = Field(default=1, ge=1, le=1024)
    interleave: int = Field(default=1, ge=1, le=64)
    columns: int | None = Field(default=None, ge=4, le=1 << 16)
    scrub_cycles: int | None = Field(default=None, ge=1, le=1 << 48)
    scrub_inferences: int | None = Field(default=None, ge=1, le=1 << 31)


class BuffersPart(_Part):
    """The three on-chip tensor memories."""

    acts: BufferPart
    weights: BufferPart
    psums: BufferPart


class Description(_Part):
    """An accelerator description as its file holds it."""

    name: Text
    family: Text
    about: Text = ""
    dataflow: Text
    array: ArrayPart
    bits: BitsPart
    overflow: Literal["wrap", "saturate"] = "wrap"
    unsigned_acts: bool = False
    buffers: BuffersPart
    parameters: dict[str, int | float] = Field(default_factory=dict)
    sources: dict[str, Text] = Field(default_factory=dict)

    def to_accel(self) -> Accel:
        kind = family(self.family)
        return Accel(
            name=self.name,
            family=self.family,
            dataflow=self.dataflow,
            dataflows=kind.dataflows,
            rows=self.array.rows,
            cols=self.array.cols,
            operand_bits=self.bits.operand,
            product_bits=self.bits.product,
            acc_bits=self.bits.acc,
            overflow=self.overflow,
            unsigned_acts=self.unsigned_acts,
            buffers={
                memory: Buffer(**getattr(self.buffers, memory).model_dump()) for memory in MEMORIES
            },
            parameters={name: entry[0] for name, entry in kind.parameters.items()}
            | dict(self.parameters),
            sources=dict(self.sources),
        )


Problem = tuple[str, str]
"""(key path, what must hold and what was got)."""


def check(data: object) -> tuple[Description | None, list[Problem]]:
    """The checked description, or None and every problem found.

    data  what the YAML or TOML reader returned

    Rules between keys are checked where the keys they need are valid, so that
    one bad key does not hide the problems of the others.
    """
    if not isinstance(data, dict):
        return None, [("", f"an accelerator description must be a mapping, got {_show(data)}")]
    description, found = None, []
    try:
        description = Description.model_validate(data)
    except ValidationError as error:
        found = [_problem(item) for item in error.errors(include_url=False)]
    bad = {key for key, _ in found}
    found += [(key, text) for key, text in _cross_checks(data, bad) if (key, text) not in found]
    return (None, found) if found else (description, [])


def _show(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        return "a number of thousands of digits"
    except RecursionError:
        return "a value nested deeply"
    return text if len(text) <= 60 else text[:57] + "..."


def _problem(item: dict) -> Problem:
    """One pydantic error in the words of this project."""
    path = ".".join(str(part) for part in item["loc"])
    got = _show(item["input"])
    kind, context = item["type"], item.get("ctx", {})
    bounds = {
        "greater_than_equal": ("ge", ">="),
        "greater_than": ("gt", ">"),
        "less_than_equal": ("le", "<="),
        "less_than": ("lt", "<"),
    }
    if kind == "missing":
        return path, f"{path} must be given"
    if kind == "extra_forbidden":
        return path, f"{path} is not a key of a description"
    if kind in bounds:
        key, sign = bounds[kind]
        return path, f"{path} must be {sign} {_number(context[key])}, got {got}"
    if kind == "literal_error":
        return path, f"{path} must be {context['expected']}, got {got}"
    wanted = {
        "int_type": "a whole number",
        "int_parsing_size": "a whole number of sensible size",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "string_too_short": "text",
        "string_too_long": "text of at most 2000 characters",
        "value_error": "printable text",
        "dict_type": "a mapping",
        "model_type": "a mapping",
    }.get(kind)
    if wanted is None:
        return path, f"{path}: {item['msg']}, got {got}"
    return path, f"{path} must be {wanted}, got {got}"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _cross_checks(data: dict, bad: set[str]):
    """Yield the problems that concern several keys; skip those with a bad key."""

    def get(path: str):
        value: object = data
        for part in path.split("."):
            if path in bad or not isinstance(value, dict) or part not in value:
                return None
            value = value[part]
        return value

    name = get("name")
    if isinstance(name, str) and not NAME.fullmatch(name):
        rule = "1 to 64 letters, digits, dots, dashes and underscores"
        yield "name", f"name must be {rule}, got {_show(name)}"

    kind = None
    named = get("family")
    if isinstance(named, str) and named not in family_names():
        yield "family", f"family must be one of {', '.join(family_names())}, got {_show(named)}"
    elif isinstance(named, str):
        kind = family(named)
        yield from _family_checks(kind, get, data)

    operand, product, acc = get("bits.operand"), get("bits.product"), get("bits.acc")
    short = kind is not None and kind.short_products
    if operand is not None and product is not None and product < 2 * operand and not short:
        rule = f">= 2 x bits.operand = {2 * operand} so that it holds every product"
        yield "bits.product", f"bits.product must be {rule}, got {product}"
    if product is not None and acc is not None and acc < product:
        yield "bits.acc", f"bits.acc must be >= bits.product = {product}, got {acc}"

    rows, cols = get("array.rows"), get("array.cols")
    for memory in MEMORIES:
        key = f"buffers.{memory}.kib"
        kib = _yaml_float(get(key))
        width = acc if memory == "psums" else operand
        if kib is None:
            continue
        if float(kib) * 1024 != int(kib * 1024):
            yield key, f"{key} must be a whole number of bytes, got {kib} KiB"
        elif None not in (rows, cols, width):
            doubled = get(f"buffers.{memory}.double_buffered") is True
            edge = max(rows, cols) * width
            usable = Buffer(kib=float(kib), double_buffered=doubled).usable_bits
            if usable < edge:
                half = "half of " if doubled else ""
                rule = f"hold one word for every PE of the array's longer edge, {edge} bits"
                yield key, f"{half}{key} must {rule}, got {kib} KiB = {usable} usable bits"
        yield from _buffer_checks(memory, get, width)

    sources = get("sources")
    for key in sources if isinstance(sources, dict) else ():
        if key not in NUMBERS + CHOICES and not str(key).startswith("parameters."):
            text = f"sources must name keys of the description, got {_show(key)}"
            yield f"sources.{_show(key)}", text


def _buffer_checks(memory: str, get, width: int | None):
    """Yield what memory words, rows and scrubbing of a buffer cannot be."""
    at = f"buffers.{memory}"
    given = {key: get(f"{at}.{key}") for key in BUFFER_OPTIONS}
    known = {key: value for key, value in given.items() if value is not None}
    if any(isinstance(value, bool) != (key == "double_buffered") for key, value in known.items()):
        return  # said by the check of its type
    buffer = Buffer(float(get(f"{at}.kib")), **known)
    if width is not None and buffer.word_bits < width:
        key = f"{at}.word_bits"
        rule = f">= {width}, the width of what {memory} holds"
        yield key, f"{key} must be {rule}, got {buffer.word_bits}"
    if buffer.columns is not None and buffer.columns % (buffer.word_bits * buffer.interleave):
        key = f"{at}.columns"
        words = buffer.word_bits * buffer.interleave
        rule = f"a multiple of word_bits x interleave = {words}"
        yield key, f"{key} must be {rule}, got {buffer.columns}"
    elif buffer != Buffer(buffer.kib, buffer.double_buffered) and not buffer.memory_words:
        row = buffer.banks * buffer.row_words * buffer.word_bits
        rule = f"hold one row in every bank, {row} bits"
        yield f"{at}.banks", f"{at} must {rule}, got {buffer.usable_bits} usable bits"
    scrubs = [key for key in ("scrub_cycles", "scrub_inferences") if key in known]
    if len(scrubs) > 1:
        key = f"{at}.scrub_inferences"
        yield key, f"{at} must have one scrub interval, got {' and '.join(scrubs)}"
    elif scrubs and buffer.protection != "secded":
        key = f"{at}.{scrubs[0]}"
        yield key, f"{key} must go with protection secded, got {buffer.protection}"


def _family_checks(kind: Family, get, data: dict):
    """Yield what a description asks of its family that no machine of it can be."""
    for key, choices in (
        ("dataflow", kind.dataflows),
        ("overflow", kind.overflow),
        ("unsigned_acts", kind.unsigned_acts),
    ):
        value = get(key)
        if value is not None and value not in choices:
            wanted = ", ".join(_plain(choice) for choice in choices)
            many = "one of " if len(choices) > 1 else ""
            yield key, f"{key} of family {kind.name} must be {many}{wanted}, got {_plain(value)}"
    given = data.get("parameters")
    for name, value in given.items() if isinstance(given, dict) else ():
        key = f"parameters.{name}"
        if name not in kind.parameters:
            wanted = ", ".join(kind.parameters) or "none"
            yield key, f"parameters of family {kind.name} must be of {wanted}, got {_show(name)}"
            continue
        default, least, most = kind.parameters[name]
        if get(key) is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue  # said by the check of its type
        whole = isinstance(default, int)
        if not least <= value <= most or (whole and not isinstance(value, int)):
            sort = "a whole number" if whole else "a number"
            yield key, f"{key} must be {sort} in {least}..{most}, got {_show(value)}"

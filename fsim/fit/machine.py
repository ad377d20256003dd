"""The machine of a campaign, from its file: which components it has, and how many bits each."""

from __future__ import annotations

from fsim.accel_models.accel import CHECK, Accel, Buffer
from fsim.accel_models.schema import check
from fsim.campaign.results import Results
from fsim.errors import FsimError, TraceError
from fsim.types import Component

KIB_BITS = 8192
"""Bits of a KiB."""


def machine_of(results: Results) -> Accel:
    """The machine that a campaign ran on; TraceError if the file describes none."""
    try:
        described = dict(results.task["accel"])
        bits = {key: described[f"{key}_bits"] for key in ("operand", "product", "acc")}
        keep = ("name", "family", "dataflow", "overflow", "unsigned_acts", "buffers", "sources")
        data = {key: described[key] for key in keep}
        data |= {"about": "stored in a trace", "bits": bits}
        data["parameters"] = described.get("parameters", {})
        data["array"] = {"rows": described["rows"], "cols": described["cols"]}
        _, problems = check(data)
        if problems:
            raise ValueError(problems[0][1])
        described["buffers"] = {k: Buffer(**v) for k, v in described["buffers"].items()}
        described["dataflows"] = tuple(described["dataflows"])
        found = Accel(**described)
        names = [component.name for component in found.components]
    except (FsimError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TraceError(f"{results.path} must describe its machine: {error}") from None
    if names != results.task["components"]:
        raise TraceError(
            f"{results.path} must name the components of {found.name}, {', '.join(names)}, "
            f"got {', '.join(results.task['components'])}"
        )
    return found


def words_of(accel: Accel, component: Component) -> int:
    """Words of a register or net that the whole machine has at one time."""
    return accel.elements(component)


def bits_of(accel: Accel, component: Component) -> int | None:
    """Bits of a component on the machine; None for a memory whose size is not described.

    A memory counts with its whole capacity, both halves of a double buffer; check bits are
    those of all of its words.
    """
    if component.kind != "memory":
        return words_of(accel, component) * component.bits
    buffer = accel.buffers.get(data_of(component.name))
    if buffer is None:
        return None
    data = int(buffer.kib * KIB_BITS)
    if component.name in accel.buffers:
        return data
    return -(-data // buffer.word_bits) * buffer.check_bits


def data_of(memory: str) -> str:
    """The memory whose words a memory's bits belong to: of check bits the one they check."""
    return memory.removesuffix(CHECK)

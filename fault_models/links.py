"""Faults of the links between PEs: the wires that carry operands and sums to the neighbour.

A faulty link gives the receiver a wrong value; what the sender does with its own is right. On
these machines every link ends in a register of the receiver or begins in one of the sender
that nobody else reads, so that its faults are rows on those registers, exactly:

moving operand
    The receiver's register captures the link at every clock edge: a wire that is wrong at edge
    t makes the register wrong after edge t, and one that is stuck makes it stuck.
resident operand (weight and input stationary)
    The receiver captures the link only at edges that load. A wire wrong at such an edge is a
    STATE row; one that is wrong at another edge is not read and gives no row. A wire stuck for
    good is the receiver's register stuck: a mask of stuck bits acts the same once or often.
partial sum (weight and input stationary)
    The link from the PE above is read at edge t, when it shows what the sender's register
    holds after edge t - 1, which nothing else reads: a LEVEL row on it, one cycle earlier.

Only between PEs: what enters at the edges of the array and what leaves at its bottom are no
links. Proved against an array with wires of their own in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsim.errors import FaultError
from fsim.types import FOREVER, LEVEL, STATE

from .parameters import one_of, parameter, within
from .rows import flip_rows, spread_masks

_SITE = (5 << 20) + (5 << 16)  # random stream of this family

KINDS = ("transient", "stuck0", "stuck1", "intermittent")


@dataclass(frozen=True)
class Link:
    """The links of one kind on one machine.

    name       what they carry, as the user says it
    registers  components that a fault becomes rows of: all that one wire feeds, or the sender
    across     they lead to the next column; else to the next row
    reads      "always", "loading" or "sender": see the module
    """

    name: str
    registers: tuple[str, ...]
    across: bool
    reads: str


_SYSTOLIC = {
    "os": (
        Link("ifmap", ("ifmap",), True, "always"),
        Link("filter", ("filter",), False, "always"),
    ),
    "ws": (
        Link("ifmap", ("ifmap",), True, "always"),
        Link("filter", ("filter",), False, "loading"),
        Link("psum", ("psum",), False, "sender"),
    ),
    "is": (
        Link("filter", ("filter",), True, "always"),
        Link("ifmap", ("ifmap",), False, "loading"),
        Link("psum", ("psum",), False, "sender"),
    ),
}
# The 4-stage PE latches x (and, output stationary, w) twice from one wire; its other links, and
# all but the activations of a Gemmini mesh, are captured under control and are not mapped here.
_PIPELINED = {
    "os": (
        Link("ifmap", ("s1_x", "x_old"), True, "always"),
        Link("filter", ("s1_w", "w_old"), False, "always"),
    ),
    "ws": (Link("ifmap", ("s1_x", "x_old"), True, "always"),),
}
_GEMMINI = {flow: (Link("ifmap", ("a",), True, "always"),) for flow in ("os", "ws")}
_FAMILIES = {"systolic": _SYSTOLIC, "pipelined": _PIPELINED, "gemmini": _GEMMINI}


def links_of(accel) -> tuple[Link, ...]:
    """The links of a machine whose faults are rows; FaultError if none are known."""
    found = _FAMILIES.get(accel.family, {}).get(accel.dataflow, ())
    if not found:
        raise FaultError(
            f"link faults need a machine of {', '.join(_FAMILIES)}, got family {accel.family!r} "
            f"({accel.dataflow})"
        )
    return found


@dataclass(frozen=True)
class LinkFault:
    """One fault of one wire of a link: for each image, or (stuck) for all of them.

    Uniform over wires (bits of all links of the kind) and, where it does not last, over the
    cycles of one image's schedule of the chosen layers. A transient inverts the wire in one
    cycle; an intermittent fault holds it at 1 for `duration` cycles, at most to the layer's end.
    """

    kind: str = parameter("transient, stuck0, stuck1 or intermittent (at 1)", "transient")
    net: str = parameter("what the link carries: ifmap, filter, psum or any", "any")
    duration: int = parameter("cycles of an intermittent fault", 16)

    name = "link"
    lasting = False

    def __post_init__(self):
        one_of(self.kind, KINDS, "kind")
        one_of(self.net, ("any", "ifmap", "filter", "psum"), "net")
        within(self.duration, 1, 1 << 40, "duration")

    @property
    def permanent(self) -> bool:
        """Whether the fault is a defect of the machine."""
        return self.kind in ("stuck0", "stuck1")

    @property
    def unit(self) -> str:
        """What is independent: a permanent fault is one for all images of its trial."""
        return "trial" if self.permanent else "image"

    def _places(self, space):
        """(link, its sites' first register, cycles, links): one for each link and layer."""
        found = []
        by_name: dict[str, list] = {}
        for site in space.registers:
            by_name.setdefault(site.component_name, []).append(site)
        for link in links_of(space.accel):
            if self.net not in ("any", link.name):
                continue
            rows, cols = space.accel.rows, space.accel.cols
            count = rows * (cols - 1) if link.across else (rows - 1) * cols
            sites = by_name.get(link.registers[0], [])
            for site in sites[:1] if self.permanent else sites:
                found.append((link, site, 1 if self.permanent else site.cycles, count))
        if not any(count for *_, count in found):
            raise FaultError(
                f"a link fault needs links of {self.net} between PEs among the chosen sites and "
                f"layers of {space.accel.name} ({space.accel.dataflow}), {space.accel.rows} x "
                f"{space.accel.cols}"
            )
        return found

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one trial; the rows of an image's fault share an event."""
        places = self._places(space)
        images = np.array([-1]) if self.permanent else np.asarray(images, np.int64)
        sizes = [site.bits * cycles * count for _, site, cycles, count in places]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        position = draws.sites(int(offsets[-1]), 1, _SITE, trial, images)[:, 0]
        which = np.searchsorted(offsets, position, "right") - 1
        parts = [flip_rows(0)]
        for number, place in enumerate(which.tolist()):
            link, site, _, count = places[place]
            rest, bit = divmod(int(position[number] - offsets[place]), site.bits)
            cycle, wire = divmod(rest, count)
            rows = self._rows_of(space, link, site, bit, cycle, wire)
            rows["image"], rows["event"] = images[number], number
            parts.append(rows)
        rows = np.concatenate(parts)
        rows["trial"] = trial
        return rows

    def _rows_of(self, space, link: Link, site, bit: int, cycle: int, wire: int) -> np.ndarray:
        cols = space.accel.cols
        row, col = divmod(wire, cols - 1) if link.across else divmod(wire, cols)
        if link.reads != "sender":  # the receiver's register
            row, col = (row, col + 1) if link.across else (row + 1, col)
        signed = site.signed or self.permanent
        mask = int(spread_masks(np.int64(1) << np.int64(bit), site.bits, signed))
        masks = {
            "transient": {"xor_mask": mask}, "stuck0": {"and_mask": ~mask},
        }.get(self.kind, {"or_mask": mask})  # fmt: skip
        if self.permanent:
            first, last = np.array([-1 if link.reads == "sender" else 0]), FOREVER
            effect, layer = LEVEL, -1
        else:
            length = 1 if self.kind == "transient" else self.duration
            end = min(cycle + length, site.cycles) - 1
            layer, effect, first, last = site.layer, LEVEL, np.array([cycle]), end
            if link.reads == "sender":
                first, last = first - 1, last - 1
            elif link.reads == "loading":
                edges = np.arange(cycle, end + 1)
                first = last = edges[self._loads(space, site.layer, edges)]
                effect = STATE
        index = [space.accel.component_index(name) for name in link.registers]
        return flip_rows(
            len(first) * len(index), layer=layer, component=np.repeat(index, len(first)),
            row=row, col=col, effect=effect, first=np.tile(first, len(index)),
            last=np.tile(last, len(index)) if effect == STATE else last, **masks,
        )  # fmt: skip

    def _loads(self, space, layer: int, edges: np.ndarray) -> np.ndarray:
        """(edges,) bool: whether a clock edge of a layer's schedule loads resident operands."""
        accel, low = space.accel, space.placement.lowered[layer]
        plan = accel.schedule.plan(accel, low.m, low.k, low.n)
        cycles = space.placement.group_cycles(layer)
        return edges % cycles % plan.phase_cycles < accel.rows

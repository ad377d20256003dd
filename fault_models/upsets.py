"""Upsets of registers and nets, at a rate per bit and cycle or one at a time.

Uniform over all bits and all cycles of the chosen components; a site that
holds nothing of use is a site like any other and its fault is masked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fsim.errors import FaultError
from fsim.types import FOREVER, LEVEL, STATE

from .cells import Cell
from .rows import flip_rows

# Random streams of this family; memories use the numbers of their blocks.
_SITE, _COUNT, _PERMANENT = 1 << 20, (1 << 20) + 1, (1 << 20) + 2

KINDS = ("seu", "mbu", "transient", "stuck0", "stuck1", "intermittent")
"""What `SingleFault` can draw."""


def _masks(bits, bit, width, signed):
    """XOR masks of `width` adjacent bits from `bit` up, cut off at the word's top."""
    mask = ((np.int64(1) << width) - 1) << bit
    mask &= (np.int64(1) << bits) - 1
    top = ((mask >> (bits - 1)) & 1).astype(bool) & signed & (bits > 1)
    return np.where(top, mask - (np.int64(1) << bits), mask)


def register_cells(sites) -> tuple[Cell, ...]:
    """Cells of RegisterSites: every bit of every register in every cycle."""
    return tuple(
        Cell(
            s.layer, s.layer_name, s.component, s.component_name, s.pes * s.cycles, s.bits, s
        )
        for s in sites
    )  # fmt: skip


def split(cells, positions):
    """(which cell, word, bit) of positions in the concatenated cells."""
    offsets = np.cumsum([0] + [cell.sites for cell in cells])
    which = np.searchsorted(offsets, positions, "right") - 1
    word, bit = np.divmod(
        positions - offsets[which], np.array([cell.bits for cell in cells])[which]
    )
    return which, word, bit


def register_flips(space, cells, which, word, bit, width=1):
    """FAULT rows (trial, image left open) that flip `width` bits of registers and nets."""
    column = {
        name: np.array([getattr(cell, name) for cell in cells], np.int64)[which]
        for name in ("layer", "component", "bits")
    }
    _, widths, files = np.array([cell.source.grid for cell in cells], np.int64)[which].T
    pes = np.array([cell.source.pes for cell in cells], np.int64)[which]
    shared = np.array([cell.source.shared for cell in cells], np.int64)[which]
    signed = np.array([cell.source.signed for cell in cells])[which]
    table = space.accel.components
    net = np.array([table[cell.component].kind == "net" for cell in cells])[which]
    cycle, pe = np.divmod(word, pes)
    pe, number = np.divmod(pe, files)
    row, col = np.divmod(pe, widths)
    return flip_rows(
        len(which),
        layer=column["layer"],
        component=column["component"],
        row=row * shared,
        col=col,
        word=np.where(files > 1, number, -1),
        effect=np.where(net, LEVEL, STATE),
        first=cycle,
        last=cycle,
        xor_mask=_masks(column["bits"], bit, width, signed),
    )


def check_sites(sites, what, kinds, space) -> None:
    """FaultError unless there are sites; `what` needs components of these kinds."""
    if not sites:
        fit = [c.name for c in space.accel.components if c.kind in kinds]
        raise FaultError(
            f"{what} needs a {' or '.join(kinds)} of the PEs among the chosen sites and layers: "
            f"{', '.join(fit)}, in a layer on the array"
        )


@dataclass(frozen=True)
class UpsetRate:
    """Single-event upsets: `rate` per bit and cycle of one image's inference."""

    rate: float

    name = "seu-rate"
    unit = "image"

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one trial for some images, (f,), sites distinct within an image."""
        table = space.accel.components
        sites = [site for site in space.registers if table[site.component].kind == "register"]
        check_sites(sites, "an upset rate", ("register",), space)
        total = sum(site.sites for site in sites)
        images = np.asarray(images, np.int64)
        counts = draws.counts(total, self.rate, _COUNT, trial, images)
        image, positions = [], []
        for index in np.flatnonzero(counts):
            unit, wanted = images[index : index + 1], int(counts[index])
            chosen = min(wanted, total - wanted)  # of more than half, those that are not hit
            size = chosen
            while True:  # a prefix of an endless sequence, until enough are distinct
                drawn = draws.sites(total, size, _SITE, trial, unit)[0]
                distinct = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
                if len(distinct) >= chosen:
                    break
                size += 2 * (chosen - len(distinct)) + 8
            hit = distinct[:chosen]
            if chosen < wanted:
                hit = np.setdiff1d(np.arange(total), hit, assume_unique=True)
            positions.append(hit)
            image.append(np.full(wanted, unit[0]))
        if not positions:
            return flip_rows(0)
        cells = register_cells(sites)
        rows = register_flips(space, cells, *split(cells, np.concatenate(positions)))
        rows["trial"], rows["image"] = trial, np.concatenate(image)
        rows["event"] = np.arange(len(rows))
        return rows


@dataclass(frozen=True)
class SingleFault:
    """One fault at a random site.

    kind      "seu": one register bit, one image at a time; "mbu": `width` adjacent
              bits of one register; "transient": one bit of a product net in one
              cycle; "stuck0", "stuck1": one bit of one register or net, permanent,
              the same for all images of the trial; "intermittent": a bit stuck at
              1 for `duration` cycles of one layer, for each image
    width     adjacent bits of an MBU
    duration  cycles of an intermittent fault
    """

    kind: str
    width: int = 2
    duration: int = 16

    name = "single"

    @property
    def unit(self) -> str:
        """What is independent: a permanent fault is one for all images of its trial."""
        return "trial" if self.permanent else "image"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise FaultError(f"random fault must be one of {', '.join(KINDS)}, got {self.kind!r}")

    @property
    def permanent(self) -> bool:
        """Whether the fault is a defect of the machine, in every layer and for every image."""
        return self.kind in ("stuck0", "stuck1")

    def cells(self, space) -> tuple[Cell, ...]:
        """All sites of such a fault; FaultError if there are none."""
        kinds = {"transient": ("net",), "seu": ("register",), "mbu": ("register",)}.get(
            self.kind, ("register", "net")
        )
        sites = [s for s in space.registers if space.accel.components[s.component].kind in kinds]
        check_sites(sites, f"a fault of kind {self.kind}", kinds, space)
        if self.permanent:
            # A defect belongs to the machine: one site per component, bit and PE.
            once = {site.component: site for site in reversed(sites)}
            sites = [
                replace(site, cycles=1, layer=-1, layer_name="(all)", signed=True)
                for _, site in sorted(once.items())
            ]
        return register_cells(sites)

    def rows_at(self, space, cells, which, word, bit) -> np.ndarray:
        """The faults at some sites, one FAULT row each; image -1, trial and event 0.

        which, word, bit  (f,) int64: number of the cell, word and (lowest) bit in it
        """
        rows = register_flips(
            space, cells, which, word, bit, self.width if self.kind == "mbu" else 1
        )  # fmt: skip
        rows["image"] = -1
        if self.permanent or self.kind == "intermittent":
            mask = rows["xor_mask"].copy()
            rows["xor_mask"], rows["effect"] = 0, LEVEL
            if self.kind == "stuck0":
                rows["and_mask"] = ~mask
            else:
                rows["or_mask"] = mask
            if self.permanent:
                rows["first"], rows["last"] = -1, FOREVER
            else:
                rows["last"] = rows["first"] + self.duration - 1
        return rows

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one trial for some images: one each (stuck-at: one, image -1)."""
        cells = self.cells(space)
        images = np.array([-1]) if self.permanent else np.asarray(images, np.int64)
        total = sum(cell.sites for cell in cells)
        stream = _PERMANENT if self.permanent else _SITE
        positions = draws.sites(total, 1, stream, trial, images)[:, 0]
        rows = self.rows_at(space, cells, *split(cells, positions))
        rows["trial"], rows["image"], rows["event"] = trial, images, np.arange(len(rows))
        return rows

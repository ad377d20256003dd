"""Upsets of an FPGA's configuration memory, which stay until the next scrub.

The configuration is rewritten every `interval` cycles, whatever the network is doing. An
image meets this clock at a random moment: the scrub before its first cycle was 1 to `interval`
cycles earlier, uniformly, and upsets that struck since then are there when it begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsim.errors import FaultError
from fsim.types import LEVEL

from .parameters import parameter, within
from .rows import extend_masks, flip_rows

# Random streams of this family.
_AGE, _COUNT, _SITE = 9 << 20, (9 << 20) + 1, (9 << 20) + 2

TABLES = ("mul_lut", "add_lut")
"""Components of `accel_models/fpga` that are configuration memory."""


@dataclass(frozen=True)
class ConfigurationUpsets:
    """Upsets of configuration bits at a rate per bit and cycle, each until the next scrub.

    Bits and cycles are drawn uniformly and with replacement: two upsets of one bit undo each
    other while both last. An upset in a scrub's cycle comes after it. All layers see it, from
    its cycle on; a scrub within the image ends it. Images are independent moments.
    """

    rate: float = parameter("upsets per configuration bit and cycle")
    interval: int = parameter("cycles between two scrubs")

    name = "config-upsets"
    unit = "image"
    lasting = False

    def __post_init__(self):
        within(self.rate, 0.0, 1.0, "rate")
        within(self.interval, 1, 1 << 50, "interval")

    def expected(self, space, images: int) -> float:
        """Mean number of upsets; each is a row in every layer from there on."""
        sites, layers = self._sites(space)
        cycles = sum(layers.values()) + self.interval / 2
        return images * self.rate * cycles * sum(s.bits * s.pes for s in sites) * len(layers)

    def _sites(self, space):
        """(one RegisterSites of each table, layer -> cycles); FaultError on other machines."""
        found = {s.component: s for s in space.registers if s.component_name in TABLES}
        if not found:
            raise FaultError(
                f"{self.name} needs configuration memory ({', '.join(TABLES)}, family fpga) among "
                f"the chosen sites and layers, got {space.accel.name}"
            )
        layers = {s.layer: s.cycles for s in space.registers if s.component in found}
        return [found[number] for number in sorted(found)], layers

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one trial: a LEVEL flip in each layer that an upset lasts into."""
        sites, layers = self._sites(space)
        images = np.asarray(images, np.int64)
        ages = 1 + draws.sites(self.interval, 1, _AGE, trial, images)[:, 0]
        begin = np.concatenate([[0], np.cumsum(list(layers.values()))])
        bits = np.array([s.bits * s.pes for s in sites], np.int64)
        parts = [flip_rows(0)]
        for image, age in zip(images, ages.tolist()):
            mine = np.array([image], np.int64)
            span = int(begin[-1]) + age
            total = int(bits.sum()) * span
            count = int(draws.counts(total, self.rate, _COUNT, trial, mine)[0])
            position, cycle = np.divmod(draws.sites(total, count, _SITE, trial, mine)[0], span)
            cycle -= age
            # Scrubs are at -age, interval - age, ...: the next one after the upset ends it.
            until = ((cycle + age) // self.interval + 1) * self.interval - age - 1
            parts += self._of_image(sites, layers, begin, bits, position, cycle, until, image)
        rows = np.concatenate(parts)
        rows["trial"] = trial
        return rows

    def _of_image(self, sites, layers, begin, bits, position, cycle, until, image):
        """Rows of one image's upsets, layer by layer."""
        offset = np.concatenate([[0], np.cumsum(bits)])
        which = np.searchsorted(offset, position, "right") - 1
        for number, (layer, cycles) in enumerate(layers.items()):
            first = np.maximum(cycle - begin[number], -1)
            last = np.minimum(until - begin[number], cycles - 1)
            for at, site in enumerate(sites):
                lasts = (first <= last) & (first < cycles) & (last >= 0)
                here = np.flatnonzero((which == at) & lasts)
                place, bit = np.divmod(position[here] - offset[at], site.bits)
                _, width, files = site.grid
                pe, word = np.divmod(place, files)
                row, col = np.divmod(pe, width)
                yield flip_rows(
                    len(here), image=image, event=here, layer=layer, component=site.component,
                    row=row, col=col, word=word, effect=LEVEL, first=first[here],
                    last=last[here], xor_mask=extend_masks(bit, site.bits, True),
                )  # fmt: skip

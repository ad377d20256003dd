"""Several placements as one space of fault sites, so that a trial draws once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Protocol

from fsim.accel_models.accel import Accel

from .sites import Placement, SiteSpace, select


class Part(Protocol):
    """A placement of its own; `number` stands for `layer` in rows of the joined space."""

    number: int
    name: str
    placement: Placement


def joined_space(accel: Accel, parts: Sequence[Part]) -> SiteSpace:
    """The sites of all parts together; parts[i].number is i."""
    blocks = [replace(b, layer=u.number, name=u.name) for u in parts for b in u.placement.blocks]
    period = sum({id(u.placement): _period(u.placement) for u in parts}.values())
    blocks = [replace(b, period=period) if b.period else b for b in blocks]
    placements = SimpleNamespace(
        accel=accel,
        program=SimpleNamespace(ops=tuple(parts)),
        # Numbered anew: a block's number is its random stream.
        blocks=[replace(block, number=number) for number, block in enumerate(blocks)],
        register_sites=[
            replace(site, layer=use.number, layer_name=use.name)
            for use in parts
            for site in use.placement.register_sites
        ],
    )
    return select(placements)


def _period(placement: Placement) -> int:
    """Cycles of an inference of the operations that are placed together."""
    return max((block.period for block in placement.blocks), default=0)

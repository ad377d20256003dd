"""The sections of a report on one campaign, in the order in which a reader wants them."""

from __future__ import annotations

from collections.abc import Iterator

from .array import array
from .markup import Html
from .network import bits, network, where
from .protection import protect
from .rates import chips, flips, rates
from .section import Section
from .spread import worst
from .summary import outcomes, provenance, setup


def sections(s: Section) -> Iterator[tuple[str, str, Html]]:
    """(short id, title, content) of each section that the campaign has something for."""
    for name, title, make in (
        ("setup", "What was done", setup),
        ("outcomes", "Outcomes", outcomes),
        ("where", "Where faults matter", where),
        ("network", "Over the network", network),
        ("bits", "Which bits", bits),
        ("array", "Over the PE array", array),
        ("protect", "What to protect", protect),
        ("flips", "Number of flips", flips),
        ("rates", "Bit error rate", rates),
        ("chips", "Chips", chips),
        ("worst", "The worst faults", worst),
        ("provenance", "Provenance, and how to run it again", provenance),
    ):
        found = make(s)
        if found:
            yield name, title, found

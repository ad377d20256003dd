"""What a campaign cannot know and its user states: raw rates, duty, occupancy, deratings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fsim.errors import ConfigError
from fsim.parse import nearest
from fsim.simulator.rates import MBIT, fit_per_bit

CLASSES = ("register", "memory", "net")
"""Classes of components that a rate may be stated for."""


@dataclass(frozen=True)
class Assumed:
    """The user's part of a FIT budget.

    per_mbit   raw FIT per Mbit by name; "" is that of all storage. Of a component `psum`
               with faults of kind `seu` the first of these that is there counts:
               psum/seu, psum, its class (CLASSES), ""
    mbit       bits of a Mbit
    duty       share of time in which the machine runs the network, [0, 1]
    occupancy  memory -> share of its bits x time that holds a word still to be read, [0, 1]
    scheduled  memory -> the upper limit of the schedule (`occupancy.occupancy`), for those
               whose occupancy is not stated; a memory with neither counts as full
    derate     name of a further factor -> its value, [0, 1]; of all components
    bits       component -> bits of it on the machine, instead of the machine's own number
    """

    per_mbit: Mapping[str, float] = field(default_factory=dict)
    mbit: int = MBIT
    duty: float = 1.0
    occupancy: Mapping[str, float] = field(default_factory=dict)
    scheduled: Mapping[str, float] = field(default_factory=dict)
    derate: Mapping[str, float] = field(default_factory=dict)
    bits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        for what, values in (
            ("occupancy", self.occupancy),
            ("occupancy", self.scheduled),
            ("derating", self.derate),
        ):
            for name, value in values.items():
                _in_unit(value, f"{what} of {name}")
        _in_unit(self.duty, "duty")
        for name, value in self.per_mbit.items():
            _positive(value, f"FIT per Mbit of {name}" if name else "FIT per Mbit")
        for name, value in self.bits.items():
            _positive(value, f"bits of {name}")

    def fit_per_bit(self, component: str, kind: str, sort: str) -> float:
        """Raw FIT of one bit of a component; ConfigError if none is stated.

        kind  of fault: seu, flip, stuck1, ...; sort  of CLASSES
        """
        names = [f"{component}/{kind}", component, sort]
        # A net stores nothing: a rate per Mbit of storage is not its own.
        names += [""] if sort != "net" else []
        for name in names:
            if name in self.per_mbit:
                return fit_per_bit(self.per_mbit[name], mbit=self.mbit)
        all_ = " or --fit-per-mbit" if sort != "net" else ""
        raise ConfigError(
            f"a raw rate must be stated for {component}, a {sort} with faults of kind {kind}: "
            f"--rate {component}=FIT_PER_MBIT{all_}"
        )

    def live(self, memory: str, data: str) -> float:
        """Occupancy of a memory; check bits have that of the memory `data`, unless stated."""
        for given, name in (
            (self.occupancy, memory),
            (self.occupancy, data),
            (self.scheduled, data),
        ):
            if name in given:
                return given[name]
        return 1.0

    def check_names(self, components: Iterable[str], lines: Iterable[tuple[str, str]]) -> None:
        """ConfigError for a name that is no component of the machine or of no campaign.

        components  of the machine; lines  (component, kind) of the campaigns
        """
        components, lines = list(components), list(lines)
        kinds = [f"{name}/{kind}" for name, kind in lines]
        here = [name for name, _ in lines]
        for what, given, known in (
            ("a rate", self.per_mbit, [*here, *kinds, *CLASSES, ""]),
            ("an occupancy", self.occupancy, here),
            ("a number of bits", self.bits, here),
        ):
            for name in given:
                if name in known:
                    continue
                also = " of the machine, but in none of the campaigns" if name in components else ""
                raise ConfigError(
                    f"{what} must be of one of {', '.join(dict.fromkeys(filter(None, known)))}, "
                    f"got {name!r}{also or nearest(name, known)}"
                )


def _positive(value, what: str) -> float:
    if type(value) not in (int, float) or not 0.0 <= value < math.inf:
        raise ConfigError(f"{what} must be a finite number of at least 0, got {value!r}")
    return float(value)


def _in_unit(value, what: str) -> float:
    if type(value) not in (int, float) or not 0.0 <= value <= 1.0:
        raise ConfigError(f"{what} must be in [0, 1], got {value!r}")
    return float(value)

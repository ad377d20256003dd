"""Hardware faults of accelerators and what represents each of them in fsim.

The analysis is that of FTT-NAS (arXiv 2003.10375), its table of application
errors caused by hardware faults. Its body could not be retrieved while this was
written, so that each row says how sure it is (CERTAINTY).
"""

from __future__ import annotations

from dataclasses import dataclass

PLATFORMS = ("asic", "fpga", "rram")

CAUSES = ("radiation", "voltage", "aging", "temperature", "attacker", "fabrication")

CERTAINTY = {
    "recalled": "remembered from the paper's table and not checked against its text; "
    "medium confidence in the row, low in the exact symbols of the formula",
    "recalled, in code": "as 'recalled'; the reference implementation (aw_nas) has this fault, "
    "with adSAF on whole weights or, in place of iBB, MiBB",
    "introduction": "the cause is named in the paper's introduction, which was read; "
    "everything else of the row is this project's reading",
}
"""How sure a row is -> what that means."""

_TABLE = "FTT-NAS, table of application errors caused by hardware faults"


@dataclass(frozen=True)
class HardwareFault:
    """A row of the analysis.

    name         how fsim calls it
    platforms    of PLATFORMS
    source       the event, as the paper writes it
    causes       of CAUSES; which of them lie behind "overstress" is this project's reading
    position     the circuit
    component    what the network keeps or computes there
    kind         hard (damage) or soft (the circuit is intact)
    persists     whether it stays until something repairs or rewrites it
    mitigation   usual countermeasures
    level        weights or features: what is wrong, as the network sees it
    formula      the paper's model; see SYMBOLS
    models       names of fsim.fault_models.statistical that represent it
    inject       options of `fsim inject` that put it into a simulated array; "" for none
    certainty    key of CERTAINTY
    reference    where the row is from
    """

    name: str
    platforms: tuple[str, ...]
    source: str
    causes: tuple[str, ...]
    position: str
    component: str
    kind: str
    persists: bool
    mitigation: str
    level: str
    formula: str
    models: tuple[str, ...]
    inject: str
    certainty: str = "recalled"
    reference: str = _TABLE


SYMBOLS = {
    "w, f, y": "weight, output of a PE before the activation function, stored feature; "
    "w0, f0, y0 without faults",
    "p0, p1": "probabilities of a cell to be stuck at 0 and at 1",
    "r_h, r_s": "hard and soft error rate of a bit; r_h^l, r_s^l of a PE of layer l",
    "M_l": "proportional to the multiply-adds of one output value of layer l",
    "M_p(t)": "how many persistent faults have accumulated by time t",
    "sigma": "spread of the programmed conductance",
}
"""Symbols of the formulas."""

_OVERSTRESS = ("radiation", "voltage", "aging", "temperature")
_CHIPS = ("asic", "fpga")

FAULTS = (
    HardwareFault(
        "rram-stuck-bit", ("rram",), "SAF", ("fabrication", "aging"),
        "single-bit-cell crossbar", "weights", "hard", True,
        "detection; redundancy, remapping, retraining", "weights",
        "w ~ 1bit-adSAF(w0; p0, p1)", ("adsaf-bits",), "--stuck-cells P",
    ),
    HardwareFault(
        "rram-stuck-weight", ("rram",), "SAF", ("fabrication", "aging"),
        "multi-bit-cell crossbar", "weights", "hard", True,
        "detection; redundancy, remapping, retraining", "weights",
        "w ~ Qbit-adSAF(w0; p0, p1)", ("adsaf",), "", "recalled, in code",
    ),
    HardwareFault(
        "rram-variation", ("rram",), "variation", ("fabrication",),
        "multi-bit-cell crossbar", "weights", "soft", True,
        "program-sense loop", "weights",
        "w ~ LogNormal(w0; sigma) or ReciprocalNormal(w0; sigma)",
        ("log-normal", "reciprocal-normal"), "",
    ),
    HardwareFault(
        "sram-weights-hard", _CHIPS, "SEU, overstress", _OVERSTRESS,
        "SRAM", "weight buffer", "hard", True,
        "ECC", "weights", "w ~ iBF(w0; r_h M_p(t))",
        ("ibf",), "--ber weights=P --hw-batch all",
    ),
    HardwareFault(
        "sram-weights-soft", _CHIPS, "SEU, voltage scaling", ("radiation", "voltage"),
        "SRAM", "weight buffer", "soft", False,
        "ECC", "weights", "w ~ iBF(w0; r_s)",
        ("ibf",), "--ber weights=P",
    ),
    HardwareFault(
        "lut-pe-hard", ("fpga",), "SEU, overstress", _OVERSTRESS,
        "LUTs", "PE", "hard", True,
        "TMR, scrubbing", "features", "f ~ iBB(f0; r_h^l M_l M_p(t))",
        ("ibb", "mibb"), "--fault stuck1", "recalled, in code",
    ),
    HardwareFault(
        "lut-pe-soft", ("fpga",), "SEU, voltage scaling", ("radiation", "voltage"),
        "LUTs", "PE", "soft", False,
        "TMR, scrubbing", "features", "f ~ iBB(f0; r_s^l M_l)",
        ("ibb", "mibb"), "--fault transient", "recalled, in code",
    ),
    HardwareFault(
        "sram-features-hard", _CHIPS, "SEU, overstress", _OVERSTRESS,
        "SRAM", "feature buffer", "hard", True,
        "ECC", "features", "y ~ iBF(y0; r_h M_p(t))",
        ("ibf",), "",
    ),
    HardwareFault(
        "sram-features-soft", _CHIPS, "SEU, voltage scaling", ("radiation", "voltage"),
        "SRAM", "feature buffer", "soft", False,
        "ECC", "features", "y ~ iBF(y0; r_s)",
        ("ibf",), "--ber acts=P",
    ),
    HardwareFault(
        "logic-pe-hard", ("asic",), "SEU, overstress", _OVERSTRESS,
        "gates, flip-flops", "PE", "hard", True,
        "TMR, DICE", "features", "f ~ iBB(f0; r_h^l M_l M_p(t))",
        ("ibb", "mibb"), "--fault stuck1", "recalled, in code",
    ),
    HardwareFault(
        "logic-pe-soft", ("asic",), "SET, SEU, voltage scaling", ("radiation", "voltage"),
        "gates, flip-flops", "PE", "soft", False,
        "TMR, DICE", "features", "f ~ iBB(f0; r_s^l M_l)",
        ("ibb", "mibb"), "--seu-rate P", "recalled, in code",
    ),
    HardwareFault(
        "trojan", PLATFORMS, "hardware Trojan, back door", ("attacker",),
        "anywhere", "any", "hard", True,
        "detection", "features", "chosen by the attacker",
        (), "--fault layer=conv1,component=psum,row=0,col=3,bit=7,kind=stuck1",
        "introduction", "FTT-NAS, introduction",
    ),
)  # fmt: skip
"""The rows, in the paper's order; the last is added from its introduction."""


@dataclass(frozen=True)
class NamedModel:
    """What fsim draws beyond the paper's table: a fault model with parameters, or a search.

    name      of `fault_models.families`; "attack" is `fsim attack`
    causes    of CAUSES
    position  the circuit
    about     what one draw is
    source    of its laws
    """

    name: str
    causes: tuple[str, ...]
    position: str
    about: str
    source: str


BEYOND = (
    NamedModel("mbu-patterns", ("radiation",), "registers, SRAM",
               "several bits of one word, by a table of patterns", "Ibe et al., IEEE TED 2010"),
    NamedModel("mcu", ("radiation",), "SRAM",
               "a cluster of cells and the words they belong to", "Ibe et al., IEEE TED 2010"),
    NamedModel("intermittent-duty", ("aging", "voltage", "temperature"), "registers, nets",
               "a bit that fails in bursts, with a period and a duty cycle",
               "Constantinescu, RAMS 2008"),
    NamedModel("control", ("radiation", "aging"), "valid, propagate, enables",
               "a fault of a control register", "the machine's own registers"),
    NamedModel("link", ("radiation", "aging", "fabrication"), "wires between PEs",
               "the receiver sees a wrong value, the sender's own use is right", "this project"),
    NamedModel("sram-voltage", ("voltage",), "SRAM",
               "a chip: the cells that fail below their lowest voltage",
               "Mukhopadhyay et al., IEEE TCAD 2005; Stutz et al., MLSys 2021"),
    NamedModel("retention", ("temperature",), "DRAM, eDRAM",
               "a chip: the cells that lose their bit before the next refresh",
               "Hamamoto et al., IEEE TED 1998"),
    NamedModel("timing", ("voltage", "aging", "temperature"), "multipliers",
               "top product bits that miss the clock",
               "Sakurai and Newton, JSSC 1990; Alam and Mahapatra, MR 2005"),
    NamedModel("crossbar-stuck", ("fabrication", "aging"), "RRAM crossbar",
               "a chip: cells of a crossbar that are stuck",
               "Chen et al., IEEE Trans. Computers 2015 (shares)"),
    NamedModel("crossbar-variation", ("fabrication",), "RRAM crossbar",
               "a chip: conductances that are not the programmed ones",
               "laws to choose from, parameters yours"),
    NamedModel("config-upsets", ("radiation",), "FPGA configuration memory",
               "configuration bits that are wrong until the scrub", "a Poisson process"),
    NamedModel("attack", ("attacker",), "weight memory",
               "the bit flips that raise the loss most (fsim attack)", "Rakin et al., ICCV 2019"),
)  # fmt: skip
"""Fault models that are not rows of the paper."""


def faults_on(platform: str | None = None) -> tuple[HardwareFault, ...]:
    """The rows of one of PLATFORMS, or all."""
    return tuple(row for row in FAULTS if platform is None or platform in row.platforms)

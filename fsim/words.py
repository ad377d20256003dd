"""Faults and stopping rules in words, for every text that people read."""

from __future__ import annotations

MEMORIES = ("acts", "weights", "psums")

RULES = {
    "fixed": "a number of faults known before",
    "failures": "until event number {value:g}",
    "width": "until the half-width is at most {value:g}",
    "threshold": "until it is certain whether the share is above or below {value:g}",
}


def protections(accel: dict) -> dict[str, str]:
    """Memory -> protection, of a machine as tasks hold it; those without are left out."""
    found = {name: buffer.get("protection", "none") for name, buffer in accel["buffers"].items()}
    return {name: kind for name, kind in found.items() if kind != "none"}


def protected_outcomes(accel: dict) -> tuple[str, ...]:
    """Outcomes that not every machine has: "corrected" and "due" of protected memories, as far
    as they can, and "hang" of one with a sequencer.
    """
    kinds = protections(accel).values()
    parameters = accel.get("parameters")
    counts = isinstance(parameters, dict) and bool(parameters.get("sequencer"))
    return ("corrected",) * ("secded" in kinds) + ("due",) * bool(kinds) + ("hang",) * counts


def protection_text(accel: dict) -> str:
    """The protected memories in words, with the data bits of their memory words."""
    buffers = accel["buffers"]
    return ", ".join(
        f"{name} {kind} ({buffers[name]['word_bits']} data bits)"
        for name, kind in protections(accel).items()
    )


def faults_text(faults: dict) -> str:
    """The faults of a task in words."""
    kind = faults["kind"]
    if kind == "flip":
        return f"one bit flip in a stored word of {', '.join(faults['memories'])}"
    if kind == "flips":
        return f"bit flips in stored words of {', '.join(faults['memories'])}"
    if kind == "list":
        return f"the faults of {faults['file']}"
    if kind in ("ber", "stuck-cells") or "parameters" in faults:
        return describe_faults(faults)
    return f"one {kind}"


def describe_faults(faults: dict) -> str:
    if faults["kind"] == "ber":
        batch = faults["hw_batch"] or "all"
        rates = ", ".join(f"{name} {faults[name]:g}" for name in MEMORIES)
        return f"bit errors, per bit and residency: {rates}; weights written every {batch} image(s)"
    if faults["kind"] == "seu-rate":
        return f"single-event upsets, {faults['rate']:g} per register bit and cycle"
    if faults["kind"] == "explicit":
        return "; ".join(faults["faults"])
    if faults["kind"] == "stuck-cells":
        return (
            f"stuck cells of the weight memory, one chip a trial: {faults['p']:g} of all cells, "
            f"{100 * faults['sa1_share']:.4g} % of them at 1"
        )
    if "parameters" in faults:
        pieces = [f"{name}={value}" for name, value in faults["parameters"].items()]
        return ",".join([faults["kind"], *pieces])
    each = "trial" if faults["kind"] in ("stuck0", "stuck1") else "image"
    return f"one random {faults['kind']} for each {each}"

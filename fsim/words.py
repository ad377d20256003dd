"""Faults and stopping rules in words, for every text that people read."""

from __future__ import annotations

MEMORIES = ("acts", "weights", "psums")

RULES = {
    "fixed": "a number of faults known before",
    "failures": "until event number {value:g}",
    "width": "until the half-width is at most {value:g}",
    "threshold": "until it is certain whether the share is above or below {value:g}",
}


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

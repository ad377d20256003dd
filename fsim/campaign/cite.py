"""How to reproduce a campaign, and the paragraph that states it in a paper."""

from __future__ import annotations

import shlex

from fsim._version import __version__
from fsim.fault_models.stuck_cells import SA1_SHARE
from fsim.simulator.campaign.design import PILOT
from fsim.simulator.criteria import DEFAULT
from fsim.words import RULES

from .campaign import SHARD
from .results import Results

_STOP = {"failures": "--failures", "width": "--target-halfwidth", "threshold": "--threshold"}


def command_of(task: dict) -> str:
    """The `fsim campaign` command whose task this is; fault lists by their file name."""
    stated, faults, rule = task["campaign"], task["faults"], task["campaign"]["rule"]
    words = ["fsim", "campaign", "--model", task["model"]]

    def add(option: str, value, default=None) -> None:
        if value is not None and value != default:
            words.extend([option, str(value)])  # of a float all digits

    add("--weights", task["weights"])
    add("--data", task["data"])
    add("--data-dir", task["data_dir"])
    add("--images", task["images"])
    given = stated.get("stated") or {}
    add("--accel", given.get("accel", task["accel"]["name"]))
    for setting in given.get("settings", ()):
        add("--set", setting)
    add("--dataflow", task["accel"]["dataflow"])
    kind = stated["design"]
    if kind == "single":
        add("--fault", _fault(faults))
        images = stated["frame"]["each"]
        add("--images-per-fault", images)
        add("--stratify", ",".join(stated["frame"]["stratify"]) or None)
    elif kind == "flips":
        add("--flips", _ranges(stated["flips"]))
    elif kind == "chips":
        add("--chips", task["trials"])
        if faults["kind"] == "ber":
            add("--ber", faults["weights"])
        elif "parameters" in faults:
            add("--fault", _fault(faults))
        else:
            add("--stuck-cells", faults["p"])
            add("--sa1-share", faults["sa1_share"], SA1_SHARE)
    elif kind == "events":
        add("--fault", _fault(faults))
    else:
        add("--faults", faults["file"])
    for option, name in (("--sites", "sites"), ("--layers", "layers")):
        add(option, ",".join(task["select"][name]) if task["select"][name] else None)
    if rule["name"] != "fixed":
        add(_STOP[rule["name"]], rule["value"])
    elif kind in ("single", "flips", "events"):
        if given.get("exhaustive"):
            words.append("--exhaustive")
        elif given.get("margin") is not None:
            for name in ("margin", "t", "p", "rounding"):
                add(f"--{name}", given.get(name), "ceil")
        else:
            add("--trials", task["trials"] or rule["most"])
    if "--trials" not in words:
        add("--max-trials", rule["most"], 10_000_000)
    add("--pilot", stated["pilot"], PILOT)
    add("--shard-size", stated["shard"], max(1, SHARD // stated["unit_images"]))
    add("--metric", rule["metric"], "sdc_critical")
    add("--critical", stated.get("critical"))
    add("--confidence", rule["confidence"], 0.95)
    add("--seed", task["seed"], 0)
    return shlex.join(words)


def _fault(faults: dict) -> str:
    """What --fault takes: a kind, or a fault model with its parameters."""
    pieces = [f"{name}={value}" for name, value in faults.get("parameters", {}).items()]
    return ",".join([faults["kind"], *pieces])


def _ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 8] as `1-3,8`."""
    pieces, begin = [], 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            first, last = numbers[begin], numbers[i - 1]
            pieces.append(str(first) if first == last else f"{first}-{last}")
            begin = i
    return ",".join(pieces)


_FAULTS = {
    "seu": "single-event upsets of one register bit in one cycle",
    "mbu": "upsets of two adjacent bits of one register in one cycle",
    "transient": "flips of one bit of a product net in one cycle",
    "intermittent": "one bit of a register or net stuck at 1 for 16 cycles",
    "stuck0": "one bit of a register or net permanently stuck at 0",
    "stuck1": "one bit of a register or net permanently stuck at 1",
    "flip": "flips of one bit of one stored word (activations, weights, partial sums) in one "
    "residency",
}


_CRITICAL = {
    "top1": "changed the predicted class",
    "top5": "lost the predicted class from the first five",
    "wrong": "made a right answer wrong",
}


def cite(results: Results) -> str:
    """A paragraph for the methods section, with every number that it rests on."""
    task, stated, rule = results.task, results.stated, results.rule
    accel = task["accel"]
    machine = (
        f"{accel['name']} ({accel['rows']} x {accel['cols']} processing elements, "
        f"{accel['dataflow'].upper()} dataflow, {accel['operand_bits']}-bit operands, "
        f"{accel['acc_bits']}-bit accumulators)"
    )
    text = (
        f"Faults were injected with fsim {results.trace.provenance.get('fsim', __version__)} into "
        f"{task['model']} (quantised; SHA-256 of all codes {task['codes_sha256'][:16]}), executed "
        f"on a bit-accurate model of {machine}, with {task['images']} images of {task['data']} "
        f"(SHA-256 {task['data_sha256'][:16]}). "
    )
    n = len(results.trials)
    if not results.complete:
        text += f"This file is a part of the campaign: {n:,} of {task['trials']:,} trials. "
    if results.kind == "single":
        frame = results.frame
        what = _FAULTS.get(task["faults"]["kind"]) or f"the faults of {_fault(task['faults'])}"
        text += (
            f"The population are all {frame.size:,} {'faults' if frame.each else 'pairs'} of "
            f"{what}{'' if frame.each else ' and an image'}; {n:,} were "
            "drawn uniformly without replacement"
        )
        if len(frame.strata) > 1:
            text += (
                f" from {len(frame.strata)} strata ({', '.join(frame.stratify)}), each weighted by "
                "its size"
            )
        text += ". "
    elif results.kind == "flips":
        text += (
            f"For each of {len(stated['flips'])} numbers of flips from {stated['flips'][0]} to "
            f"{stated['flips'][-1]}, sets of that many distinct bits were drawn uniformly from the "
            f"{stated['bits']:,} exposed bits of {', '.join(task['faults']['memories'])} ({n:,} "
            "inferences in all); rates weight them by the binomial distribution. "
        )
    elif results.kind == "chips":
        text += f"{n:,} chips with fixed random fault maps were run on all images. "
        if "parameters" in task["faults"]:
            text += f"The maps are those of {_fault(task['faults'])}. "
    elif results.kind == "events":
        text += (
            f"{n:,} events of the fault model {_fault(task['faults'])} were drawn, each in one "
            "inference of a random image. "
        )
    else:
        text += f"{n:,} given faults were injected (SHA-256 {stated['list_sha256'][:16]}). "
    if results.kind != "flips":
        share = results.share(rule.metric)
        critical = stated.get("critical", DEFAULT)
        failed = _CRITICAL.get(critical, f"failed by the criterion {critical!r}")
        name = {"sdc_critical": failed, "sdc": "changed the output", "masked": "had no effect",
                "sdc_benign": "changed the output but not the class" if critical == DEFAULT
                else f"changed the output without being critical (critical: {failed})",
                "corrected": "were corrected", "due": "had a detected error"}
        text += (
            f"Of the faulty inferences {100 * share.estimate:.3g} % "
            f"{name.get(rule.metric, rule.metric)} ({100 * rule.confidence:g} % interval "
            f"{100 * share.low:.3g} to {100 * share.high:.3g} %, {share.method}"
        )  # fmt: skip
        text += "). "
    stop = {
        "fixed": "The number of faults was fixed in advance.",
        "failures": f"Injection stopped at event number {rule.value:g}, which the interval allows "
        "for.",
        "width": f"Injection stopped when the half-width of the interval reached {rule.value:g}.",
        "threshold": "Injection stopped when a confidence sequence, valid at any stopping time, "
        f"excluded {rule.value:g}.",
    }
    if not results.met:
        stop[rule.name] = (
            f"Injection stopped at {n:,} trials, the most allowed, before the rule was met "
            f"({RULES[rule.name].format(value=rule.value)})."
        )
    again = "To reproduce" if results.complete else "To run the whole campaign"
    return text + stop[rule.name] + f" Seed {task['seed']}, generator Philox4x32-10 version " + (
        f"{task['rng_version']}. {again}: {command_of(task)}"
    )

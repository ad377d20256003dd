"""Campaigns from Python: a network in memory, one call, results to ask."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError
from fsim.fault_models import families
from fsim.fault_models.upsets import KINDS
from fsim.session import Session, placed_network
from fsim.simulator.campaign.rules import Rule
from fsim.simulator.criteria import DEFAULT
from fsim.simulator.statistics import sample_size

from .campaign import MEMORIES, Campaign, Options, design_for, make_task
from .execute import execute
from .results import Results, read_results

IN_MEMORY = "(in memory)"
"""Model and data of a campaign that was given objects instead of names."""


def session_of(module, images, labels, accel: Accel, *, calibration=None) -> Session:
    """A session of a network in memory: captured, quantised and placed.

    module       torch.nn.Module in evaluation mode, float; it is not changed. What cannot be
                 traced runs layer by layer, whole inferences
    images       (n, ...) float32, as the network takes them; labels (n,) integers
    calibration  (c, ...) float32 images that scales are calibrated on; default: `images`
    """
    images = np.ascontiguousarray(images, np.float32)
    labels = np.asarray(labels)
    seen = images if calibration is None else np.ascontiguousarray(calibration, np.float32)
    if images.ndim < 2 or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ConfigError(
            f"images must be (n, ...) with n whole labels, got {images.shape} and {labels.shape}"
        )
    if not len(images) or not len(seen):
        raise ConfigError("a campaign needs at least one image")
    placed = placed_network(module, seen, accel, None, by_layers=True)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    identity = {
        "model": IN_MEMORY, "weights": None, "weights_sha256": None, "data": IN_MEMORY,
        "data_dir": None, "data_sha256": digest, "images": len(images), "calibration": len(seen),
        "quant_params": None, "codes_sha256": placed.codes_sha256, "accel": asdict(accel),
        "components": [component.name for component in accel.components],
        "layers": [op.name for op in placed.placement.program.ops],
    }  # fmt: skip
    return Session(
        placed.placement, images, labels, identity, tuple(placed.notes), placed.layered
    )  # fmt: skip


def run_campaign(
    module,
    images,
    labels,
    out,
    *,
    accel: Accel | str = "systolic",
    fault="seu",
    trials: int | None = None,
    halfwidth: float | None = None,
    metric: str = "sdc_critical",
    critical: str = DEFAULT,
    confidence: float = 0.95,
    layers=None,
    sites=None,
    stratify=(),
    images_per_fault: int | None = None,
    seed: int = 0,
    threads: int = 1,
    calibration=None,
    resume: bool = False,
    overwrite: bool = False,
) -> Results:
    """Inject single faults into a network in memory, write their file, and read it back.

    module, images, labels, calibration  as in `session_of`
    out        file of the trace; accel: a preset's name or an Accel
    fault      "flip" (a bit of a stored word), a kind of fault_models.upsets.KINDS, or a named
               fault model (`fault_models.families`) or its text, "mcu,shapes=2x2"; `trials` of one
               whose faults last in a chip are chips
    trials     so many faults; halfwidth: until half the interval of `metric` is no wider;
               neither: the sample size of DATE 2009 for a margin of 0.01
    critical   which wrong answers are critical: "top1", "top5", "wrong" or a plug-in's
    layers, sites, stratify  names, as the options of `fsim campaign`
    images_per_fault  None: each fault meets one image, but a stuck-at fault all of them
    resume, overwrite  what to do with an `out` that exists

    Raises FsimError for what is not valid. `fsim replay` and engines of other processes need
    a network that has a name: use the command line for them.
    """
    design, permanent = "single", fault in ("stuck0", "stuck1")
    if fault == "flip" or fault in KINDS:
        faults = {"kind": fault}
    else:
        if isinstance(fault, str):
            name, values = families.parse_family(fault)
            if name not in families.family_names():
                raise ConfigError(
                    f"fault must be flip or one of "
                    f"{', '.join((*KINDS, *families.family_names()))}, got {fault[:60]!r}"
                )
            fault = families.make_family(name, values)
        faults, design = families.described(fault), design_for(fault)
        permanent = getattr(fault, "permanent", False)
    if design != "single" and (stratify or images_per_fault is not None):
        raise ConfigError(
            f"stratify and images_per_fault need faults whose sites are numbered, "
            f"got {faults['kind']}"
        )
    if design == "chips" and trials is None:
        raise ConfigError(f"{faults['kind']} draws chips: give their number, trials")
    if trials is not None and halfwidth is not None:
        raise ConfigError("one rule must stop a campaign, got trials and halfwidth")
    machine = load_accel(accel) if isinstance(accel, str) else accel
    session = session_of(module, images, labels, machine, calibration=calibration)
    count = len(session.images)
    if fault == "flip":
        faults["memories"] = [m for m in (sites or MEMORIES) if m in MEMORIES]
    each = images_per_fault
    if each is None and permanent and design == "single":
        each = count
    stratify = tuple(stratify)
    name = "fixed" if halfwidth is None else "width"
    most = trials if trials is not None else 10_000_000
    rule = Rule(name, metric, 0 if halfwidth is None else float(halfwidth), confidence, most)

    def allocation(sizes):
        if trials is None:
            return [sample_size(size, 0.01, confidence=confidence) for size in sizes]
        return [trials if sizes[0] is None else min(trials, sizes[0])]

    fixed = name == "fixed" and not (stratify and trials is not None)
    task = make_task(
        session, faults, {"layers": _list(layers), "sites": _list(sites)}, seed, design=design,
        rule=rule.to_json(), each=each, stratify=stratify, allocation=allocation if fixed else None,
        critical=critical,
    )  # fmt: skip
    campaign = Campaign(task, Options(threads=threads), session)
    execute(campaign, Path(out), resume=resume, overwrite=overwrite)
    return read_results(out)


def _list(names) -> list[str] | None:
    return None if names is None else [str(name) for name in names]

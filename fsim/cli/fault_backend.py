"""What `--fault-backend` and its options ask for, in training and in search alike."""

from __future__ import annotations

from dataclasses import asdict

from fsim.cli.inject import fault_model
from fsim.cli.options import load_accel_option
from fsim.errors import ConfigError

DEVICES = (
    "On every --device the same for a seed: new weights, order and augmentation of the images, a "
    "search method's own draws. Not the same: faults, dropout, how sums are rounded (torch's "
    "default precision there, the number of --threads), and what follows from them. On one thread "
    "of the cpu a run, stopped and resumed or not, is the same bit for bit; on a GPU as far as "
    "torch's kernels are. "
    "A checkpoint goes on on any device."
)
"""What a seed fixes, for the end of `--help`."""


def device_of(name: str, fault_backend: str):
    """The torch.device that --device names; ConfigError unless the backend runs there."""
    from fsim.nas.device import device_named

    if fault_backend == "numba" and name != "cpu":
        raise ConfigError(
            "--device must be cpu with --fault-backend numba, whose array is simulated on the "
            f"CPU, got {name[:40]!r}"
        )
    return device_named(name)


def faults_of(fault_backend, accel, dataflow, settings, ber, seu_rate, hw_batch, faults_file,
              mibb, adsaf, stuck_cells=None, sa1_share=None, *, machine_too=False,
              **rest):  # fmt: skip
    """(Accel or None, fault model or models or None, JSON-ready description with a text).

    machine_too  the machine is wanted with any backend, for its cycles
    """
    array = {"--ber": ber, "--seu-rate": seu_rate, "--hw-batch": hw_batch,
             "--stuck-cells": stuck_cells, "--sa1-share": sa1_share}  # fmt: skip
    tensor = {"--faults": faults_file, "--mibb": mibb, "--adsaf": adsaf}
    for names, backend in ((array, "numba"), (tensor, "torch")):
        given = [name for name, value in names.items() if value is not None]
        if given and fault_backend != backend:
            raise ConfigError(f"{given[0]} needs --fault-backend {backend}, got {fault_backend}")
    machine = None
    if fault_backend == "numba" or machine_too:
        machine = load_accel_option(accel, tuple(settings), dataflow)
    described = {"backend": fault_backend, "text": "none"}
    if machine is not None:
        described["accel"] = asdict(machine)
    if fault_backend == "none":
        return machine, None, described
    if fault_backend == "numba":
        if ber is seu_rate is stuck_cells is None:
            ber = "1e-5"
        chosen, model = fault_model(ber, seu_rate, (), hw_batch, stuck_cells, sa1_share)
        named = ", ".join(f"{name} {value}" for name, value in model.items())
        described |= {"model": model, "text": f"{machine.name} ({machine.dataflow}), {named}"}
        return machine, chosen, described
    from fsim.fault_models.statistical import config_of

    models = _models(faults_file, mibb, adsaf)
    if not models:
        raise ConfigError("--fault-backend torch needs --mibb, --adsaf or --faults FILE")
    configs = [config_of(entry) for entry in models]
    text = "; ".join(", ".join(f"{k} {v}" for k, v in config.items()) for config in configs)
    return machine, models, described | {"models": configs, "text": text}


def _models(faults_file, mibb, adsaf) -> list:
    """The file's models, then MiBB, then adSAF, these two on the grid of those before them."""
    from fsim.fault_models.statistical import common_grid, load_models, model_from_config
    from fsim.fault_models.statistical.model import TARGETS

    models = list(load_models(faults_file)) if faults_file is not None else []
    for target, config in zip(TARGETS, ({"model": "mibb", "p_m": mibb},
                                        {"model": "adsaf", "p": adsaf})):  # fmt: skip
        if None not in config.values():
            before = [model for model in models if model.target == target]
            grid = {"bits": before[0].bits, "grid": before[0].grid} if before else {}
            models.append(model_from_config(config | grid))
    for target in TARGETS:
        common_grid([model for model in models if model.target == target])
    return models

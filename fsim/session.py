"""A network, its data and its machine, made ready; and the task that states them all.

The task of a trace holds what decides its answers. `from_task` builds the same
session again and refuses weights, data or codes that are not the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import numpy as np

from fsim.accel_models.accel import Accel, Buffer
from fsim.accel_models.schema import check
from fsim.errors import ConfigError, FsimError, MappingError, TraceError
from fsim.nas.data import NAMES, SPLITS, Dataset, load_data, where
from fsim.nas.zoo import ZOO, LoadedModel, load_model
from fsim.simulator.attach_layers import Layered
from fsim.simulator.capture import capture
from fsim.simulator.inject import Golden, golden_run
from fsim.simulator.ops import Program
from fsim.simulator.quantise import quantise
from fsim.simulator.sites import Placement

CALIBRATION = 300
"""Training images that scales are calibrated on."""

FACTORY_SEED = 0
"""torch's seed while a `module:factory` makes its network."""


@dataclass(frozen=True, eq=False)
class Session:
    """Everything a run needs.

    identity  JSON values that decide the network's arithmetic and its input
    notes     what the user should know: what was assumed, what is not on the array
    layered   the network, where it runs layer by layer because it cannot be traced:
              `placement` then joins the layers' own
    """

    placement: Placement
    images: np.ndarray
    labels: np.ndarray
    identity: dict
    notes: tuple[str, ...]
    layered: Layered | None = None

    @property
    def program(self) -> Program:
        return self.placement.program

    def golden(self) -> Golden:
        """The fault-free run."""
        return golden_run(self.placement, self.images, self.labels)


def codes_sha256(program: Program) -> str:
    """Hash of every code, bias, multiplier and scale of a program."""
    digest = hashlib.sha256()
    for op in program.ops:
        digest.update(f"{type(op).__name__} {op.name} {op.inputs} {op.shape} {op.scale!r}".encode())
        for name in ("weight", "bias", "multiplier"):
            if hasattr(op, name):
                digest.update(np.ascontiguousarray(getattr(op, name)).tobytes())
        for name in ("lo", "hi", "m0", "m1", "shift", "stride", "padding", "groups"):
            digest.update(repr(getattr(op, name, None)).encode())
        if getattr(op, "truncate", 0):
            digest.update(f"truncate {op.truncate}".encode())
    return digest.hexdigest()


def open_session(
    model: str,
    accel: Accel,
    *,
    weights: str | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    images: int | None = None,
    quant_params: dict | None = None,
    calibration: int = CALIBRATION,
    sizes_only: bool = False,
    by_layers: bool = False,
) -> Session:
    """Load, quantise and place a network; errors are FsimError with one line each.

    sizes_only  random weights and images stand in for the zoo's checkpoints and data
                sets where they are not found: words, bits and cycles stay the same
    by_layers   a network that cannot be traced runs layer by layer instead of being refused
    """
    loaded = load_model(model, weights, seed=FACTORY_SEED, random_weights=sizes_only)
    notes = []
    if loaded.weights_path is None:
        notes.append(
            f"weights of {model} were not found: random ones, which have the same sizes"
            if model in ZOO
            else f"weights as the factory makes them (torch seed {FACTORY_SEED})"
        )
    name = loaded.default_data if data is None else data
    stand_in = (
        _stand_in(loaded, name, data_dir) if sizes_only and data is data_dir is None else None
    )
    if stand_in is not None:
        test = train = stand_in
        notes.append(f"images: random ones of {' x '.join(map(str, loaded.input_shape))}")
    elif name is None:
        raise ConfigError(f"--data must be given: {model} does not say which data it takes")
    else:
        test = load_data(name, "test", data_dir, images)
        train = load_data(name, "train", data_dir, calibration)
    if train.split == "all" and stand_in is None:
        notes.append(f"{name} has no splits: scales are calibrated on evaluation images")
    shape = tuple(test.images.shape[1:])
    if loaded.input_shape is not None and shape != tuple(loaded.input_shape):
        raise ConfigError(
            f"images must be {tuple(loaded.input_shape)} for {model}, got {shape} ({name})"
        )
    if not loaded.stated and test.pixel_max is not None and stand_in is None:
        notes.append(
            f"preprocessing: pixel / {test.pixel_max} ({model} states none, and pixels of {name} "
            f"are 0..{test.pixel_max})"
        )
    inputs = loaded.preprocessing_of(test)(test.images).numpy()
    seen = loaded.preprocessing_of(train)(train.images).numpy()
    placed = placed_network(loaded.model, seen, accel, quant_params, by_layers=by_layers)
    labels = np.asarray(test.labels)
    classes = int(placed.shape[-1])
    if labels.max() >= classes:
        raise ConfigError(
            f"labels must be below {classes}, the classes of {model}, got {labels.max()} ({name})"
        )
    notes += placed.notes
    identity = {
        "model": model,
        "weights": None if weights is None else str(weights),
        "weights_sha256": loaded.weights_sha256,
        "data": name,
        "data_dir": None if data_dir is None else str(data_dir),
        "data_sha256": test.sha256,
        "images": len(test),
        "calibration": calibration,
        "quant_params": quant_params,
        "codes_sha256": placed.codes_sha256,
        "accel": asdict(accel),
        "components": [component.name for component in accel.components],
        "layers": [op.name for op in placed.placement.program.ops],
    }
    return Session(placed.placement, inputs, labels, identity, tuple(notes), placed.layered)


@dataclass(frozen=True, eq=False)
class Placed:
    """A quantised network on its machine.

    placement, layered, notes  as of Session; shape of the logits, without the batch
    """

    placement: Placement
    codes_sha256: str
    shape: tuple[int, ...]
    notes: list[str]
    layered: Layered | None = None


def placed_network(
    module, seen: np.ndarray, accel: Accel, quant_params: dict | None, *, by_layers: bool = False
) -> Placed:
    """A torch network, captured, quantised and placed.

    seen       (c, ...) float32 calibration images
    by_layers  what to do with a network that cannot be traced: place each layer by itself,
               or raise MappingError
    """
    try:
        graph = capture(module, seen[:1])
    except MappingError as error:
        if not by_layers or quant_params is not None:
            raise
        layered = Layered(module, accel, seen, str(error))
        if not layered.uses:
            raise
        digest = hashlib.sha256()
        for use in layered.uses:
            digest.update(codes_sha256(use.placement.program).encode())
        notes = [*layered.coverage.notes]
        notes += [f"not on the array: {entry.name} ({entry.why})" for entry in
                  layered.coverage.other if entry.macs]  # fmt: skip
        placement = layered.space.placement
        return Placed(placement, digest.hexdigest(), layered.out_shape, notes, layered)
    program = quantise(
        graph, seen, accel_bits=accel.operand_bits, acc_bits=accel.acc_bits,
        unsigned=accel.unsigned_acts, truncates=accel.kind.layers, params=quant_params,
    )  # fmt: skip
    notes = [f"not on the array: {op.name} ({op.what})" for op in program.host_ops]
    return Placed(
        Placement(program, accel), codes_sha256(program), program.ops[-1].shape, notes
    )  # fmt: skip


def _stand_in(loaded: LoadedModel, name: str | None, data_dir) -> Dataset | None:
    """One random image, if the network says its shape and its data set is not here."""
    absent = name is None or (
        name in NAMES and not all(where(name, split, data_dir) for split in SPLITS)
    )
    if loaded.input_shape is None or not absent:
        return None
    images = np.random.default_rng(0).integers(0, 256, (1, *loaded.input_shape), np.uint8)
    return Dataset(images, np.zeros(1, np.int64), "random", "all", 1, "", "random")


def _stored_accel(described: dict) -> Accel:
    """The machine of a task, held to the rules of a description file."""
    described = dict(described)
    bits = {key: described[f"{key}_bits"] for key in ("operand", "product", "acc")}
    keep = ("name", "family", "dataflow", "overflow", "unsigned_acts", "buffers", "sources")
    data = {key: described[key] for key in keep}
    data |= {"about": "stored in a trace", "bits": bits}
    data["parameters"] = described.get("parameters", {})
    data["array"] = {"rows": described["rows"], "cols": described["cols"]}
    _, problems = check(data)
    if problems:
        key, text = problems[0]
        raise TraceError(f"the machine of the trace is not valid: {text} ({key})")
    described["buffers"] = {k: Buffer(**v) for k, v in described["buffers"].items()}
    described["dataflows"] = tuple(described["dataflows"])
    return Accel(**described)


def from_task(task: dict, model: str | None = None, *, by_layers: bool = False) -> Session:
    """The session of a trace's task, checked against the hashes stored in it.

    model  what the user says the network is. A trace that names `module:factory`
           is believed only if the user names the same: importing it runs its code.
    by_layers  as in `open_session`
    """
    stored = task.get("model")
    if model is not None and model != stored:
        raise TraceError(f"--model must be that of the trace, {stored!r}, got {model!r}")
    if not isinstance(stored, str):
        raise TraceError(f"the model of a trace must be text, got {_short(stored)}")
    if model is None and stored not in ZOO:
        raise TraceError(
            f"the trace names a network whose code would run, {_short(stored)!r}: give --model "
            "with the same name if you trust it"
        )
    try:
        accel = _stored_accel(task["accel"])
        wanted = {key: task[key] for key in ("model", "weights", "data", "data_dir", "images")}
        session = open_session(
            wanted.pop("model"),
            accel,
            **wanted,
            quant_params=task["quant_params"],
            calibration=task["calibration"],
            by_layers=by_layers,
        )
    except FsimError:
        raise
    # Values of another type or with a null byte in a path.
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TraceError(f"the trace's task must describe a network run, got {error}") from error
    for key in ("weights_sha256", "data_sha256", "codes_sha256", "components", "layers"):
        if task.get(key) != session.identity[key]:
            raise TraceError(
                f"{key} must be that of the trace, {_short(task.get(key))}, "
                f"got {_short(session.identity[key])}"
            )
    return session


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."

"""Read a checkpoint without running anything in it, and fit it to a network."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from fsim.errors import ConfigError

_SUFFIXES = (".pt", ".pth", ".th", ".safetensors")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_SHOWN = 4
_REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8}
_REAL |= {torch.int8, torch.int16, torch.int32, torch.int64}


def read_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Tensors by name of a .safetensors file or of a state_dict saved by torch
    (.pt, .pth, .th).

    A checkpoint that holds the state_dict under "state_dict", "model_state_dict",
    "model" or "net" is unpacked, and the "module." that DataParallel puts before
    every name is dropped. torch files are read with weights_only=True: no code
    in them runs, and a pickled whole module is refused.

    Raises ConfigError if the file is missing, damaged or of another kind.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ConfigError(
            f"weights must be a {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file, got {path}"
        )
    if not path.is_file():
        raise ConfigError(f"weights file {path} does not exist or is not a file")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{path} is not a readable safetensors file: {error}") from error
    return _state_dict(_load_torch(path), path)


def _load_torch(path: Path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise ConfigError(
                f"{path} holds more than tensors, probably a pickled whole module; loading it "
                "would run code from the file. Save torch.save(model.state_dict(), ...) or "
                "safetensors, and give the architecture as --model module:factory"
            ) from error
        raise ConfigError(f"{path} is not a readable torch file: {_first_line(error)}") from error
    # A damaged file makes torch's reader fail in many ways (RuntimeError, EOFError,
    # KeyError, AttributeError, ...); for the user all of them mean the same.
    except Exception as error:
        raise ConfigError(f"{path} is not a readable torch file: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    # Of an UnpicklingError torch's text recommends to run the file's code.
    text = "" if isinstance(error, pickle.UnpicklingError) else str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _state_dict(content, path: Path) -> dict[str, torch.Tensor]:
    """The state_dict in what torch.load returned."""
    if isinstance(content, torch.nn.Module):
        raise ConfigError(f"{path} holds a whole module; a state_dict is needed")
    if isinstance(content, Mapping):
        for key in _WRAPPERS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} must hold a state_dict, got {type(content).__name__}")
    wrong = [str(k) for k, v in content.items() if not isinstance(v, torch.Tensor)]
    wrong += [repr(k) for k in content if not isinstance(k, str)]
    if wrong or not content:
        what = f"other entries: {shortened(wrong)}" if wrong else "nothing"
        raise ConfigError(f"{path} must hold a state_dict of named tensors, got {what}")
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return dict(content)


def shortened(names: list[str], shown: int = _SHOWN) -> str:
    """The first few of the names, and how many more there are."""
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"


def fit(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Load weights into the model, whole or not at all.

    Raises one ConfigError that lists what is missing, what is unexpected, which
    shapes differ and which tensors hold NaN or infinity. Batch counters
    (num_batches_tracked) may be absent: they play no part in inference.
    """
    own = _own_state(model)
    missing = [n for n in own if n not in weights and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in weights if n not in own]
    differing = [
        f"{n} {tuple(weights[n].shape)} instead of {tuple(own[n].shape)}"
        for n in own
        if n in weights and weights[n].shape != own[n].shape
    ]
    unfit = [
        n
        for n, tensor in weights.items()
        if tensor.layout != torch.strided
        or tensor.is_quantized
        or tensor.is_meta
        or tensor.dtype not in _REAL
    ]
    # Of the right shape only: a few bytes can stand for a tensor of terabytes.
    not_finite = [
        n
        for n, tensor in own.items()
        if n in weights
        and n not in unfit
        and weights[n].shape == tensor.shape
        and tensor.is_floating_point()
        and not torch.isfinite(weights[n].to(tensor.dtype)).all()
    ]
    problems = [
        f"{len(names)} {what} ({shortened(names)})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", differing),
            ("not dense real tensors", unfit),
            ("with NaN or infinity", not_finite),
        )
        if names
    ]
    if problems:
        raise ConfigError(
            f"the checkpoint {source} does not fit {type(model).__name__}: {'; '.join(problems)}"
        )
    model.load_state_dict({**own, **weights})


def _own_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's state_dict; ConfigError unless it consists of dense, allocated tensors."""
    state = dict(model.state_dict())
    wrong = [
        name
        for name, tensor in state.items()
        if not isinstance(tensor, torch.Tensor)
        or isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin)
        or tensor.layout != torch.strided
        or tensor.is_meta
        or tensor.is_quantized
    ]
    if wrong:
        raise ConfigError(
            f"parameters and buffers of {type(model).__name__} must be dense tensors that hold "
            f"values, got others: {shortened(wrong)}"
        )
    return state


def digest(model: torch.nn.Module) -> str:
    """SHA-256 of all parameters and buffers of a model: names, types, shapes and values.

    The same for the same weights whatever file they came from. Raises ConfigError
    for a model with sparse, quantised, lazy or meta tensors.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(_own_state(model).items()):
        tensor = tensor.detach().cpu().contiguous()
        sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        sha.update(np.ascontiguousarray(tensor.flatten().view(torch.uint8).numpy()))
    return sha.hexdigest()

"""Networks by name: the zoo, and the user's own as `module:factory`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fsim.errors import ConfigError
from fsim.nas.checkpoint import digest, fit, read_weights
from fsim.nas.data import Dataset
from fsim.nas.digits_cnn import DigitsCNN
from fsim.nas.places import model_places
from fsim.nas.preprocessing import Preprocessing
from fsim.nas.resnet import ResNet8, ResNet20
from fsim.parse import nearest

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ZooEntry:
    """What the zoo knows of a network.

    build          makes it without weights
    file           name of its checkpoint; None: it comes with the package
    input_shape    (channels, height, width)
    preprocessing  from uint8 images to its input
    default_data   data set it was trained on
    accuracy       share of that data set's test images it gets right, in float
    source         where architecture and weights come from, and their licence
    """

    build: Callable[[], torch.nn.Module]
    file: str | None
    input_shape: tuple[int, int, int]
    num_classes: int
    preprocessing: Preprocessing
    default_data: str
    accuracy: float
    source: str


ZOO = {
    "digits-cnn": ZooEntry(
        build=DigitsCNN,
        file=None,
        input_shape=(1, 8, 8),
        num_classes=10,
        preprocessing=Preprocessing(scale=1 / 16),
        default_data="digits",
        accuracy=532 / 539,
        source="trained by python -m fsim.nas.train_digits",
    ),
    "resnet20": ZooEntry(
        build=ResNet20,
        file="resnet20.pt",
        input_shape=(3, 32, 32),
        num_classes=10,
        preprocessing=Preprocessing(1 / 255, _IMAGENET_MEAN, _IMAGENET_STD),
        default_data="cifar10",
        accuracy=0.9173,
        source="akamaster/pytorch_resnet_cifar10 (BSD-2-Clause), pretrained_models/resnet20",
    ),
    "resnet8": ZooEntry(
        build=ResNet8,
        file="resnet8_mlperftiny.pt",
        input_shape=(3, 32, 32),
        num_classes=10,
        preprocessing=Preprocessing(),
        default_data="cifar10",
        accuracy=0.8719,
        source="mlcommons/tiny (Apache-2.0), benchmark/training/image_classification, "
        "its TensorFlow weights converted to the names conv.0-8, bn.0-6 and fc",
    ),
}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network ready to run.

    model           in eval mode, on the CPU
    name            the spec it was loaded by
    input_shape     (channels, height, width), or None where a factory does not say
    num_classes     logits an image, or None where a factory does not say
    preprocessing   from uint8 images to network input; where neither the factory nor
                    the caller states one, pixels of 0..255 as 0..1
    stated          whether somebody stated it (see `preprocessing_of`)
    default_data    data set to use where the user names none, or None
    weights_sha256  of all parameters and buffers (`checkpoint.digest`)
    weights_path    file they were read from, or None: those the factory made
    """

    model: torch.nn.Module
    name: str
    input_shape: tuple[int, int, int] | None
    num_classes: int | None
    preprocessing: Preprocessing
    default_data: str | None
    weights_sha256: str
    weights_path: Path | None
    stated: bool = True

    def preprocessing_of(self, data: Dataset) -> Preprocessing:
        """What `data` needs: the network's own, or its pixels scaled to 0..1."""
        if self.stated or data.pixel_max is None:
            return self.preprocessing
        return Preprocessing(scale=1 / data.pixel_max)


def load_model(
    spec: str,
    weights: str | os.PathLike | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    seed: int | None = None,
    random_weights: bool = False,
) -> LoadedModel:
    """A network by zoo name or `module:factory`, with its weights, in eval mode.

    spec           a name of ZOO; or `module:factory`, where calling factory()
                   without arguments gives a torch.nn.Module. The module is
                   imported with the current directory on the path: its code runs.
    weights        checkpoint file (.pt, .pth, .th, .safetensors). For a zoo network
                   also a folder that holds its checkpoint, and None searches
                   `places.model_places`. For a factory None keeps the weights
                   it made.
    preprocessing  in place of the network's own
    seed           of torch while a factory runs, so that the weights it makes are
                   the same each time; torch's own state stays as it was. None: the
                   factory draws from torch as it is
    random_weights  a zoo network whose checkpoint is not found gets random weights
                   and no `weights_path`: enough for sizes

    A factory's module may carry `input_shape`, `num_classes`, `preprocessing` (a
    Preprocessing) and `default_data` as attributes. Without a preprocessing of
    its own it gets pixels scaled to 0..1, as torchvision's ToTensor does; how far
    pixels reach depends on the data (`LoadedModel.preprocessing_of`).

    Raises ConfigError for an unknown name, a module that does not give a network,
    and weights that are not found, not readable or do not fit.
    """
    if spec in ZOO:
        return _from_zoo(spec, weights, preprocessing, random_weights)
    if ":" in spec:
        return _from_factory(spec, weights, preprocessing, seed)
    raise ConfigError(
        f"model must be one of {', '.join(ZOO)} or module:factory, got {spec!r}{nearest(spec, ZOO)}"
    )


def _from_zoo(name: str, weights, preprocessing, random_weights: bool) -> LoadedModel:
    entry = ZOO[name]
    path = _find_weights(name, entry, weights, random_weights and weights is None)
    with _seeded(0):  # initial weights must not move the caller's stream
        model = entry.build()
    if path is not None:
        fit(model, read_weights(path), str(path))
    return LoadedModel(
        model=model.eval(),
        name=name,
        input_shape=entry.input_shape,
        num_classes=entry.num_classes,
        preprocessing=preprocessing or entry.preprocessing,
        default_data=entry.default_data,
        weights_sha256=digest(model),
        weights_path=path,
    )


@contextmanager
def _seeded(seed: int | None):
    """torch begins at `seed` and is afterwards as it was; None: as it is."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _find_weights(name: str, entry: ZooEntry, weights, optional: bool) -> Path | None:
    """The checkpoint file of a zoo network; None if `optional` and not there."""
    if weights is not None and not Path(weights).is_dir():
        return Path(weights)
    if entry.file is None:
        file = f"{name}.safetensors"
        places = [Path(__file__).resolve().parent / "weights"]
        places = places if weights is None else [Path(weights)]
    else:
        file = entry.file
        places = model_places(weights) if weights is None else [Path(weights)]
    for place in places:
        if (place / file).is_file():
            return place / file
    if optional:
        return None
    raise ConfigError(
        f"no weights for {name}: {file} was looked for in "
        f"{', '.join(str(place) for place in places)}. They come from {entry.source}; "
        "put the file into one of these folders or give it as --weights FILE"
    )


def _from_factory(spec: str, weights, preprocessing, seed: int | None) -> LoadedModel:
    model = _call_factory(spec, seed)
    path = None
    if weights is not None:
        path = Path(weights)
        fit(model, read_weights(path), str(path))
    shape, classes = getattr(model, "input_shape", None), getattr(model, "num_classes", None)
    own = getattr(model, "preprocessing", None)
    data = getattr(model, "default_data", None)
    if shape is not None and not _is_image_shape(shape):
        raise ConfigError(
            f"input_shape of {spec} must be (channels, height, width), positive, got {shape!r}"
        )
    if classes is not None and not (isinstance(classes, int) and classes >= 1):
        raise ConfigError(f"num_classes of {spec} must be a positive integer, got {classes!r}")
    if own is not None and not isinstance(own, Preprocessing):
        raise ConfigError(
            f"preprocessing of {spec} must be a fsim.nas.preprocessing.Preprocessing, "
            f"got {type(own).__name__}"
        )
    if data is not None and not isinstance(data, str):
        raise ConfigError(f"default_data of {spec} must be a name or a path, got {data!r}")
    return LoadedModel(
        model=model.eval(),
        name=spec,
        input_shape=None if shape is None else tuple(shape),
        num_classes=classes,
        preprocessing=preprocessing or own or Preprocessing(scale=1 / 255),
        default_data=data,
        weights_sha256=digest(model),
        weights_path=path,
        stated=preprocessing is not None or own is not None,
    )


def _is_image_shape(shape) -> bool:
    return (
        isinstance(shape, (tuple, list))
        and len(shape) == 3
        and all(isinstance(size, int) and size >= 1 for size in shape)
    )


def _call_factory(spec: str, seed: int | None) -> torch.nn.Module:
    """The module that the user's factory returns.

    Whatever the user's own code raises becomes a ConfigError that names it.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"model must be module:factory, got {spec!r}")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        try:
            with _seeded(seed):  # a module may make the network itself
                module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"model {spec}: cannot import {module_name!r} (from {here} or the installed "
                f"packages): {type(error).__name__}: {error}"
            ) from error
        factory = getattr(module, attribute, None)
        if factory is None or not callable(factory):
            raise ConfigError(
                f"model {spec}: {module_name} ({getattr(module, '__file__', None)}) has no "
                f"factory {attribute!r}"
            )
        try:
            with _seeded(seed):
                model = factory if isinstance(factory, torch.nn.Module) else factory()
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"model {spec}: calling {attribute}() failed: {type(error).__name__}: {error}"
            ) from error
    finally:
        sys.path.remove(here)
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"model {spec}: {attribute}() must return a torch.nn.Module, got {type(model).__name__}"
        )
    return model

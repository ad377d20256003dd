"""What is trained on what: a network by name and the images of a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fsim.errors import ConfigError
from fsim.nas.checkpoint import digest, fit, read_weights
from fsim.nas.data import Dataset, load_data
from fsim.nas.networks.registry import NETWORKS, build_network
from fsim.nas.preprocessing import Preprocessing
from fsim.nas.space.cells import build_network as build_cells
from fsim.nas.space.files import load_architecture, packaged_genotypes
from fsim.nas.zoo import ZOO, load_model
from fsim.parse import nearest

_CIFAR = Preprocessing(1 / 255, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
"""Mean and standard deviation of the CIFAR-10 training images, by channel."""

AUGMENTATION = {"digits": (1, False), "cifar10": (4, True), "fashion-mnist": (2, True)}
"""Data set -> (pixels of shift, mirrored or not), as they are usually trained."""


@dataclass(frozen=True, eq=False)
class Setting:
    """A network with its data.

    train, test  ((n, c, h, w) float32 network input, (n,) int64 labels)
    identity     JSON-ready: what it was made from
    """

    model: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    shift: int
    flip: bool
    identity: dict

    def to(self, device: torch.device) -> Setting:
        """The same with network, images and labels on a device; the network is moved."""
        train, test = (
            (images.to(device), labels.to(device)) for images, labels in (self.train, self.test)
        )
        return replace(self, model=self.model.to(device), train=train, test=test)


def load_setting(model, *, width, weights, data, data_dir, images, test_images, seed) -> Setting:
    """Network and images by the names that `fsim train` takes, or of a genotype file.

    New weights are drawn from `seed`. Raises ConfigError for unknown names and for
    data that does not fit the network.
    """
    if is_genotype(model):
        load_architecture(model)  # what is wrong with it shows before data are read
    elif width != 1.0 and model not in NETWORKS:
        raise ConfigError(f"--width belongs to {', '.join(NETWORKS)}, got --model {model}")
    known_model = model in ZOO or model in NETWORKS or ":" in model
    if not known_model and not is_genotype(model):
        known = (*ZOO, *NETWORKS)
        raise ConfigError(
            f"model must be one of {', '.join(known)} or module:factory, got {model!r}"
            + nearest(model, known)
        )
    if data is None:
        data = ZOO[model].default_data if model in ZOO else "cifar10" if model in NETWORKS else None
    if data is None:
        raise ConfigError(f"--data must be given: {model} does not say which data it takes")
    parts = [
        load_data(data, "train", data_dir, images),
        load_data(data, "test", data_dir, test_images),
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, preprocessing = _network(model, width, parts[0], weights)
    if weights is not None:
        fit(network, read_weights(weights), str(weights))
    inputs = [preprocessing(part.images) for part in parts]
    labels = [torch.from_numpy(part.labels) for part in parts]
    try:
        with torch.no_grad():
            logits = network.eval()(inputs[0][:2])
    except (RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise ConfigError(
            f"the images must fit the network, got {tuple(inputs[0].shape[1:])}: {line} ({model})"
        ) from error
    if logits.ndim != 2 or logits.shape[1] < parts[0].num_classes:
        raise ConfigError(
            f"{model} must give a logit for each of {parts[0].num_classes} classes, got "
            f"{tuple(logits.shape[1:])}"
        )
    shift, flip = AUGMENTATION.get(data, (0, False))
    identity = {
        "model": model, "width": width, "start": digest(network), "data": [p.sha256 for p in parts],
    }  # fmt: skip
    pairs = list(zip(inputs, labels))
    return Setting(network, *pairs, shift, flip, identity)


def is_genotype(model: str) -> bool:
    """Whether a model's name is that of a genotype, packaged or in a file."""
    return model.endswith((".toml", ".json")) or model in packaged_genotypes()


def preprocessing_of(part: Dataset) -> Preprocessing:
    """Of a data set, for a network that has none of its own."""
    if part.name == "digits":
        return ZOO["digits-cnn"].preprocessing
    return _CIFAR if part.images.shape[1] == 3 else Preprocessing(1 / 255)


def _network(name: str, width: float, part, weights):
    """(network with new weights, its preprocessing)."""
    _, channels, height, _ = part.images.shape
    if name in ZOO:
        return ZOO[name].build(), ZOO[name].preprocessing
    if is_genotype(name):
        found = load_architecture(name)
        found = replace(found, space=found.space.scaled(width))
        built = build_cells(found, num_classes=part.num_classes, in_channels=channels)
        return built, preprocessing_of(part)
    if name in NETWORKS:
        built = build_network(
            name, num_classes=part.num_classes, in_channels=channels, image_size=height,
            width=width,
        )  # fmt: skip
        return built, _CIFAR if channels == 3 else Preprocessing(1 / 255)
    loaded = load_model(name)
    return loaded.model, loaded.preprocessing_of(part)

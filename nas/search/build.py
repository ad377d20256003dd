"""A search from plain options: presets, the method by name, the backend by what is given."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from fsim.errors import ConfigError
from fsim.nas.data import load_data
from fsim.nas.space.definition import ADSAF_PRIMITIVES, SPACES, CellSpace
from fsim.nas.space.genotype import random_genotype
from fsim.nas.space.supernet import Supernet
from fsim.nas.training.setting import AUGMENTATION, preprocessing_of

from .controller import Controller
from .evolution import Evolution
from .multi import MultiObjective
from .paths import ArrayPaths, NoPathFaults, TensorPaths
from .products import Products
from .search import Search, SearchSettings
from .searchers import RandomSampling
from .supernet_training import batch_statistics

METHODS = {
    "rl": Controller,
    "evolution": Evolution,
    "random": RandomSampling,
    "multi": MultiObjective,
}
SMALL = CellSpace(ADSAF_PRIMITIVES, "relu_conv_bn_1x1", "NRN", 2, 8)
PRESETS = {
    "default": SearchSettings(epochs=20, proposals=16, warmup=4),
    "paper": SearchSettings(),
}
"""default: minutes on two cores with the embedded data. paper: arXiv 2003.10375 as aw_nas
configures it, 100 epochs of 625 weight steps and 157 rewards on CIFAR-10."""


@dataclass(frozen=True, eq=False)
class Built:
    """A search, its identity, and the space."""

    search: Search
    identity: dict
    space: CellSpace


def space_of(preset: str, weights: bool, changes: dict) -> CellSpace:
    """The preset's space, with fields changed.

    weights  faults are of weights: the paper then has more primitives
    changes  fields of CellSpace; None: as they are
    """
    space = SMALL if preset == "default" else SPACES["adsaf" if weights else "mibb"]
    changes = {key: value for key, value in changes.items() if value is not None}
    if isinstance(changes.get("primitives"), str):
        named = SPACES.get(changes["primitives"])
        text = changes["primitives"].split(",")
        changes["primitives"] = named.primitives if named else tuple(p.strip() for p in text)
    return replace(space, **changes)


def build_search(
    method: str, settings: SearchSettings, space: CellSpace, faults, *, data="digits",
    data_dir=None, images=None, device="cpu",
) -> Built:  # fmt: skip
    """A search with new weights.

    faults  (Accel or None, fault model(s) or None, JSON-ready description)
    device  of supernet and images; no part of the identity
    ConfigError for what does not fit together.
    """
    machine, models, described = faults
    part = load_data(data, "train", data_dir, images)
    inputs = preprocessing_of(part)(part.images).to(device)
    labels = torch.from_numpy(part.labels).to(device)
    shift, flip = AUGMENTATION.get(part.name, (settings.shift, settings.flip))
    settings = replace(settings, shift=shift, flip=flip)
    if described["backend"] == "none":
        settings = replace(settings, alpha_l=0.0, alpha_r=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        supernet = Supernet(space, num_classes=part.num_classes, in_channels=inputs.shape[1])
    batch_statistics(supernet).to(device)
    products = None
    if machine is not None:
        products = Products(supernet, machine, inputs, seed=settings.seed)
    if described["backend"] == "numba":
        products.model = models
        backend = ArrayPaths(products)
    elif described["backend"] == "torch":
        backend = TensorPaths(supernet, models, settings.seed)
    else:
        backend = NoPathFaults(supernet)
    searcher = METHODS[method](space, settings.seed)
    if searcher.objectives > 1 and products is None:
        raise ConfigError(f"--method {method} needs a machine for its cycles, got none")
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            supernet(inputs[:2], random_genotype(space, np.random.default_rng(0)))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the images must fit the space, got {tuple(inputs.shape[1:])}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    cycles = None if products is None else lambda genotype: products.of(genotype).cycles
    search = Search(backend, searcher, settings, (inputs, labels), cycles)
    identity = {
        "method": method, "space": asdict(space), "settings": asdict(settings),
        "faults": described, "data": part.sha256,
    }  # fmt: skip
    return Built(search, identity, space)

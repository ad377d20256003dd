"""The networks of the paper's tables, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from fsim.errors import ConfigError
from fsim.nas.space.cells import build_network as build_cells
from fsim.nas.space.files import load_architecture
from fsim.parse import nearest

from .mobilenet_v2 import MobileNetV2
from .resnet18 import ResNet18
from .vgg16 import VGG16

_REFERENCE = "walkerning/aw_nas"


@dataclass(frozen=True)
class NetworkEntry:
    """build(num_classes, in_channels, image_size, width), and where the definition is from."""

    build: Callable[[int, int, int, float], nn.Module]
    source: str


def _w_ftt_net(init_channels: int) -> NetworkEntry:
    def build(num_classes: int, in_channels: int, image_size: int, width: float) -> nn.Module:
        found = load_architecture("w-ftt-net")
        space = replace(found.space, init_channels=init_channels).scaled(width)
        architecture = replace(found, space=space)
        return build_cells(architecture, num_classes=num_classes, in_channels=in_channels)

    return NetworkEntry(build, f"genotype w-ftt-net ({_REFERENCE} adsaf_final.yaml)")


NETWORKS = {
    "resnet18": NetworkEntry(
        lambda classes, channels, size, width: ResNet18(classes, channels, width),
        f"He et al. 2016, for CIFAR; the paper's ResNet-20 ({_REFERENCE} archive/ftt)",
    ),
    "vgg16": NetworkEntry(
        lambda classes, channels, size, width: VGG16(classes, channels, width, size),
        f"Simonyan and Zisserman 2015, with BN ({_REFERENCE} archive/ftt)",
    ),
    "mobilenet-v2": NetworkEntry(
        lambda classes, channels, size, width: MobileNetV2(classes, channels, width),
        f"Sandler et al. 2018, for CIFAR ({_REFERENCE} archive/ftt)",
    ),
    "w-ftt-net-20": _w_ftt_net(20),
    "w-ftt-net-40": _w_ftt_net(40),
}
"""Name -> entry."""


def build_network(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
) -> nn.Module:
    """A network of NETWORKS with new weights: (n, in_channels, h, w) to (n, num_classes).

    image_size  height and width; only VGG-16 depends on it
    width       times as many channels in every layer, rounded, at least one
    ConfigError for an unknown name and for sizes that are not valid.
    """
    if name not in NETWORKS:
        raise ConfigError(
            f"network must be one of {', '.join(NETWORKS)}, got {name!r}{nearest(name, NETWORKS)}"
        )
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    for key, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 14:
            raise ConfigError(f"{key} must be a whole number from 1 to {1 << 14}, got {value!r}")
    return NETWORKS[name].build(num_classes, in_channels, image_size, width)

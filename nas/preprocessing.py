"""From the stored pixels of a data set to the float input a network was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fsim.errors import ConfigError


def _channel_values(name: str, values: float | tuple[float, ...]) -> tuple[float, ...]:
    try:
        out = tuple(float(v) for v in np.atleast_1d(np.asarray(values, dtype=np.float64)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"preprocessing {name} must be a number or one a channel, got {values!r}"
        ) from error
    if not out or not np.all(np.isfinite(out)):
        raise ConfigError(f"preprocessing {name} must be finite numbers, got {values!r}")
    return out


@dataclass(frozen=True)
class Preprocessing:
    """input = (pixel * scale - mean) / std, by channel; it belongs to the model.

    scale  multiplies the uint8 pixel, for example 1/255
    mean   one value, or one a channel, in units of the scaled pixel
    std    one value, or one a channel, not 0

    Evaluated in float64 and rounded to float32 once: the input has the same bits
    on every machine. Raises ConfigError for values that are not finite.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        scale = _channel_values("scale", self.scale)
        if len(scale) != 1:
            raise ConfigError(f"preprocessing scale must be one number, got {self.scale!r}")
        object.__setattr__(self, "scale", scale[0])
        object.__setattr__(self, "mean", _channel_values("mean", self.mean))
        object.__setattr__(self, "std", _channel_values("std", self.std))
        if 0.0 in self.std:
            raise ConfigError(f"preprocessing std must not be 0, got {self.std}")
        if len(self.mean) > 1 and len(self.std) > 1 and len(self.mean) != len(self.std):
            raise ConfigError(
                "preprocessing mean and std must have one value or one a channel each, "
                f"got {len(self.mean)} and {len(self.std)}"
            )

    def table(self, channels: int) -> np.ndarray:
        """Network input of every pixel value: (channels, 256) float32.

        Raises ConfigError if mean or std name another number of channels.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise ConfigError(
                    f"preprocessing {name} must have 1 or {channels} values for images of "
                    f"{channels} channels, got {len(values)}"
                )
        pixel = np.arange(256, dtype=np.float64) * self.scale
        mean = np.broadcast_to(np.asarray(self.mean), (channels,))[:, None]
        std = np.broadcast_to(np.asarray(self.std), (channels,))[:, None]
        return ((pixel - mean) / std).astype(np.float32)

    def __call__(self, images: np.ndarray) -> torch.Tensor:
        """Images (n, c, h, w) as float32 network input of the same shape.

        uint8 images are scaled and normalised. Float images count as network
        input already and are only converted to float32. Raises ConfigError for
        any other type or shape.
        """
        images = np.asarray(images)
        if images.ndim != 4:
            raise ConfigError(f"images must have shape (n, c, h, w), got shape {images.shape}")
        if images.dtype.kind == "f":
            return torch.from_numpy(np.array(images, dtype=np.float32, order="C"))
        if images.dtype != np.uint8:
            raise ConfigError(f"images must be uint8 or float, got {images.dtype}")
        table = self.table(images.shape[1])
        out = np.empty(images.shape, np.float32)
        for channel in range(images.shape[1]):
            np.take(table[channel], images[:, channel], out=out[:, channel], mode="clip")
        return torch.from_numpy(out)

"""Options that say which network, data and scales a command works on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from fsim.cli.options import Probability
from fsim.errors import ConfigError


def network_options(command):
    """--model, --weights, --data, --data-dir, --images, --quant-params."""
    for option in (
        click.option("--quant-params", type=click.Path(path_type=Path), metavar="FILE",
                     help="JSON of your own scales; what it does not name is calibrated."),
        click.option("--images", type=click.IntRange(1), help="Test images (default: up to 500)."),
        click.option("--data-dir", help="Folder of the data set."),
        click.option("--data", help="digits, cifar10, fashion-mnist or an .npz file."),
        click.option("--weights",
                     help="Checkpoint: .pt, .pth or .th (tensors only) or .safetensors."),
        click.option("--model", default="digits-cnn", show_default=True,
                     help="digits-cnn, resnet20, resnet8 or module:factory."),
    ):  # fmt: skip
        command = option(command)
    return command


def stuck_options(command):
    """--stuck-cells, --sa1-share."""
    for option in (
        click.option("--sa1-share", type=Probability, metavar="SHARE",
                     help="With --stuck-cells: share of them that read 1, the others read 0.  "
                     "[default: 0.163]"),
        click.option("--stuck-cells", type=Probability, metavar="P",
                     help="Probability that a cell of the weight memory, one bit of one weight, is "
                     "stuck for the whole trial."),
    ):  # fmt: skip
        command = option(command)
    return command


MAX_PARAMS_BYTES = 64 << 20


def _distinct(items: list[tuple[str, object]]) -> dict:
    """A JSON object whose keys differ: of two equal ones JSON would keep the last."""
    found = dict(items)
    if len(found) < len(items):
        names = [name for name, _ in items]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} twice")
    return found


def read_quant_params(path: Path | None) -> dict | None:
    if path is None:
        return None
    if not path.is_file():
        raise ConfigError(f"quantisation parameters must be a file that exists, got {path}")
    if path.stat().st_size > MAX_PARAMS_BYTES:
        raise ConfigError(f"quantisation parameters must be under 64 MiB ({path})")
    try:
        value = json.loads(path.read_text("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"quantisation parameters must be JSON, got {error} ({path})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"quantisation parameters must be a JSON object ({path})")
    return value


def session_of_options(
    machine, model, weights, data, data_dir, images, quant_params, *, by_layers: bool = False
):
    """The Session that the values of `network_options` describe, at most 500 images by default.

    by_layers  as in `open_session`
    """
    from fsim.session import open_session

    session = open_session(
        model, machine, weights=weights, data=data, data_dir=data_dir, images=images or 500,
        quant_params=read_quant_params(quant_params), by_layers=by_layers,
    )  # fmt: skip
    if images is not None and len(session.images) < images:
        short = f"{images} images were asked for, the data set has {len(session.images)}"
        session = replace(session, notes=(*session.notes, short))
    return session


def names_of(text: str | None, option: str) -> list[str] | None:
    """Comma-separated names, each once; None where the option is not given."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"{option} must name things once each, comma separated, got {text!r}")
    return names

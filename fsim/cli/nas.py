"""`fsim nas`: the group, networks of the paper and the cells of genotypes."""

from __future__ import annotations

from dataclasses import asdict

import click

from fsim.cli.lazy import LazyGroup
from fsim.cli.options import json_option
from fsim.cli.tables import pairs, print_json, table

COMMANDS: dict[str, tuple[str, str]] = {
    "search": ("fsim.cli.nas_search:search", "Search an architecture that bears faults."),
    "derive": ("fsim.cli.nas_search:derive", "The best of several genotypes of a search."),
    "train": ("fsim.cli.nas_train:train", "Train a genotype from scratch."),
    "evaluate": ("fsim.cli.nas_train:evaluate", "A trained genotype over many fault maps."),
    "networks": ("fsim.cli.nas:networks", "The paper's networks: FLOPs and parameters."),
    "show": ("fsim.cli.nas:show", "The cells of a genotype, as text and as a picture."),
}
"""Subcommand -> (module:attribute, its line in `fsim nas --help`)."""


class NasGroup(LazyGroup):
    """`fsim nas`."""

    table = COMMANDS


@click.group(cls=NasGroup, context_settings={"help_option_names": ["-h", "--help"]})
def nas():
    """Networks of the paper, genotypes, architecture search."""


_LARGEST = 1 << 14

width_option = click.option(
    "--width",
    type=float,
    default=1.0,
    show_default=True,
    metavar="FACTOR",
    help="Times as many channels in every layer.",
)
classes_option = click.option(
    "--classes", type=click.IntRange(1, _LARGEST), default=10, show_default=True
)
image_option = click.option(
    "--image-size",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="Height and width of the images.",
)
channels_option = click.option(
    "--channels",
    type=click.IntRange(1, _LARGEST),
    default=3,
    show_default=True,
    help="Channels of the images.",
)


@click.command()
@width_option
@classes_option
@channels_option
@image_option
@json_option
def networks(width, classes, channels, image_size, as_json):
    """FLOPs and parameters of the networks that the paper compares.

    FLOPs are 2 x multiply-adds of convolutions and linear layers for one image. Weights
    are those of convolutions and linear layers; parameters are all that are learnt.
    """
    import torch

    from fsim.nas.networks.cost import cost
    from fsim.nas.networks.registry import NETWORKS, build_network

    rows = []
    for name, entry in NETWORKS.items():
        with torch.device("meta"):  # shapes without values: counted, not computed
            model = build_network(
                name,
                num_classes=classes,
                in_channels=channels,
                image_size=image_size,
                width=width,
            )
        found = cost(model, (channels, image_size, image_size))
        rows.append({"network": name, **asdict(found), "source": entry.source})
    if as_json:
        print_json(rows)
        return
    head = ("network", "MFLOPs", "weights, M", "parameters, M", "defined by")
    click.echo(
        table(
            head,
            [
                (
                    row["network"],
                    f"{row['flops'] / 1e6:.1f}",
                    f"{row['weights'] / 1e6:.3f}",
                    f"{row['parameters'] / 1e6:.3f}",
                    row["source"],
                )
                for row in rows
            ],
            right=head[1:4],
        )
    )
    click.echo("\nMFLOPs: 2 x multiply-adds of convolutions and linear layers, one image")
    click.echo("weights: of convolutions and linear layers; parameters: all that are learnt")


@click.command()
@click.argument("genotype", metavar="GENOTYPE|NAME")
@click.option("--out", type=click.Path(), metavar="FILE", help="Also draw them: .png or .svg.")
@json_option
def show(genotype, out, as_json):
    """The cells of a genotype, as text and with --out as a picture.

    GENOTYPE is a .toml or .json file; w-ftt-net comes with the package.
    """
    from fsim.nas.space.files import as_tree, load_architecture
    from fsim.nas.space.genotype import describe

    architecture = load_architecture(genotype)
    if out:
        from fsim.nas.space.drawing import draw

        draw(architecture, out)
    if as_json:
        print_json(as_tree(architecture))
        return
    space = architecture.space
    rows = [
        ("name", architecture.name or genotype),
        ("source", architecture.source or "not given"),
        ("layout", " ".join(space.layout)),
        ("channels", f"{space.init_channels}, doubled by every R"),
        ("preprocess", space.preprocess),
        ("operations", f"{len(space.primitives)}: {', '.join(space.primitives)}"),
    ]
    if out:
        rows.append(("written", out))
    click.echo(pairs(rows))
    click.echo()
    click.echo(describe(architecture))

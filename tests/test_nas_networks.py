"""The paper's networks: their cost to the printed digit, fault points, reduced versions, CLI."""

from __future__ import annotations

import json

import pytest
import torch
from torch import fx, nn

from fsim.errors import ConfigError
from fsim.nas.networks.cost import Cost, cost
from fsim.nas.networks.fault_points import fault_points, macs_per_value
from fsim.nas.networks.registry import NETWORKS, build_network
from fsim.nas.resnet import ResNet20
from fsim.nas.space.files import PACKAGED
from tests.test_imports import HELP, loaded_by

PAPER = {
    "resnet18": ("1110.8", "11.164", "11.174"),
    "vgg16": ("626.4", "14.716", "14.728"),
    "mobilenet-v2": ("182.3", "2.262", "2.297"),
    "w-ftt-net-20": ("919.4", "2.705", "2.711"),
    "w-ftt-net-40": ("3655.7", "10.775", "10.788"),
}
"""MFLOPs, M weights of convolutions and linear layers, M parameters; ../shared/paper.md 5."""


def on_meta(name, **sizes):
    with torch.device("meta"):
        return build_network(name, **sizes)


@pytest.mark.parametrize("name", PAPER)
def test_cost_is_the_papers_to_the_digits_printed(name):
    found = cost(on_meta(name), (3, 32, 32))
    assert (
        f"{found.flops / 1e6:.1f}",
        f"{found.weights / 1e6:.3f}",
        f"{found.parameters / 1e6:.3f}",
    ) == PAPER[name]


def test_cost_of_a_small_network_by_hand():
    network = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),  # 5 x 5 to 3 x 3
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 7),
    )
    macs = 6 * 3 * 3 * (2 * 9) + 54 * 7
    weights = 6 * 2 * 9 + 54 * 7
    network.train()
    assert cost(network, (4, 5, 5)) == Cost(2 * macs, weights, weights + 6 + 12 + 7)
    assert network.training and network[0].weight.device.type == "cpu"
    assert int(network[1].num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("conv", "macs"),
    # ../shared/paper.md 2.2, table of p: its column of M
    [
        (nn.Conv2d(20, 20, 3, groups=20), 9),
        (nn.Conv2d(20, 20, 1), 20),
        (nn.Conv2d(80, 80, 1), 80),
        (nn.Conv2d(20, 20, 3), 180),
        (nn.Conv2d(80, 80, 3, stride=2, dilation=2), 720),
        (nn.Conv2d(80, 80, 5), 2000),
        (nn.Conv2d(512, 512, 3), 4608),
    ],
)
def test_macs_per_value(conv, macs):
    assert macs_per_value(conv) == macs


def test_resnet_and_vgg_have_a_point_behind_every_convolution():
    for name, count in (("resnet18", 1 + 8 * 2 + 3), ("vgg16", 13)):
        network = on_meta(name)
        points = fault_points(network)
        assert len(points) == count
        assert all(isinstance(point.module, nn.BatchNorm2d) for point in points)
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        assert sorted(p.macs for p in points) == sorted(map(macs_per_value, convolutions))
        assert points[0].macs == 27 and max(p.macs for p in points) == 4608
        assert [p.name for p in fault_points(network, reference=True)] == [p.name for p in points]


def test_mobilenet_has_the_references_places_on_demand():
    network = on_meta("mobilenet-v2")
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 1 + 17 * 3 + 4 + 1  # four shortcuts change the channels
    points = {p.name: p.macs for p in fault_points(network)}
    assert sorted(points.values()) == sorted(map(macs_per_value, convolutions))
    theirs = {p.name: p.macs for p in fault_points(network, reference=True)}
    # Channels change at stride 1: the projection has no fault, the shortcut has.
    assert "blocks.0.project.bn" in points and "blocks.0.project.bn" not in theirs
    assert theirs["blocks.0.shortcut.bn"] == 32
    # Identity shortcut: the fault enters the sum.
    assert theirs["blocks.2.sum"] == points["blocks.2.project.bn"] == 144
    # Stride 2: no shortcut, no difference.
    assert theirs["blocks.3.project.bn"] == points["blocks.3.project.bn"]
    assert sum(name.endswith(".sum") for name in theirs) == 10
    assert len(theirs) == len(points) - 4


def test_networks_of_others_have_points_by_order_of_definition():
    points = fault_points(ResNet20())
    assert len(points) == 19
    assert (points[0].name, points[0].macs) == ("bn1", 27)
    assert (points[-1].name, points[-1].macs) == ("layer3.2.bn2", 64 * 9)


@pytest.mark.parametrize("name", NETWORKS)
def test_reduced_versions_exist_and_can_be_traced(name):
    network = build_network(name, num_classes=5, in_channels=1, image_size=8, width=0.05).eval()
    x = torch.randn(2, 1, 8, 8)
    out = network(x)
    assert out.shape == (2, 5)
    assert torch.equal(fx.symbolic_trace(network)(x), out)
    assert cost(network, (1, 8, 8)).flops < 2e6
    (network.train()(x).sum()).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_width_one_half_has_half_the_channels():
    network = on_meta("resnet18", width=0.5)
    assert network.stem.conv.out_channels == 32
    assert network.head.linear.in_features == 256
    assert on_meta("w-ftt-net-40", width=0.5).head.linear.in_features == 320


def test_bad_names_and_sizes_are_refused():
    with pytest.raises(ConfigError, match="did you mean resnet18"):
        build_network("resnet17")
    for sizes in ({"num_classes": 0}, {"in_channels": True}, {"image_size": 1 << 20}):
        with pytest.raises(ConfigError, match=next(iter(sizes))):
            build_network("vgg16", **sizes)
    for width in (0.0, float("nan"), 1e9):
        with pytest.raises(ConfigError, match="width"):
            build_network("vgg16", width=width)


# --- command line ------------------------------------------------------------------------


def test_networks_prints_the_papers_table(fsim):
    out = fsim("nas", "networks").stdout
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    for name, numbers in PAPER.items():
        assert tuple(lines[name][1:4]) == numbers
    rows = json.loads(fsim("nas", "networks", "--json").stdout)
    assert [row["network"] for row in rows] == list(PAPER)
    assert rows[2]["flops"] == 182_309_888 and "Sandler" in rows[2]["source"]


def test_networks_in_reduced_size(fsim):
    options = ("--width", 0.25, "--classes", 3, "--channels", 1, "--image-size", 8, "--json")
    rows = json.loads(fsim("nas", "networks", *options).stdout)
    assert all(row["flops"] < 3655.7e6 / 200 for row in rows)  # 16 from width, 16 from size
    result = fsim("nas", "networks", "--width", "nan")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1


def test_show_prints_the_cells(fsim):
    out = fsim("nas", "show", "w-ftt-net").stdout
    assert "2 = relu_conv_bn_3x3(0) + relu_conv_bn_5x5(0)" in out
    assert "N N R N N R N N" in out and "2003.10375" in out
    tree = json.loads(fsim("nas", "show", "w-ftt-net", "--json").stdout)
    assert tree["reduce"]["5"] == ["dil_conv_3x3 from 4", "skip_connect from 2"]


def test_show_loads_neither_torch_nor_numba():
    loaded = loaded_by(HELP.format(arguments=["nas", "show", "w-ftt-net"]))
    assert "click" in loaded and not loaded & {"torch", "numba", "matplotlib"}


def test_show_reads_what_it_printed_as_json(fsim, tmp_path):
    path = tmp_path / "g.json"
    path.write_text(fsim("nas", "show", "w-ftt-net", "--json").stdout)
    assert fsim("nas", "show", path).stdout == fsim("nas", "show", "w-ftt-net").stdout


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_show_draws_the_same_picture_each_time(fsim, tmp_path, suffix):
    first, again = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for path in (first, again):
        result = fsim("nas", "show", "w-ftt-net", "--out", path)
        assert result.exit_code == 0 and f"written     {path}" in result.stdout
    content = first.read_bytes()
    assert content == again.read_bytes()
    if suffix == "svg":
        text = content.decode()
        assert text.count("dil_conv_3x3") == 3 and text.count("max_pool_3x3") == 2
        assert "W-FTT-Net-20: normal cell (6 of 8 cells)" in text
    else:
        assert content.startswith(b"\x89PNG")


def test_a_name_that_looks_like_a_formula_is_drawn(fsim, tmp_path):
    path = tmp_path / "g.toml"
    text = (PACKAGED / "w-ftt-net.toml").read_text()
    path.write_text(text.replace("W-FTT-Net-20", "$x^$ _"))
    assert fsim("nas", "show", path, "--out", tmp_path / "g.svg").exit_code == 0
    assert "$x^$ _: normal" in (tmp_path / "g.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("show", "w-ftt-nett"), "did you mean w-ftt-net"),
        (("show", "w-ftt-net", "--out", "cells.pdf"), ".png or .svg"),
        (("show", "/nowhere/g.toml"), "does not exist"),
        (("shw",), "did you mean show"),
    ],
)
def test_bad_input_is_one_line(fsim, arguments, part):
    result = fsim("nas", *arguments)
    assert result.exit_code == 2
    assert part in result.stderr and len(result.stderr.splitlines()) == 1

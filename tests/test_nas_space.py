"""The cell space: primitives, genotypes and their files, networks of cells, the supernet."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

import fsim as facade
from fsim.errors import ConfigError
from fsim.nas.networks.fault_points import fault_points
from fsim.nas.space.cells import build_network
from fsim.nas.space.definition import (
    ADSAF_PRIMITIVES,
    MIBB_PRIMITIVES,
    PREPROCESSES,
    SPACES,
    CellSpace,
)
from fsim.nas.space.files import load_architecture, read_architecture, write_architecture
from fsim.nas.space.genotype import Architecture, Edge, Genotype, describe, random_genotype
from fsim.nas.space.primitives import (
    SUPERNET,
    Normalisation,
    final_normalisation,
    preprocess,
    primitive,
)
from fsim.nas.space.supernet import Supernet

FINAL = Normalisation(edge_affine=True, preprocess_affine=True, after_pools=False)
SMALL = CellSpace(layout="NR", steps=2, init_channels=2, stem_multiplier=2)


@st.composite
def spaces(draw):
    return CellSpace(
        primitives=draw(st.sampled_from([MIBB_PRIMITIVES, ADSAF_PRIMITIVES])),
        preprocess=draw(st.sampled_from(PREPROCESSES)),
        layout=draw(st.text("NR", min_size=1, max_size=4)),
        steps=draw(st.integers(1, 3)),
        init_channels=draw(st.integers(1, 4)),
        stem_multiplier=draw(st.integers(1, 3)),
    )


@st.composite
def genotypes(draw, space):
    def cell():
        return tuple(
            tuple(
                Edge(draw(st.sampled_from(space.primitives)), draw(st.integers(0, target - 1)))
                for _ in range(2)
            )
            for target in range(2, 2 + space.steps)
        )

    return Genotype(cell(), cell())


@st.composite
def architectures(draw):
    space = draw(spaces())
    text = st.text(st.characters(codec="utf-8"), max_size=20).filter(str.isprintable)
    return Architecture(draw(genotypes(space)), space, draw(text), draw(text))


def images(size: int, channels: int = 3, n: int = 2) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


# --- the paper's sizes -------------------------------------------------------------------


def test_the_defaults_are_the_papers_space():
    space = CellSpace()
    assert (len(MIBB_PRIMITIVES), len(ADSAF_PRIMITIVES)) == (8, 11)
    assert [i for i, kind in enumerate(space.layout) if kind == "R"] == [8 // 3, 16 // 3]
    cells = list(space.cells())
    assert [cell.channels for cell in cells] == [20, 20, 40, 40, 40, 80, 80, 80]
    assert cells[0].inputs == (60, 60)
    assert [cell.inputs[1] for cell in cells[1:]] == [80, 80, 160, 160, 160, 320, 320]
    # The first input is twice as large behind a reduction cell.
    assert [i for i, cell in enumerate(cells) if cell.before_stride == 2] == [3, 6]
    assert SPACES["mibb"].preprocess == "relu_conv_bn_1x1"
    assert SPACES["adsaf"] == space


def test_a_space_lists_all_that_is_wrong_with_it():
    with pytest.raises(ConfigError) as error:
        CellSpace(("none", "sep_conv_3x"), "conv", "NXR", 0, 20, -1)
    for part in ("did you mean sep_conv_3x3", "preprocess", "NXR", "steps", "stem_multiplier"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="doubled 12 times"):
        CellSpace(layout="R" * 12)


def test_width_scales_the_channels():
    assert CellSpace().scaled(0.2).init_channels == 4
    assert CellSpace().scaled(1e-3).init_channels == 1
    for width in (0, -1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ConfigError, match="width"):
            CellSpace().scaled(width)


# --- primitives --------------------------------------------------------------------------

POINTS = {
    "none": [],
    "max_pool_3x3": [],
    "avg_pool_3x3": [],
    "skip_connect": [],
    "sep_conv_3x3": [9, 20, 9, 20],
    "sep_conv_5x5": [25, 20, 25, 20],
    "dil_conv_3x3": [9, 20],
    "dil_conv_5x5": [25, 20],
    "relu_conv_bn_3x3": [180],
    "relu_conv_bn_5x5": [500],
    "conv_1x1": [20],
}
"""M of every fault point at 20 channels, as ../shared/paper.md 2.2 lists them."""


@pytest.mark.parametrize("norm", [FINAL, SUPERNET], ids=["final", "supernet"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", ADSAF_PRIMITIVES)
def test_a_primitive_has_its_fault_points_and_its_shape(name, stride, norm):
    module = primitive(name, 20, stride, norm).eval()
    assert [point.macs for point in fault_points(module)] == POINTS[name]
    for size in (8, 7, 2, 1):
        x = images(size, channels=20)
        out = module(x)
        assert out.shape == (2, 20, -(-size // stride), -(-size // stride))
        torch.testing.assert_close(fx.symbolic_trace(module)(x), out, rtol=0, atol=0)


SQUARE, LATTICE = range(-1, 2), range(-2, 3, 2)
REACH = {
    "relu_conv_bn_3x3": SQUARE,
    "relu_conv_bn_5x5": range(-2, 3),
    "conv_1x1": range(1),
    "dil_conv_3x3": LATTICE,  # dilation 2: every second row and column
    "dil_conv_5x5": range(-4, 5, 2),
    "sep_conv_3x3": range(-2, 3),  # twice 3x3
    "sep_conv_5x5": range(-4, 5),  # twice 5x5
    "max_pool_3x3": SQUARE,
    "avg_pool_3x3": SQUARE,
    "skip_connect": range(1),
}
"""Rows (and columns) around a pixel whose output it reaches."""


@pytest.mark.parametrize("name", REACH)
def test_one_pixel_reaches_what_the_kernel_says(name):
    module = primitive(name, 3, 1, FINAL).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
        dark, dot = torch.zeros(2, 1, 3, 13, 13)
        dot[0, 1, 6, 6] = 1.0
        reached = (module(dot) != module(dark))[0].any(0).nonzero() - 6
    assert reached.tolist() == [[row, column] for row in REACH[name] for column in REACH[name]]


@pytest.mark.parametrize("name", [n for n in ADSAF_PRIMITIVES if "conv" in n])
def test_convolutions_read_through_a_relu_except_conv_1x1(name):
    module = primitive(name, 3, 1, FINAL).eval()
    x = images(4)
    blind = torch.equal(module(-x.abs()), module(torch.zeros_like(x)))
    assert blind == (name != "conv_1x1")


def test_fault_points_lie_behind_the_normalisation_that_follows():
    module = primitive("sep_conv_3x3", 4, 1, FINAL)
    points = fault_points(module)
    assert [point.name for point in points] == ["depthwise1", "bn1", "depthwise2", "bn2"]
    assert [point.module for point in points] == [module.get_submodule(p.name) for p in points]
    (point,) = fault_points(primitive("conv_1x1", 4, 1, FINAL))
    assert point.name == "" and isinstance(point.module, nn.Conv2d)


@pytest.mark.parametrize(
    ("kind", "stride", "macs"),
    [
        ("relu_conv_bn_1x1", 1, 12),
        ("relu_conv_bn_1x1", 2, 12),  # FactorizedReduce: one point, M = C_in
        ("relu_conv_bn_3x3", 1, 108),
        ("relu_conv_bn_3x3", 2, 108),
    ],
)
def test_preprocessing_has_one_fault_point(kind, stride, macs):
    module = preprocess(kind, 12, 6, stride, affine=False)
    (point,) = fault_points(module)
    assert point.macs == macs
    values = []
    point.module.register_forward_hook(lambda module, inputs, out: values.append(out))
    out = module(images(6, channels=12))
    assert out.shape == (2, 6, 6 // stride, 6 // stride)
    assert torch.equal(values[0], out)  # the point sees the whole output


def test_pools_and_none_are_what_they_say():
    ones = torch.ones(1, 2, 4, 4)
    assert torch.equal(primitive("avg_pool_3x3", 2, 1, FINAL)(ones), ones)  # padding not counted
    assert torch.equal(primitive("none", 2, 2, FINAL)(ones / 0), torch.zeros(1, 2, 2, 2))
    pool = primitive("max_pool_3x3", 2, 1, SUPERNET)
    assert isinstance(pool.bn, nn.BatchNorm2d) and not pool.bn.affine
    assert isinstance(primitive("max_pool_3x3", 2, 1, FINAL), nn.MaxPool2d)


def test_factorized_reduce_equals_one_normalisation_over_both_convolutions():
    module = primitive("skip_connect", 4, 2, FINAL).train()
    x = images(6, channels=4)
    halves = [
        torch.einsum("oc,nchw->nohw", half.conv.weight[..., 0, 0], x.relu()[:, :, i::2, i::2])
        for i, half in enumerate((module.even, module.odd))
    ]
    both = torch.cat(halves, dim=1)
    torch.testing.assert_close(module(x), nn.BatchNorm2d(4)(both), rtol=1e-4, atol=1e-5)


# --- genotypes and their files -----------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(architecture=architectures(), suffix=st.sampled_from([".toml", ".json"]))
def test_what_is_written_is_read_back(tmp_path_factory, architecture, suffix):
    path = tmp_path_factory.mktemp("genotype") / f"g{suffix}"
    write_architecture(path, architecture)
    assert read_architecture(path) == architecture


def test_w_ftt_net_is_the_genotype_of_the_paper():
    found = load_architecture("w-ftt-net")
    assert found.space == CellSpace() and "2003.10375" in found.source
    flat = [
        (edge.op, edge.source, target)
        for cell in (found.genotype.normal, found.genotype.reduce)
        for target, step in enumerate(cell, 2)
        for edge in step
    ]
    # ../shared/paper.md, section 5: (operation, from, to)
    assert flat == [
        ("relu_conv_bn_3x3", 0, 2), ("relu_conv_bn_5x5", 0, 2), ("conv_1x1", 1, 3),
        ("dil_conv_3x3", 1, 3), ("sep_conv_3x3", 1, 4), ("sep_conv_3x3", 0, 4),
        ("max_pool_3x3", 2, 5), ("relu_conv_bn_5x5", 1, 5),
        ("skip_connect", 0, 2), ("relu_conv_bn_5x5", 1, 2), ("dil_conv_3x3", 2, 3),
        ("sep_conv_3x3", 0, 3), ("max_pool_3x3", 1, 4), ("conv_1x1", 3, 4),
        ("dil_conv_3x3", 4, 5), ("skip_connect", 2, 5),
    ]  # fmt: skip
    assert "4 = max_pool_3x3(1) + conv_1x1(3)" in describe(found)


GOOD = {
    "space": {"primitives": "adsaf", "layout": "N R", "steps": 1},
    "normal": {"2": ["conv_1x1 from 0", "none from 1"]},
    "reduce": {"2": ["conv_1x1 from 0", "none from 1"]},
}


def write_tree(path, **changes):
    path.write_text(json.dumps(GOOD | changes))
    return path


def test_a_file_may_leave_out_the_papers_values(tmp_path):
    found = read_architecture(write_tree(tmp_path / "g.json"))
    assert found.space == CellSpace(layout="NR", steps=1)
    mibb = GOOD["space"] | {"primitives": "mibb"}
    cell = {"2": ["none from 0", "none from 1"]}
    found = read_architecture(
        write_tree(tmp_path / "g.json", space=mibb, normal=cell, reduce=cell)
    )
    assert found.space == replace(SPACES["mibb"], layout="NR", steps=1)


def test_a_layout_without_reduction_needs_no_reduction_cell(tmp_path):
    space = GOOD["space"] | {"layout": "N N"}
    found = read_architecture(write_tree(tmp_path / "g.json", space=space, reduce={}))
    assert found.genotype.reduce == ()
    assert build_network(found)(images(4)).shape == (2, 10)
    assert "reduce" not in describe(found)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"normal": {"2": ["conv_1x1 from 2", "none from 1"]}}, ["node 2", "0 to 1, got 2"]),
        ({"normal": {"2": ["conv_1x from 0", "none from 1"]}}, ["did you mean conv_1x1"]),
        ({"normal": {"2": ["conv_1x1 from 0"]}}, ["must have 2 inputs, got 1"]),
        ({"normal": {"2": ["conv_1x1 0", 3]}}, ["like 'conv_1x1 from 0', got 'conv_1x1 0'", "'3'"]),
        ({"normal": {"3": ["none from 0", "none from 1"]}}, ["numbered from 2"]),
        ({"normal": {}}, ["normal cell must have 1 steps, got 0"]),
        ({"normal": 3}, ["normal must be a table"]),
        ({"normal": {"2": "none"}}, ["must be a list"]),
        ({"norml": {}}, ["did you mean normal"]),
        ({"name": "two\nlines"}, ["name must be one line"]),
        ({"name": 3}, ["name must be one line"]),
        ({"space": []}, ["space must be a table"]),
        ({"space": {"primitives": "adsav", "layout": "NR", "steps": 1}}, ["did you mean adsaf"]),
        ({"space": {"primitives": [1], "layout": "NR", "steps": 1}}, ["got '1'"]),
        ({"space": {"stepz": 1}}, ["did you mean steps"]),
        ({"space": {"steps": True}}, ["steps must be a whole number"]),
        (
            {
                "space": {"layout": "NQ"},
                "normal": {"2": ["what from 0", "none from 9"]},
                "reduce": {"2": ["conv_1x1", "none from 1"]},
                "other": 1,
            },
            ["layout must be", "got 'conv_1x1'", "other"],
        ),
        (
            {
                "normal": {"2": ["what from 0", "none from 9"]},
                "reduce": {"2": ["conv_1x1", "none from 1"]},
                "other": 1,
            },
            ["got 'what'", "got 9", "got 'conv_1x1'", "got 'other'"],
        ),
    ],
)
def test_a_bad_file_is_refused_with_all_its_problems_in_one_line(tmp_path, changes, parts):
    path = write_tree(tmp_path / "g.json", **changes)
    with pytest.raises(ConfigError) as error:
        read_architecture(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "content",
    [b"{", b"[1]", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000, b" " * (2 << 20), b"1" * 9999],
)
def test_a_damaged_file_is_refused(tmp_path, content):
    for suffix in (".json", ".toml"):
        path = tmp_path / f"g{suffix}"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="g.(json|toml)"):
            read_architecture(path)


def test_an_unknown_genotype_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean w-ftt-net"):
        load_architecture("w-ft-net")
    with pytest.raises(ConfigError, match="does not exist"):
        load_architecture(tmp_path / "none.toml")


def test_a_genotype_of_another_space_is_refused():
    genotype = load_architecture("w-ftt-net").genotype
    with pytest.raises(ConfigError, match="relu_conv_bn_5x5"):
        Architecture(genotype, SPACES["mibb"])
    with pytest.raises(ConfigError, match="must have 2 steps, got 4"):
        Supernet(SMALL)(images(4), genotype)


def test_random_genotypes_follow_the_seed_and_the_space():
    space = CellSpace()
    first, again, other = (
        [random_genotype(space, rng) for _ in range(50)]
        for rng in (np.random.default_rng(seed) for seed in (1, 1, 2))
    )
    assert first == again != other
    edges = {edge for g in first for cell in (g.normal, g.reduce) for step in cell for edge in step}
    assert {edge.op for edge in edges} == set(ADSAF_PRIMITIVES)
    assert {edge.source for edge in edges} == {0, 1, 2, 3, 4}
    for genotype in first:
        Architecture(genotype, space)  # raises if it does not fit


# --- networks ----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(architecture=architectures(), size=st.integers(1, 9), classes=st.integers(1, 5))
def test_any_genotype_makes_a_network_of_the_right_shape(architecture, size, classes):
    network = build_network(architecture, num_classes=classes, in_channels=2).eval()
    x = images(size, channels=2)
    out = network(x)
    assert out.shape == (2, classes)
    assert torch.equal(fx.symbolic_trace(network)(x), out)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), space=spaces(), train=st.booleans())
def test_a_path_of_the_supernet_is_the_network_with_its_weights(data, space, train):
    genotype = data.draw(genotypes(space))
    supernet = Supernet(space, num_classes=4, dropout=0.0).train(train)
    network = build_network(
        Architecture(genotype, space), num_classes=4, normalisation=SUPERNET
    ).train(train)
    state = supernet.state_dict()
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    x = images(4)
    path = supernet.path(genotype)
    expected = network(x)
    assert path.training == train and path.state_dict().keys() == network.state_dict().keys()
    assert torch.equal(supernet(x, genotype), expected)
    assert torch.equal(path(x), expected)
    if train:
        return
    names = [(p.name, p.macs) for p in fault_points(path)]
    assert names == [(p.name, p.macs) for p in fault_points(network)]


def test_a_path_shares_the_supernets_weights():
    supernet = Supernet(SMALL)
    path = supernet.path(random_genotype(SMALL, np.random.default_rng(3)))
    own = dict(supernet.named_parameters())
    assert all(parameter is own[name] for name, parameter in path.named_parameters())


def test_every_operation_of_every_edge_exists_once():
    space = CellSpace(init_channels=1)
    with torch.device("meta"):
        supernet = Supernet(space)
    expected = {
        f"{op}_{source}_{target}"
        for op in ADSAF_PRIMITIVES
        for target in range(2, 6)
        for source in range(target)
    }
    assert len(expected) == (2 + 3 + 4 + 5) * 11
    modules = [module for cell in supernet.cells for module in cell.edges.values()]
    assert len({id(module) for module in modules}) == len(modules) == 8 * len(expected)
    assert all(set(cell.edges) == expected for cell in supernet.cells)
    # No learnt scale or shift inside the cells.
    norms = [m for cell in supernet.cells for m in cell.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(norm.affine for norm in norms)
    assert supernet.stem.bn.affine
    assert supernet.head.dropout.p == 0.1


def test_final_networks_learn_scales_on_edges():
    network = build_network(load_architecture("w-ftt-net"))
    for cell in network.cells:
        assert not any(m.bn.affine for m in cell.preprocess)
        norms = [m for m in cell.edges.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and all(norm.affine for norm in norms)
    assert final_normalisation(SPACES["mibb"]).preprocess_affine


def test_equal_edges_of_a_node_share_a_module_and_count_twice():
    edge, zero = Edge("conv_1x1", 0), Edge("none", 1)
    space = replace(SMALL, layout="N", steps=1)
    twice, once = (
        build_network(Architecture(Genotype((step,), ()), space)).eval()
        for step in ((edge, edge), (edge, zero))
    )
    weights = twice.state_dict()
    assert weights.keys() == once.state_dict().keys()
    once.load_state_dict(weights)
    nodes = []
    for network in (twice, once):
        network.cells[0].register_forward_hook(lambda cell, inputs, out: nodes.append(out))
        network(images(4))
    assert torch.equal(nodes[0], 2 * nodes[1])
    names = [point.name for point in fault_points(twice)]
    assert names.count("cells.0.edges.conv_1x1_0_2") == 1


def test_fault_points_of_w_ftt_net():
    network = build_network(load_architecture("w-ftt-net"))
    points = fault_points(network)
    assert (points[0].name, points[0].macs) == ("stem.bn", 27)
    normal = 1 + 1 + 1 + 2 + 4 + 4 + 0 + 1
    reduce = 0 + 1 + 2 + 4 + 0 + 1 + 2 + 0
    assert len(points) == 1 + 8 * 2 + 6 * normal + 2 * reduce
    last = {p.name: p.macs for p in points if p.name.startswith("cells.7.")}
    assert last["cells.7.preprocess.0.bn"] == last["cells.7.preprocess.1.bn"] == 320 * 9
    assert last["cells.7.edges.relu_conv_bn_5x5_0_2.bn"] == 80 * 25
    assert last["cells.7.edges.dil_conv_3x3_1_3.depthwise"] == 9
    assert last["cells.7.edges.conv_1x1_1_3"] == 80
    assert not any(point.name.startswith("head") for point in points)


def test_the_array_does_the_convolutions_of_w_ftt_net():
    found = load_architecture("w-ftt-net")
    network = build_network(replace(found, space=replace(found.space, init_channels=4))).eval()
    x = images(8, n=4)
    attached = facade.attach(network, "systolic-8x8", calibration=x)
    convolutions = {name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    on_array = {entry.name for entry in attached.coverage.array}
    assert on_array == convolutions | {"head.linear"}
    assert attached.coverage.share == 1 and not attached.coverage.other
    expected = network(x).detach()
    assert (attached(x) - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_path_of_the_supernet_attaches():
    supernet = Supernet(SMALL).eval()
    step = (Edge("sep_conv_3x3", 0), Edge("skip_connect", 1))
    pool = (Edge("max_pool_3x3", 1), Edge("avg_pool_3x3", 2))
    path = supernet.path(Genotype((step, pool), (step, pool)))
    attached = facade.attach(path, "systolic-8x8", calibration=images(8))
    convolutions = {name for name, m in path.named_modules() if isinstance(m, nn.Conv2d)}
    assert convolutions < {entry.name for entry in attached.coverage.array}
    assert attached(images(8)).shape == (2, 10)

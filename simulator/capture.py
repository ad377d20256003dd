"""A torch module as a graph of the operations that the integer network knows.

The module is traced with torch.fx. Batch normalisation is folded into the
convolution or linear layer before it, ReLU into the operation that feeds it, zero
padding into the convolution that reads it. What is left over runs on the host:
one float operation a node, listed as not covered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fsim.errors import MappingError

from .patterns import FUNCTIONS, METHODS, ROW, Chain, Ref, from_module

ARRAY_KINDS = ("conv", "linear", "matmul")


@dataclass(frozen=True, eq=False)
class Node:
    """One operation on float tensors.

    name    the module's name in the network, or the traced function's
    kind    input, conv, linear, matmul, add, avg_pool, max_pool, relu, flatten, pad,
            slice, concat or host
    inputs  indices of earlier nodes
    shape   of its output without the batch
    params  by kind: weights (float32 tensors), strides, the host function, ...
    relu    None, or the upper end of a fused ReLU (infinity, 6 for ReLU6)
    is_map  three axes are a feature map's; False for stacks of matrices
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    params: dict[str, Any] = field(default_factory=dict)
    relu: float | None = None
    is_map: bool = True


@dataclass(frozen=True, eq=False)
class Graph:
    """nodes in the order in which they run, the input first; the last is the result."""

    nodes: tuple[Node, ...]
    notes: tuple[str, ...] = ()


def capture(model: nn.Module, example: np.ndarray | Tensor) -> Graph:
    """Trace `model` with its evaluation statistics; the model is not changed.

    example  (n, c, h, w) float32 input, n >= 1; only its first image is used
    Raises MappingError if the module cannot be traced or does not map one tensor
    to one tensor.
    """
    model = copy.deepcopy(model).eval().cpu().float()
    example = torch.as_tensor(np.asarray(example), dtype=torch.float32)[:1]
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:  # tracing runs the user's forward: anything can be raised
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MappingError(
            f"the network must be traceable by torch.fx, got {type(error).__name__}: {reason} "
            f"({type(model).__name__}.forward)"
        ) from error
    placeholders = [node.name for node in traced.graph.nodes if node.op == "placeholder"]
    if len(placeholders) != 1:
        raise MappingError(
            f"the network must take one tensor, got {len(placeholders)} "
            f"({type(model).__name__}.forward: {', '.join(placeholders)})"
        )
    recorder = _Recorder(traced)
    try:
        with torch.no_grad():
            recorder.run(example)
    except Exception as error:  # a trace may have left the way that the images take
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MappingError(
            f"the network must take images of shape {tuple(example.shape[1:])} as torch.fx traced "
            f"it, got: {reason} ({type(model).__name__})"
        ) from error
    draft = _Draft(traced, recorder.values)
    for node in traced.graph.nodes:
        draft.add(node)
    if draft.result is None:
        raise MappingError(
            "the network must make what it returns from its input by calls that each return one "
            f"tensor ({type(model).__name__})"
        )
    nodes, notes = draft.nodes[: draft.result + 1], []
    nodes = _drop_tail(nodes, notes)
    for simplify in (_keep_rows, _fold_batch_norm, _fold_relu, _fold_padding, _order_stacks):
        nodes = _used(simplify(nodes))
    return Graph(tuple(nodes), tuple(notes))


class _Recorder(fx.Interpreter):
    """Keeps the value of every node; in-place operations must not reach back."""

    def __init__(self, traced):
        super().__init__(traced, garbage_collect_values=False)
        self.extra_traceback = False  # a shape that does not fit is the user's to mend
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, node):
        value = super().run_node(node)
        self.values[node] = value.clone() if isinstance(value, Tensor) else value
        return value


class _Draft:
    """Graph under construction: fx nodes become nodes, constants or nothing."""

    def __init__(self, traced: fx.GraphModule, values: dict[fx.Node, Any]):
        self.traced, self.values = traced, values
        self.modules = dict(traced.named_modules())
        self.nodes: list[Node] = []
        self.index: dict[fx.Node, int] = {}
        self.result: int | None = None
        self.calls: dict[str, int] = {}

    def add(self, node: fx.Node) -> None:
        if node.op == "output":
            if isinstance(node.args[0], fx.Node):
                self.result = self.index.get(node.args[0])
            return
        value = self.values[node]
        if node.op == "placeholder":
            self._append(node, Node(node.name, "input", (), tuple(value.shape[1:])))
            return
        if not isinstance(value, Tensor) or not any(n in self.index for n in node.all_input_nodes):
            return  # sizes, parameters and what is computed from them: constants
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._resolve)
        if node.op == "call_module":
            module = self.modules[node.target]
            found = from_module(module, value, *args, **kwargs)
            name, function = self._name(node.target), module
        elif node.op == "call_function":
            known = FUNCTIONS.get(node.target)
            found = known(value, *args, **kwargs) if known else None
            name, function = node.name, node.target
        else:
            known = METHODS.get(node.target)
            found = known(value, *args, **kwargs) if known else None
            name, function = node.name, _method(node.target)
        if isinstance(found, Ref):  # the same tensor under another name
            self.index[node] = found.index
            return
        if found is None:
            if value.shape[0] != 1:
                raise MappingError(f"operation {name!r} must keep the batch as the first axis")
            found = _host(node, function, args, kwargs)
        if isinstance(found, Chain):
            self._chain(node, name, found)
            return
        kind, refs, params = found
        inputs = tuple(r.index for r in refs)
        if params.pop("flat", False):
            self.nodes.append(Node(f"{name}.mean", kind, inputs, (value.shape[1], 1, 1), params))
            kind, inputs, params = "flatten", (len(self.nodes) - 1,), {}
        self._append(node, Node(name, kind, inputs, tuple(value.shape[1:]), params))

    def _chain(self, node: fx.Node, name: str, chain: Chain) -> None:
        at = chain.input.index
        for suffix, kind, shape, params in chain.steps:
            self._append(node, Node(name + suffix, kind, (at,), shape, params))
            at = len(self.nodes) - 1

    def _resolve(self, node: fx.Node):
        if node in self.index:
            i = self.index[node]
            return Ref(i, self.nodes[i].shape)
        return self.values[node]

    def _append(self, node: fx.Node, made: Node) -> None:
        self.index[node] = len(self.nodes)
        self.nodes.append(made)

    def _name(self, target: str) -> str:
        count = self.calls.get(target, 0)
        self.calls[target] = count + 1
        return target if count == 0 else f"{target}#{count}"


def _method(name: str) -> Callable:
    def call(tensor, *args, **kwargs):
        return getattr(tensor, name)(*args, **kwargs)

    call.__name__ = name
    return call


_MOVES = {
    "chunk", "contiguous", "expand", "flatten", "getitem", "movedim", "narrow", "permute",
    "repeat", "reshape", "select", "split", "squeeze", "swapaxes", "t", "transpose",
    "unflatten", "unsqueeze", "view",
}  # fmt: skip
"""Functions and methods that move values and compute none."""


def _host(node: fx.Node, function: Callable, args, kwargs):
    """A float operation with everything but its tensor inputs filled in."""
    refs: list[Ref] = []

    def collect(value):
        if isinstance(value, Ref):
            refs.append(value)
        return value

    _map((args, kwargs), collect)

    def run(*tensors):
        supply = iter(tensors)

        def fill(value):
            return next(supply).clone() if isinstance(value, Ref) else value

        return function(*_map(args, fill), **_map(kwargs, fill))

    what = getattr(function, "__name__", type(function).__name__)
    return "host", refs, {"function": run, "what": what, "moves": what in _MOVES}


def _map(value, apply):
    """`apply` on every leaf of nested tuples, lists, dicts and slices, in one order."""
    if isinstance(value, (tuple, list)):
        return type(value)(_map(v, apply) for v in value)
    if isinstance(value, dict):
        return {k: _map(v, apply) for k, v in value.items()}
    return apply(value)


# --- rewriting ---------------------------------------------------------------------------


def _readers(nodes: list[Node]) -> list[int]:
    """How many slots read each node; the result counts as read."""
    count = [0] * len(nodes)
    for node in nodes:
        for i in node.inputs:
            count[i] += 1
    count[-1] += 1
    return count


def _redirect(nodes: list[Node], moved: dict[int, int]) -> list[Node]:
    """Read `moved[i]` wherever node i was read."""

    def end(i):
        while i in moved:
            i = moved[i]
        return i

    return [_with(n, inputs=tuple(end(i) for i in n.inputs)) for n in nodes]


def _with(node: Node, **changes) -> Node:
    return Node(**{**{k: getattr(node, k) for k in node.__dataclass_fields__}, **changes})


def _used(nodes: list[Node]) -> list[Node]:
    """Without nodes that nothing reads, renumbered."""
    needed = {0, len(nodes) - 1}
    for i in range(len(nodes) - 1, -1, -1):
        if i in needed:
            needed.update(nodes[i].inputs)
    order = sorted(needed)
    new = {old: i for i, old in enumerate(order)}
    return [_with(nodes[i], inputs=tuple(new[j] for j in nodes[i].inputs)) for i in order]


def _drop_tail(nodes: list[Node], notes: list[str]) -> list[Node]:
    """Without a final softmax, which changes no ranking, and a final reshape."""
    end = len(nodes) - 1
    while _is_tail(nodes[end]):
        if nodes[end].params.get("what") in _SOFTMAX:
            notes.append(f"{nodes[end].name}: a final softmax is left out, logits are returned")
        end = nodes[end].inputs[0]
    return _used(nodes[: end + 1])


def _is_tail(node: Node) -> bool:
    return node.kind == "flatten" or node.params.get("what") in _SOFTMAX or _row_move(node) == -1


def _row_move(node: Node) -> int:
    """1: a tensor (c, l) becomes a map (c, 1, l); -1: the other way; 0: neither."""
    return node.params.get("row", 0) if node.kind == "host" else 0


def _keep_rows(nodes: list[Node]) -> list[Node]:
    """Maps of one row stay maps for as long as operations can read them as such.

    The move back to (c, l) goes behind what treats every value or channel alike, where
    folding would not find a convolution before it, and vanishes before a move to a map.
    """
    made: list[Node] = []
    index: list[int] = []  # old node -> its place in `made`
    for node in nodes:
        inputs = [index[i] for i in node.inputs]
        rows = bool(inputs) and all(_row_move(made[i]) == -1 for i in inputs)
        if rows and _row_move(node) == 1:
            index.append(made[inputs[0]].inputs[0])
            continue
        if rows and (node.kind in _ROWWISE or node.kind == "flatten"):
            inputs = [made[i].inputs[0] for i in inputs]
            if node.kind == "flatten":
                made.append(_with(node, inputs=tuple(inputs)))
            else:
                shape, params = (node.shape[0], 1, node.shape[1]), dict(node.params)
                if node.kind == "pad":
                    channels, along = params["amount"]
                    params["amount"] = channels, (0, 0), along
                elif node.kind == "concat":
                    params["axis"] *= 2
                made.append(_with(node, inputs=tuple(inputs), shape=shape, params=params))
                back = (len(made) - 1,)
                made.append(Node(f"{node.name}.row", "host", back, node.shape, {**ROW}))
        else:
            made.append(_with(node, inputs=tuple(inputs)))
        index.append(len(made) - 1)
    return made if index[-1] == len(made) - 1 else made[: index[-1] + 1]


_ROWWISE = ("batch_norm", "relu", "add", "pad", "concat")
_SOFTMAX = ("softmax", "log_softmax", "Softmax", "LogSoftmax")


def _fold_batch_norm(nodes: list[Node]) -> list[Node]:
    """y = scale * x + shift goes into the weights before it, or becomes a 1x1 convolution."""
    readers = _readers(nodes)
    moved: dict[int, int] = {}
    nodes = list(nodes)
    for i, node in enumerate(nodes):
        if node.kind != "batch_norm":
            continue
        scale, shift = node.params["scale"], node.params["shift"]
        source = node.inputs[0]
        before = nodes[source]
        if before.kind in ("conv", "linear") and readers[source] == 1:
            weight, bias = before.params["weight"].double(), before.params["bias"].double()
            column = scale.reshape(-1, *[1] * (weight.ndim - 1))
            params = dict(before.params)
            params["weight"] = (weight * column).float()
            params["bias"] = (bias * scale + shift).float()
            nodes[source] = _with(before, params=params)
            moved[i] = source
        elif len(node.shape) == 3:
            channels = node.shape[0]
            params = {
                "weight": scale.float().reshape(channels, 1, 1, 1),
                "bias": shift.float(),
                "stride": (1, 1),
                "padding": (0, 0, 0, 0),
                "dilation": (1, 1),
                "groups": channels,
            }
            nodes[i] = _with(node, kind="conv", params=params)
        else:
            per_channel = (-1, *[1] * (len(node.shape) - 1))
            function = _affine(*(v.float().reshape(per_channel) for v in (scale, shift)))
            params = {"function": function, "what": "batch_norm", "moves": False}
            nodes[i] = _with(node, kind="host", params=params)
    last = len(nodes) - 1
    nodes = _redirect(nodes, moved)
    return nodes if last not in moved else nodes[: moved[last] + 1]


def _affine(scale: Tensor, shift: Tensor) -> Callable:
    return lambda x: x * scale + shift


def _fold_relu(nodes: list[Node]) -> list[Node]:
    """A ReLU goes into the clamp of the operation before it, unless it is the result."""
    readers = _readers(nodes)
    moved: dict[int, int] = {}
    nodes = list(nodes)
    for i, node in enumerate(nodes[:-1]):
        if node.kind != "relu":
            continue
        source = node.inputs[0]
        before = nodes[source]
        if before.kind in (*ARRAY_KINDS, "add") and readers[source] == 1 and before.relu is None:
            nodes[source] = _with(before, relu=node.params["top"])
            moved[i] = source
    return _redirect(nodes, moved)


def _fold_padding(nodes: list[Node]) -> list[Node]:
    """Zero padding of rows and columns goes into the convolutions that read it."""
    nodes = list(nodes)
    for i, node in enumerate(nodes):
        if node.kind != "conv":
            continue
        pad = nodes[node.inputs[0]]
        if pad.kind != "pad" or len(pad.shape) != 3 or pad.params["amount"][0] != (0, 0):
            continue
        if any(a < 0 or b < 0 for a, b in pad.params["amount"]):
            continue
        (top, bottom), (left, right) = pad.params["amount"][1:]
        own = node.params["padding"]
        padding = tuple(a + b for a, b in zip(own, (left, right, top, bottom)))
        nodes[i] = _with(node, inputs=pad.inputs, params={**node.params, "padding": padding})
    return nodes


def _order_stacks(nodes: list[Node]) -> list[Node]:
    """Stacks of matrices keep the network's order, feature maps go channels last.

    A matmul of three-axis tensors reads and makes stacks. The host can make either;
    where an operation meets the other kind, a move that changes only the order is
    put before it.
    """
    readers: list[set[str]] = [set() for _ in nodes]
    for node in nodes:
        for i in node.inputs:
            readers[i].add(node.kind)
    made: list[Node] = []
    index: list[int] = []  # old node -> its place in `made`
    moved: dict[tuple[int, bool], int] = {}
    for old, node in enumerate(nodes):
        inputs = []
        for i in (index[j] for j in node.inputs):
            source, wanted = made[i], node.kind != "matmul"
            if len(source.shape) == 3 and node.kind != "host" and source.is_map != wanted:
                if (i, wanted) not in moved:
                    name = f"{source.name}.{'map' if wanted else 'stack'}"
                    params = {"function": _unchanged, "what": "reorder", "moves": True}
                    made.append(Node(name, "host", (i,), source.shape, params, is_map=wanted))
                    moved[i, wanted] = len(made) - 1
                i = moved[i, wanted]
            inputs.append(i)
        stack = node.kind == "matmul" or (node.kind == "host" and readers[old] == {"matmul"})
        is_map = not (stack and len(node.shape) == 3)
        index.append(len(made))
        made.append(_with(node, inputs=tuple(inputs), is_map=is_map))
    return made


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


# --- the graph in float ------------------------------------------------------------------


def forward(graph: Graph, images: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(index, value before a fused ReLU, value) of every node, in order.

    images (n, c, h, w) float32. A value is dropped once nothing reads it any more.
    """
    last = {i: index for index, node in enumerate(graph.nodes) for i in node.inputs}
    values: dict[int, Tensor] = {}
    with torch.no_grad():
        for index, node in enumerate(graph.nodes):
            inputs = [values[i] for i in node.inputs]
            before = images if node.kind == "input" else apply(node, inputs)
            value = before if node.relu is None else before.clamp(0, node.relu)
            values[index] = value
            yield index, before, value
            for i in set(node.inputs):
                if last[i] == index:
                    del values[i]


def apply(node: Node, inputs: list[Tensor]) -> Tensor:
    """One node in float, without its fused ReLU."""
    p, x = node.params, inputs[0]
    match node.kind:
        case "conv":
            padded = F.pad(x, p["padding"])
            return F.conv2d(
                padded, p["weight"], p["bias"], p["stride"], 0, p["dilation"], p["groups"]
            )
        case "linear":
            return F.linear(x, p["weight"], p["bias"])
        case "matmul":
            return torch.matmul(x, inputs[1])
        case "add":
            return x + inputs[1]
        case "avg_pool":
            return F.avg_pool2d(x, p["kernel"], p["stride"], p["padding"])
        case "max_pool":
            return F.max_pool2d(x, p["kernel"], p["stride"], p["padding"], p["dilation"])
        case "relu":
            return x.clamp(0, p["top"])
        case "flatten":
            return x.reshape(len(x), -1)
        case "pad":
            flat = [n for pair in reversed(p["amount"]) for n in pair]
            return F.pad(x, flat)
        case "slice":
            return x[(slice(None), *p["slices"])]
        case "concat":
            return torch.cat(inputs, p["axis"] + 1)
        case "host":
            return torch.cat(
                [p["function"](*(v[i : i + 1] for v in inputs)) for i in range(len(x))]
            )
    raise AssertionError(f"node {node.name!r} has an unknown kind {node.kind!r}")

"""Post-training quantisation: a captured network and images to an integer program.

Every tensor that is stored gets a scale, chosen on the calibration images by the
least squared error over a range of clips; weights get one a channel. Zero is
always code 0. Calibration runs in float on one thread in batches of fixed size,
so the same images give the same program anywhere torch gives the same floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fsim.errors import ConfigError

from . import program as P
from . import truncation
from .capture import ARRAY_KINDS, Graph, Node, forward
from .ops import code_range, fixed_point
from .params import Params, read_params

BATCH = 32
"""Images a batch of the float calibration, whatever the caller does."""

BINS = 4096
"""Bins of the histogram of magnitudes that a clip is chosen on."""

_VIEWS = ("flatten", "pad", "slice", "max_pool", "relu")
"""Kinds whose output has the scale of their input."""


@dataclass
class _Seen:
    """What calibration saw of one node's output."""

    largest: float = 0.0
    smallest: float = 0.0
    channel: np.ndarray | None = None  # largest |sum| by output channel, array nodes
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    mean_input: torch.Tensor | None = None  # mean over images of an array node's input


@dataclass(frozen=True)
class _Code:
    """How a tensor is coded."""

    scale: float
    signed: bool
    bits: int

    @property
    def range(self) -> tuple[int, int]:
        return code_range(self.bits, self.signed)


def quantise(
    graph: Graph,
    images: np.ndarray,
    *,
    accel_bits: int = 8,
    acc_bits: int = 32,
    per_channel: bool = True,
    scales: str = "free",
    unsigned: bool = True,
    bias_correction: bool = True,
    truncates: bool = False,
    params: Mapping[str, Any] | None = None,
) -> P.Program:
    """The integer network of `graph`.

    images           (n, c, h, w) float32 calibration images
    accel_bits       width of activation and weight codes, 2 to 16
    acc_bits         width of the array's accumulators
    per_channel      weight scales by output channel, else one a layer
    scales           "free" or "pow2": powers of two only (Q-format)
    unsigned         codes after a ReLU may be unsigned
    bias_correction  take from each bias the mean error that rounding its weights
                     makes on the calibration images (Nagel et al. 2019, "Data-Free
                     Quantization through Weight Equalization and Bias Correction",
                     section 4.2, with measured means)
    truncates        products lose low bits one by one before they are added, as many in
                     each layer as `truncation.shift_for` says
    params           scales of one's own, as `quant_params` gives them: tensor name
                     -> {"scale", "signed", "bits"}, layer name + ".weight" ->
                     {"scale": number or one a channel, "bits"}; what is not named
                     is calibrated

    Raises ConfigError, with every problem of `params` at once.
    """
    images = _checked(graph, images, accel_bits, acc_bits, scales, truncates)
    owners = _owners(graph)
    own = read_params(params or {}, _tensors(graph, owners), _weights(graph))
    seen = _calibrate(graph, images)
    codes: list[_Code] = []
    zero = {
        i
        for i, node in enumerate(graph.nodes)
        if owners[i] == i
        and seen[i].largest == seen[i].smallest == 0
        and node.name not in own.tensors
    }
    held = _held(graph, owners)
    for i, node in enumerate(graph.nodes):
        narrow = unsigned and i not in held
        if owners[i] != i:
            codes.append(
                codes[owners[i]] if node.kind != "relu" else _relu_code(codes[owners[i]], narrow)
            )
            continue
        given = own.tensors.get(node.name)
        signed = not (narrow and _never_negative(graph, node, codes, seen[i]))
        if given is not None:
            codes.append(
                _Code(
                    given.scale,
                    signed if given.signed is None else given.signed,
                    given.bits or accel_bits,
                )
            )
            continue
        if node.kind == "concat":
            parts = [codes[j] for j in node.inputs]
            # What is zero on every calibration image says nothing about the scale.
            told = [codes[j] for j in node.inputs if owners[j] not in zero] or parts
            signed = any(c.signed for c in parts) or i in held
            scale = max(_signed_scale(c) if i in held else c.scale for c in told)
            codes.append(_Code(scale, signed, accel_bits))
        else:
            codes.append(_Code(_clip(seen[i], accel_bits, signed, scales), signed, accel_bits))
        if node.kind in ("concat", "add"):
            # It takes that of what it goes into: a far coarser one would cost the other
            # operand its precision, because both share a shift.
            for j in zero.intersection(owners[k] for k in node.inputs):
                for k in range(i):
                    if owners[k] == j:
                        codes[k] = _Code(codes[i].scale, codes[k].signed, codes[k].bits)
    for node, code in zip(graph.nodes, codes):
        if not 1e-30 <= code.scale <= 1e30:
            raise ConfigError(
                f"scales must be from 1e-30 to 1e30, got {code.scale:.3g} for the calibration "
                f"images ({node.name})"
            )
    if graph.nodes[-1].kind in ARRAY_KINDS:
        # Its accumulators are the result; they are never made codes of a scale.
        codes[-1] = _Code(1.0, True, accel_bits)
    build = _Builder(
        graph, codes, seen, own, accel_bits, acc_bits, per_channel, scales, bias_correction,
        truncates,
    )  # fmt: skip
    ops = tuple(build.op(i, node) for i, node in enumerate(graph.nodes))
    program = P.Program(ops, acc_bits, graph.notes)
    return truncation.centred(program, images) if truncates else program


def quant_params(program: P.Program) -> dict[str, dict[str, Any]]:
    """Every scale of a program, in the form that `quantise(params=)` takes."""
    found: dict[str, dict[str, Any]] = {}
    shared = (P.Flatten, P.Pad, P.Slice, P.MaxPool, P.Relu)
    for op in program.ops:
        derived = isinstance(op, shared) or (isinstance(op, P.Host) and op.moves)
        if not derived and not (op.is_array and op is program.ops[-1]):
            found[op.name] = {"scale": op.scale, "signed": op.signed, "bits": op.bits}
        if isinstance(op, (P.Conv, P.Linear)):
            weight = {"scale": [float(s) for s in op.weight_scale], "bits": op.weight_bits}
            found[f"{op.name}.weight"] = weight
    return found


def _checked(graph, images, accel_bits, acc_bits, scales, truncates) -> np.ndarray:
    if not 2 <= accel_bits <= 16:
        raise ConfigError(f"operand width must be 2 to 16 bits, got {accel_bits}")
    if truncates and not accel_bits <= acc_bits <= 32:
        raise ConfigError(
            f"sums of truncated products must hold an operand and at most 32 bits, got "
            f"{acc_bits} bits for operands of {accel_bits}"
        )
    if not truncates and not 2 * accel_bits <= acc_bits <= 62:
        raise ConfigError(
            f"accumulators must hold a product of two operands and at most 62 bits, got "
            f"{acc_bits} bits for operands of {accel_bits}"
        )
    if scales not in ("free", "pow2"):
        raise ConfigError(f"scales must be free or pow2, got {scales!r}")
    images = np.ascontiguousarray(images, np.float32)
    if images.ndim < 2 or images.shape[1:] != graph.nodes[0].shape or not len(images):
        shape = ", ".join(map(str, graph.nodes[0].shape))
        raise ConfigError(f"calibration images must be (n >= 1, {shape}), got {images.shape}")
    if not np.isfinite(images).all():
        raise ConfigError("calibration images must be finite, got NaN or infinity")
    return images


def _owners(graph: Graph) -> list[int]:
    """For each node, the node whose scale its codes have."""
    owners: list[int] = []
    for i, node in enumerate(graph.nodes):
        moves = node.kind in _VIEWS or (node.kind == "host" and node.params["moves"])
        owners.append(owners[node.inputs[0]] if moves and len(node.inputs) == 1 else i)
    return owners


def _held(graph: Graph, owners: list[int]) -> set[int]:
    """Tensors that a matmul reads second, and what they are views of.

    The array holds them where weights are held, and a product of two unsigned codes
    would not fit the multiplier's output: they are signed.
    """
    held: set[int] = set()
    for node in graph.nodes:
        if node.kind == "matmul":
            i = node.inputs[1]
            held.add(i)
            while owners[i] != i:
                i = graph.nodes[i].inputs[0]
                held.add(i)
    return held


def _tensors(graph: Graph, owners: list[int]) -> set[str]:
    names = {node.name for i, node in enumerate(graph.nodes) if owners[i] == i}
    last = graph.nodes[-1]
    return names - {last.name} if last.kind in ARRAY_KINDS else names


def _weights(graph: Graph) -> dict[str, int]:
    """Layer with weights -> output channels."""
    return {n.name: len(n.params["weight"]) for n in graph.nodes if n.kind in ("conv", "linear")}


def _never_negative(graph: Graph, node: Node, codes: list[_Code], seen: _Seen) -> bool:
    if node.relu is not None:
        return True
    if node.kind in ("avg_pool", "concat", "add"):
        return all(not codes[i].signed for i in node.inputs)
    return node.kind in ("input", "host") and seen.smallest >= 0


def _signed_scale(code: _Code) -> float:
    """Of signed codes that reach as far."""
    if code.signed:
        return code.scale
    return code.scale * code.range[1] / code_range(code.bits, True)[1]


def _relu_code(code: _Code, unsigned: bool) -> _Code:
    """The ReLU of signed codes at the same scale; a narrower unsigned one would clip."""
    return _Code(code.scale, code.signed and not unsigned, code.bits)


# --- calibration -------------------------------------------------------------------------


def _calibrate(graph: Graph, images: np.ndarray) -> list[_Seen]:
    """Two passes: the extremes, then histograms between them."""
    seen = [_Seen() for _ in graph.nodes]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        values: dict[int, torch.Tensor] = {}
        for start in range(0, len(images), BATCH):
            for i, sums, value in forward(graph, torch.from_numpy(images[start : start + BATCH])):
                node, s = graph.nodes[i], seen[i]
                high, low = float(value.max()), float(value.min())  # NaN if there is one
                if not np.isfinite(high) or not np.isfinite(low):
                    raise ConfigError(
                        f"values of the network must be finite on the calibration images, got "
                        f"{high if np.isfinite(low) else low} ({node.name})"
                    )
                s.largest, s.smallest = max(s.largest, high), min(s.smallest, low)
                values[i] = value
                if node.kind in ARRAY_KINDS:
                    _see_sums(node, s, sums)
                    if node.kind == "conv":
                        mean = values[node.inputs[0]].double().sum(0, keepdim=True)
                        s.mean_input = mean if s.mean_input is None else s.mean_input + mean
                    elif node.kind == "linear":
                        rows = values[node.inputs[0]].reshape(-1, node.params["weight"].shape[1])
                        mean = rows.double().sum(0, keepdim=True)
                        s.mean_input = mean if s.mean_input is None else s.mean_input + mean
            values.clear()
        for s, node in zip(seen, graph.nodes):
            if s.mean_input is not None:
                rows = np.prod(node.shape[:-1], dtype=int) if node.kind == "linear" else 1
                s.mean_input /= len(images) * int(rows)
        for start in range(0, len(images), BATCH):
            for i, _, value in forward(graph, torch.from_numpy(images[start : start + BATCH])):
                s = seen[i]
                top = max(s.largest, -s.smallest)
                magnitude = value.abs().reshape(-1).numpy()
                magnitude = magnitude[magnitude > 0]
                if top < 1e-30:  # where BINS / top would not fit float32
                    magnitude = magnitude.astype(np.float64)
                if len(magnitude):
                    bins = np.minimum((magnitude * (BINS / top)).astype(np.int64), BINS - 1)
                    s.counts += np.bincount(bins, minlength=BINS)
    finally:
        torch.set_num_threads(before)
    return seen


def _see_sums(node: Node, seen: _Seen, sums: torch.Tensor) -> None:
    if node.kind == "matmul":
        largest = sums.abs().max().reshape(1)
    else:
        axis = 1 if node.kind == "conv" else sums.ndim - 1
        largest = sums.abs().amax([d for d in range(sums.ndim) if d != axis])
    largest = largest.numpy().astype(np.float64)
    seen.channel = largest if seen.channel is None else np.maximum(seen.channel, largest)


def _clip(seen: _Seen, bits: int, signed: bool, scales: str) -> float:
    """The scale of least squared error over the histogram of magnitudes.

    Values beyond the clip count with the whole distance that clipping takes off.
    """
    top = max(seen.largest, -seen.smallest)
    if top == 0:
        return 1.0
    steps = code_range(bits, signed)[1] or 1
    if scales == "pow2":
        exponent = int(np.ceil(np.log2(top / steps)))
        candidates = [2.0**e for e in range(exponent, exponent - 4, -1)]
    else:
        candidates = [top / steps * r for r in np.linspace(1.0, 0.1, 181)]
    at = np.flatnonzero(seen.counts)
    centre, weight = (at + 0.5) * (top / BINS), seen.counts[at].astype(np.float64)
    best, least = candidates[0], np.inf
    for scale in candidates:
        error = centre - scale * np.minimum(np.rint(centre / scale), steps)
        total = float((weight * error * error).sum())
        if total < least:
            best, least = float(scale), total
    return best


# --- the operations ----------------------------------------------------------------------


@dataclass
class _Builder:
    graph: Graph
    codes: list[_Code]
    seen: list[_Seen]
    own: Params
    bits: int
    acc_bits: int
    per_channel: bool
    scales: str
    bias_correction: bool
    truncates: bool = False

    def op(self, i: int, node: Node) -> P.Op:
        code = self.codes[i]
        common = {
            "index": i, "name": node.name, "inputs": node.inputs, "shape": node.shape,
            "bits": code.bits, "signed": code.signed, "scale": code.scale, "is_map": node.is_map,
        }  # fmt: skip
        p = node.params
        match node.kind:
            case "input":
                return P.Input(**common)
            case "conv" | "linear" | "matmul":
                return self._array(i, node, common)
            case "add":
                (m0, m1), shift = fixed_point(self._ratios(i, node))
                lo, hi = self._clamp(i, node)
                return P.Add(**common, m0=m0, m1=m1, shift=shift, lo=lo, hi=hi)
            case "avg_pool":
                area = p["kernel"][0] * p["kernel"][1]
                (m0,), shift = fixed_point([self._ratios(i, node)[0] / area], 24)
                whole = p["kernel"] == self.graph.nodes[node.inputs[0]].shape[1:]
                kind = P.GlobalAvgPool if whole and p["padding"] == (0, 0) else P.AvgPool
                top, left = p["padding"]
                return kind(
                    **common, kernel=p["kernel"], stride=p["stride"], padding=(left, top),
                    m0=m0, shift=shift,
                )  # fmt: skip
            case "max_pool":
                top, left = p["padding"]
                return P.MaxPool(
                    **common, kernel=p["kernel"], stride=p["stride"], padding=(left, top),
                    dilation=p["dilation"],
                )  # fmt: skip
            case "relu":
                hi = min(code.range[1], self.codes[node.inputs[0]].range[1])
                return P.Relu(**common, lo=0, hi=_top(p["top"], code.scale, hi))
            case "flatten":
                return P.Flatten(**common)
            case "pad":
                return P.Pad(**common, amount=p["amount"])
            case "slice":
                return P.Slice(**common, slices=p["slices"])
            case "concat":
                multipliers, shift = fixed_point(self._ratios(i, node))
                same = [self.codes[j] == code for j in node.inputs]
                m0 = tuple(None if s else m for s, m in zip(same, multipliers))
                return P.Concat(**common, axis=p["axis"], m0=m0, shift=shift)
            case "host":
                scales = tuple(self.codes[j].scale for j in node.inputs)
                moves = p["moves"] and len(node.inputs) == 1
                return P.Host(
                    **common, function=p["function"], what=p["what"], in_scales=scales, moves=moves
                )
        raise AssertionError(f"node {node.name!r} has an unknown kind {node.kind!r}")

    def _ratios(self, i: int, node: Node) -> list[float]:
        return [self.codes[j].scale / self.codes[i].scale for j in node.inputs]

    def _clamp(self, i: int, node: Node) -> tuple[int, int]:
        lo, hi = self.codes[i].range
        if node.relu is None:
            return lo, hi
        return 0, _top(node.relu, self.codes[i].scale, hi)

    def _array(self, i: int, node: Node, common: dict) -> P.ArrayOp:
        out = self.codes[i].scale
        lo, hi = self._clamp(i, node)
        s_in = self.codes[node.inputs[0]].scale
        p = node.params
        if node.kind == "matmul":
            unit = s_in * self.codes[node.inputs[1]].scale
            shift, _ = self._truncation(self.seen[i].channel, np.full(1, unit))
            multiplier = unit * 2.0**shift / out
            return P.MatMul(
                **common, bias=np.zeros(1, np.int64), lo=lo, hi=hi,
                multiplier=np.array([multiplier], np.float32), truncate=shift,
            )  # fmt: skip
        weight = p["weight"].double().numpy()
        bias = p["bias"].double().numpy()
        given = self.own.weights.get(node.name)
        bits = given.bits if given is not None and given.bits else self.bits
        if given is not None:
            scale = np.broadcast_to(np.asarray(given.scale, np.float64), len(weight)).copy()
        else:
            scale = self._weight_scale(weight, bias, s_in, self.seen[i].channel, bits)
        shift, floor = self._truncation(
            np.maximum(np.abs(bias), self.seen[i].channel) / s_in, scale
        )
        if given is None:
            scale = np.maximum(scale, floor)
        steps = code_range(bits, True)[1]
        column = scale.reshape(-1, *[1] * (weight.ndim - 1))
        codes = np.clip(np.rint(weight / column), -steps, steps).astype(np.int64)
        if self.bias_correction:
            bias = bias - self._mean_error(i, node, codes * column - weight)
        limit = 2 ** (self.acc_bits - 2)
        unit = s_in * scale * 2.0**shift
        bias_codes = np.rint(bias / unit)
        if np.abs(bias_codes).max(initial=0) > limit:
            raise ConfigError(
                f"the bias of {node.name} must fit {self.acc_bits - 1} bits, got "
                f"{np.abs(bias_codes).max():.3g} (weight scales too small)"
            )
        made = {
            **common, "weight": codes, "weight_bits": bits, "weight_scale": scale,
            "bias": bias_codes.astype(np.int64), "lo": lo, "hi": hi,
            "multiplier": (unit / out).astype(np.float32), "truncate": shift,
        }  # fmt: skip
        if node.kind == "linear":
            return P.Linear(**made)
        geometry = {k: p[k] for k in ("stride", "padding", "dilation", "groups")}
        return P.Conv(**made, **geometry)

    def _truncation(self, sums: np.ndarray, scale: np.ndarray) -> tuple[int, np.ndarray]:
        """(bits that products lose, smallest scales (o,) with which sums fit then).

        sums   (o,) largest |sum| in units of the input's scale; scale (o,) of the weights
        """
        if not self.truncates:
            return 0, np.zeros(1)
        shift = truncation.shift_for(sums / scale, self.acc_bits)
        floor = sums / 2.0 ** (self.acc_bits - 2 + shift)
        if self.scales == "pow2":
            floor = 2.0 ** np.ceil(np.log2(np.maximum(floor, 2.0**-100)))
        return shift, floor

    def _weight_scale(self, weight, bias, s_in, sums, bits) -> np.ndarray:
        """One scale a channel, not so small that bias or sums leave the accumulator."""
        rows = weight.reshape(len(weight), -1)
        steps = code_range(bits, True)[1]
        largest = np.abs(rows).max(1)
        if not self.per_channel:
            largest = np.full_like(largest, largest.max())
        room = 2.0 ** (self.acc_bits - 3)
        floor = np.maximum(np.abs(bias), sums) / (s_in * room)
        if self.truncates:  # sums are made to fit by truncation instead
            floor = np.zeros_like(floor)
        # A channel of zeros still needs a scale; any will do that keeps it in range.
        floor = np.maximum(floor, max(largest.max() * 2.0**-24, 2.0**-100))
        if not self.per_channel:
            floor = np.full_like(floor, floor.max())
        if self.scales == "pow2":
            return 2.0 ** np.ceil(np.log2(np.maximum(largest / steps, floor)))
        if self.per_channel and bits < 8:
            largest = largest * _weight_clip(rows, largest, steps)
        return np.maximum(largest / steps, floor)

    def _mean_error(self, i: int, node: Node, error: np.ndarray) -> np.ndarray:
        """Mean over the calibration images of what the weights' rounding adds."""
        mean, delta = self.seen[i].mean_input, torch.from_numpy(error)
        if node.kind == "linear":
            return (delta @ mean[0]).numpy()
        p = node.params
        padded = F.pad(mean, p["padding"])
        shifted = F.conv2d(padded, delta, None, p["stride"], 0, p["dilation"], p["groups"])
        return shifted.mean((0, 2, 3)).numpy()


def _weight_clip(rows: np.ndarray, largest: np.ndarray, steps: int) -> np.ndarray:
    """Share of the largest weight to clip at, of least squared error, by channel."""
    best, least = np.ones(len(rows)), np.full(len(rows), np.inf)
    for share in np.linspace(1.0, 0.3, 71):
        scale = np.maximum(largest * share / steps, 2.0**-100)[:, None]
        error = rows - scale * np.clip(np.rint(rows / scale), -steps, steps)
        total = (error * error).sum(1)
        better = total < least
        best[better], least[better] = share, total[better]
    return best


def _top(limit: float, scale: float, hi: int) -> int:
    """Code of a ReLU's upper end."""
    return hi if limit == float("inf") else min(hi, round(limit / scale))

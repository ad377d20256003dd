"""Integer convolution, linear layer and matrix product, provably exact.

Where no accumulator can overflow, the arithmetic of the array is plain integer
arithmetic, and the fastest routine that provably does the same may stand in for
it. Which ones do depends on the CPU and on the numbers:

vnni     our own convolution of 8-bit codes (`kernels/vnni.py`): needs VNNI, one group
         and |sum| < 2^31;
onednn   oneDNN's convolution of unsigned by signed 8-bit codes, int32 inside and
         float32 out: needs VNNI (without it pairs of products saturate at 16
         bits, silently) and |sum| < 2^24;
int_mm   `torch._int_mm` over windows: needs VNNI and |sum| < 2^31;
fp32     float32 GEMM over windows: needs |any partial sum| <= 2^24, so that every
         intermediate is an integer that float32 holds, in any order of additions,
         and float32 products that torch does not shorten to bfloat16;
fp64     float64 GEMM: the same with 2^53;
int64    compiled loops: needs |sum| < 2^63.

Products that lose low bits one by one (`truncate`) have compiled loops of their own,
`kernels/truncated.py`: their sums, modulo 2^32, are those of a machine whose products and
sums wrap at one width of at most 32 bits.

The bound on partial sums is taken per output channel from the weights at hand
and the range of the activation codes: with P the sum of the largest and N the sum
of the smallest products, every sum over a subset of them lies in [N, P].

A path is used only if its condition is proved *and* it gave the right answers in
this process on extreme values (`probe`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fsim.errors import ConfigError, MappingError

from .kernels import im2col as windows
from .kernels import truncated, vnni

PATHS = ("vnni", "onednn", "int_mm", "fp32", "fp64", "int64")
"""Fastest first."""

LIMITS = {
    "vnni": 2**31 - 1,
    "onednn": 2**24 - 1,
    "int_mm": 2**31 - 1,
    "fp32": 2**24,
    "fp64": 2**53,
    "int64": 2**63 - 1,
}
"""Largest |partial sum| a path is allowed to meet."""

_VNNI_ISA = ("AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512")
_WINDOW_BYTES = 8 << 20
"""Windows are laid out for as many images at a time as fit in this much memory."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One integer product to be done exactly.

    kind      "conv", "linear" or "matmul" (two activations)
    a_range   smallest and largest activation code that can occur, faults included
    weight    int64 codes: conv (o, c / groups, kh, kw), linear (o, f), matmul None
    b_range   matmul: range of the right operand; k: its inner length
    padding   left, right, top, bottom; the code outside the map is 0
    size      conv: height and width of the map; without it oneDNN is not used
    truncate  low bits that each product loses before it is added
    """

    kind: str
    a_range: tuple[int, int]
    weight: np.ndarray | None = None
    b_range: tuple[int, int] | None = None
    k: int = 0
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    size: tuple[int, int] | None = None
    truncate: int = 0

    def bound(self, shift: int = 0) -> int:
        """Largest |sum| over any subset of an output's products.

        shift is added to every activation code, the zeros of the padding included.
        """
        lo, hi = min(self.a_range[0], 0) + shift, max(self.a_range[1], 0) + shift
        lo, hi = min(lo, 0), max(hi, 0)
        if self.kind == "matmul":
            largest = max(abs(x * y) for x in (lo, hi) for y in self.b_range)
            return int(self.k * largest)
        flat = self.weight.reshape(len(self.weight), -1)
        # Python ints from here on: the bound itself may need more than 64 bits.
        ups = np.clip(flat, 0, None).sum(1).tolist()
        downs = np.clip(flat, None, 0).sum(1).tolist()
        return max(max(hi * up + lo * down, -(lo * up + hi * down)) for up, down in zip(ups, downs))


@dataclass(frozen=True)
class Path:
    """Which routine does a product, and why.

    name    of PATHS
    shift   added to every activation code first (its effect is subtracted again)
    bound   largest |partial sum| that can occur, the shift included
    reason  one line for people
    """

    name: str
    shift: int
    bound: int
    reason: str


def isa_limit() -> str | None:
    """The value of ONEDNN_MAX_CPU_ISA if it holds oneDNN below VNNI, else None."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        value = os.environ.get(name, "").upper()
        if value and value not in ("ALL", "DEFAULT") and not value.startswith(_VNNI_ISA):
            if "AMX" not in value:
                return f"{name}={value}"
    return None


def _full_float32() -> bool:
    return torch.get_float32_matmul_precision() == "highest"


def _unfit(name: str) -> str | None:
    """Why a path cannot be used on this machine; None if it can."""
    if name in ("onednn", "int_mm"):
        if not torch.cpu._is_vnni_supported():
            return "the CPU has no AVX512-VNNI: int8 products would saturate at 16 bits"
        if limit := isa_limit():
            return f"{limit} holds oneDNN below VNNI: int8 products would saturate at 16 bits"
    if name == "vnni" and not vnni.supported():
        return "the code that numba generates has no AVX512-VNNI (CPU, or LLVM before 20)"
    if name == "fp32" and not _full_float32():
        precision = torch.get_float32_matmul_precision()
        return f"torch's float32 matmul precision is {precision!r}, not 'highest'"
    cases, wrong = _probed(name)
    if wrong:
        return f"the probe found {wrong} of {cases} extreme products wrong"
    return None


def _shift(name: str, problem: Problem) -> int | None:
    """Shift that brings the codes into the path's operand type; None if none does."""
    lo, hi = problem.a_range
    if name not in ("vnni", "onednn", "int_mm"):
        return 0
    if problem.kind == "matmul" or problem.weight.min() < -128 or problem.weight.max() > 127:
        return None
    if name in ("vnni", "onednn"):
        if problem.kind != "conv":
            return None
        if problem.groups > 1 if name == "vnni" else not _onednn_geometry(problem):
            return None
        return 0 if 0 <= lo and hi <= 255 else 128 if -128 <= lo and hi <= 127 else None
    if problem.groups > 1:
        return None
    return 0 if -128 <= lo and hi <= 127 else -128 if 0 <= lo and hi <= 255 else None


def _onednn_geometry(problem: Problem) -> bool:
    """Whether oneDNN's int8 convolution is right for these sizes.

    With an output of one column and unequal strides it gave wrong sums, and with
    windows that lie wholly in the padding it read outside the map (torch 2.13). Here:
    equal strides, at least two rows and columns of output, a border that it need
    not imagine wider than a window reaches (`_onednn_conv` lays wider ones out).
    """
    if problem.size is None or problem.stride[0] != problem.stride[1]:
        return False
    return min(output_size(problem, *problem.size)) >= 2


def _provable(name: str, problem: Problem) -> tuple[int, int] | None:
    """(shift, bound) if the path's arithmetic is proved exact for the problem."""
    shift = _shift(name, problem)
    if shift is None or (name in ("fp32", "fp64") and problem.groups > 1):
        return None
    # The shift is undone after the sum, so both sums must stay in range.
    bound = max(problem.bound(shift), problem.bound())
    return (shift, bound) if bound <= LIMITS[name] else None


def choose(problem: Problem) -> Path:
    """The fastest path that is proved for `problem` and available here.

    Raises MappingError if not even 64 bits hold the sum.
    """
    if problem.truncate:
        return Path("truncated", 0, problem.bound(), "each product loses low bits")
    refused = []
    for name in PATHS:
        proof = _provable(name, problem)
        if proof is None:
            continue
        if why := _unfit(name):
            refused.append(f"{name}: {why}")
            continue
        shift, bound = proof
        if name == "onednn" and not _agrees(problem, Path(name, shift, bound, "check")):
            refused.append(f"{name}: wrong on this layer's weights and extreme codes")
            continue
        reason = f"|sum| <= {bound} <= {LIMITS[name]}"
        if refused:
            reason += "; not " + "; not ".join(refused)
        return Path(name, shift, bound, reason)
    raise MappingError(
        f"a sum of products must fit 64 bits, got |sum| up to {problem.bound()} ({problem.kind})"
    )


def _agrees(problem: Problem, path: Path) -> bool:
    """oneDNN on the layer's own weights and size, extreme codes, against float64 or loops.

    The proof is about arithmetic; this is about a library that picks one of many
    routines by geometry.
    """
    h, w = problem.size
    channels = problem.weight.shape[1] * problem.groups
    dtype = np.uint8 if path.shift == 0 else np.int8
    rng = np.random.Generator(np.random.PCG64(20))
    codes = rng.choice(problem.a_range, (2, h, w, channels)).astype(dtype)
    codes[1, : h // 2] = problem.a_range[1]
    slow = Path("fp64" if problem.groups == 1 else "int64", 0, problem.bound(), "check")
    want = (_window_conv(slow, problem) if problem.groups == 1 else _loop_conv(problem))(codes)
    return np.array_equal(_packed(path, problem)(codes), want)


@dataclass(frozen=True, eq=False)
class Exact:
    """A product ready to run: `Exact(codes)` or, for matmul, `Exact(a, b)`.

    path     how
    offset   (o,) int64, or None: what `raw` is too large by, because of the shift
    raw      codes -> sums (n, oh, ow, o) or (n, o), C-contiguous, offset included;
             float32, int32, float64 or int64, always holding integers
    fused    None, or a function of (codes, scaling, sums, out) that requantises too:
             scaling as `lanes` gives it, sums (n, oh, ow, o) int32 or None: what raw
             would give, out (n, oh, ow, o) 8-bit codes; both are overwritten
    """

    path: Path
    offset: np.ndarray | None
    raw: Callable[..., np.ndarray] = field(repr=False)
    fused: Callable | None = field(default=None, repr=False)

    def __call__(self, *codes: np.ndarray) -> np.ndarray:
        sums = self.raw(*codes)
        if self.offset is not None:
            sums -= self.offset.astype(sums.dtype)
        return sums


def prepare(problem: Problem, path: str | None = None) -> Exact:
    """Pack the weights for the chosen path, or for `path`, which must be provable.

    Raises ConfigError if the named path is not proved exact for the problem.
    """
    if path is None:
        chosen = choose(problem)
    else:
        proof = _provable(path, problem) if path in PATHS else None
        if proof is None:
            raise ConfigError(
                f"path must be one that is exact here, got {path!r} with |sum| up to "
                f"{problem.bound()} ({problem.kind}, codes {problem.a_range})"
            )
        chosen = Path(path, *proof, reason="asked for")
    return _packed(chosen, problem)


def _packed(path: Path, problem: Problem) -> Exact:
    if path.name == "truncated":
        return Exact(path, None, truncated_sums(problem))
    if problem.kind == "matmul":
        return Exact(path, None, _matmul(path.name))
    offset = None
    if path.shift:
        flat = problem.weight.reshape(len(problem.weight), -1)
        offset = path.shift * flat.sum(1).astype(np.int64)
    if problem.kind == "linear":
        return Exact(path, offset, _linear(path, problem.weight))
    if path.name == "vnni":
        return Exact(path, offset, *_vnni_conv(path, problem))
    if path.name == "onednn":
        return Exact(path, offset, _onednn_conv(path, problem))
    if path.name == "int64":
        return Exact(path, offset, _loop_conv(problem))
    return Exact(path, offset, _window_conv(path, problem))


def output_size(problem: Problem, h: int, w: int) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    left, right, top, bottom = problem.padding
    kh, kw = problem.weight.shape[2:]
    oh = (h + top + bottom - problem.dilation[0] * (kh - 1) - 1) // problem.stride[0] + 1
    ow = (w + left + right - problem.dilation[1] * (kw - 1) - 1) // problem.stride[1] + 1
    return oh, ow


def lanes(outputs: int, bias, multiplier, lo, hi) -> tuple:
    """Scaling of `Exact.fused` for that many outputs; vectors (o,), as `requantise_float`."""
    room = -(-outputs // vnni.LANES) * vnni.LANES
    vectors = (np.resize(np.asarray(v, np.float32), room) for v in (bias, multiplier))
    return *vectors, np.float32(lo), np.float32(hi)


def _vnni_conv(path: Path, problem: Problem) -> tuple[Callable, Callable]:
    """(raw, fused) of `Exact`."""
    packed = vnni.pack(problem.weight)
    outputs, _, kh, kw = problem.weight.shape
    flip = path.shift
    plain = lanes(outputs, [0], [1], 0, 0)

    @functools.lru_cache(maxsize=4)
    def layout(h, w, c):
        size = output_size(problem, h, w)
        window = (kh, kw, *size)
        return size, *vnni.geometry(
            (h, w, c), window, problem.stride, problem.padding, problem.dilation
        )

    def run(codes, scaling, sums, out):
        size, steps, sizes = layout(*codes.shape[1:])
        if sums is None:
            sums = np.empty((0, *size, outputs), np.int32)
        if out is None:
            out = np.empty((0, *size, outputs), np.uint8)
        vnni.run(codes, flip, packed, steps, sizes, scaling, sums, out)

    def raw(codes):
        size = output_size(problem, *codes.shape[1:3])
        sums = np.empty((len(codes), *size, outputs), np.int32)
        run(codes, plain, sums, None)
        return sums

    return raw, run


def _onednn_conv(path: Path, problem: Problem) -> Callable:
    left, right, top, bottom = problem.padding
    kh, kw = problem.weight.shape[2:]
    reach = problem.dilation[0] * (kh - 1), problem.dilation[1] * (kw - 1)
    border = (top, left) != (bottom, right) or top > reach[0] or left > reach[1]
    border = border or path.shift != 0
    padding = [0, 0] if border else [top, left]
    stride, dilation = list(problem.stride), list(problem.dilation)
    o = len(problem.weight)
    scales, zeros = torch.ones(o), torch.zeros(o, dtype=torch.int64)
    packed = torch.ops.onednn.qconv_prepack(
        _tensor(np.ascontiguousarray(problem.weight, np.int8)),
        scales, 1.0, 0, stride, padding, dilation, problem.groups, None,
    )  # fmt: skip
    convolve = torch.ops.onednn.qconv_pointwise.default

    def raw(codes):
        n, h, w, c = codes.shape
        if (h, w) != problem.size:
            raise MappingError(f"the map must be {problem.size} as prepared for, got {(h, w)}")
        if border:
            framed = np.empty((n, top + h + bottom, left + w + right, c), np.uint8)
            windows.shift_and_pad(codes, (left, top), path.shift, framed)
            codes = framed
        x = _tensor(codes).permute(0, 3, 1, 2)
        y = convolve(
            x, 1.0, 0, packed, scales, zeros, None, stride, padding, dilation, problem.groups,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return y.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).numpy()

    return raw


_TYPES = {"int_mm": torch.int8, "fp32": torch.float32, "fp64": torch.float64}


def _tensor(array: np.ndarray) -> torch.Tensor:
    """An array as a C-contiguous tensor with the strides torch itself would give it.

    Along an axis of one entry numpy may leave any stride. `torch._int_mm` believes
    it and reads outside the array (torch 2.13, (8, 1) by (1, 8)).
    """
    array = np.ascontiguousarray(array)
    strides, step = [], 1
    for size in reversed(array.shape):
        strides.append(step)
        step *= size
    return torch.from_numpy(array).as_strided(array.shape, strides[::-1])


def _product(name: str, a: np.ndarray, b: torch.Tensor) -> np.ndarray:
    """(m, k) codes, shifted already, times (k, n) of the path's type."""
    left = _tensor(a)
    if name == "int_mm":
        return torch._int_mm(left, b).numpy()
    if name == "vnni" and not vnni.supported():
        return "the code that numba generates has no AVX512-VNNI (CPU, or LLVM before 20)"
    if name == "fp32" and not _full_float32():
        # The setting was changed after the path was chosen; float64 is exact too.
        return torch.mm(left.double(), b.double()).numpy()
    return torch.mm(left.to(b.dtype), b).numpy()


def _operand(codes: np.ndarray, path: Path) -> np.ndarray:
    """Codes as torch can take them: int8 for int_mm, else at most 8 bits or signed."""
    if path.name == "int_mm":
        # u8 - 128 leaves int8 on the way, so the sum is done in 16 bits.
        shifted = codes if not path.shift else codes.astype(np.int16) + path.shift
        return np.ascontiguousarray(shifted, np.int8)
    return np.ascontiguousarray(codes, np.int32 if codes.dtype == np.uint16 else codes.dtype)


def _linear(path: Path, weight: np.ndarray) -> Callable:
    right = np.ascontiguousarray(weight.T)
    if path.name != "int64":
        packed = _tensor(right).to(_TYPES[path.name])

    def raw(codes):
        rows = codes.reshape(-1, codes.shape[-1])
        if path.name == "int64":
            out = np.empty((1, len(rows), len(weight)), np.int64)
            windows.matmul(rows.astype(np.int64)[None], right[None], out)
        else:
            out = _product(path.name, _operand(rows, path), packed)
        return out.reshape(*codes.shape[:-1], len(weight))

    return raw


def _window_conv(path: Path, problem: Problem) -> Callable:
    o, c, kh, kw = problem.weight.shape
    columns = c * kh * kw
    right = problem.weight.transpose(2, 3, 1, 0).reshape(columns, o)
    packed = _tensor(np.ascontiguousarray(right)).to(_TYPES[path.name])
    left, _, top, _ = problem.padding
    out_dtype = {"int_mm": np.int32, "fp32": np.float32, "fp64": np.float64}[path.name]

    def raw(codes):
        codes = _operand(codes, path)
        n, h, w, _ = codes.shape
        oh, ow = output_size(problem, h, w)
        window, fill = (kh, kw, oh, ow), codes.dtype.type(path.shift)
        out = np.empty((n, oh, ow, o), out_dtype)
        step = max(1, _WINDOW_BYTES // (oh * ow * columns * packed.element_size()))
        for first in range(0, n, step):
            part = codes[first : first + step]
            rows = np.empty((len(part) * oh * ow, columns), codes.dtype)
            windows.im2col(part, window, problem.stride, (left, top), problem.dilation, fill, rows)
            out[first : first + step] = _product(path.name, rows, packed).reshape(-1, oh, ow, o)
        return out

    return raw


def _loop_conv(problem: Problem) -> Callable:
    weight = np.ascontiguousarray(problem.weight.transpose(0, 2, 3, 1))
    left, _, top, _ = problem.padding

    def raw(codes):
        oh, ow = output_size(problem, *codes.shape[1:3])
        out = np.empty((len(codes), oh, ow, len(weight)), np.int64)
        windows.convolve(
            np.ascontiguousarray(codes, np.int64), weight, problem.stride, (left, top),
            problem.dilation, problem.groups, out,
        )  # fmt: skip
        return out

    return raw


def truncated_sums(problem: Problem) -> Callable:
    """codes -> int32 sums of products that lose `problem.truncate` bits, modulo 2^32."""

    def convolve(codes, weight, geometry, size):
        out = np.empty((len(codes), *size, weight.shape[0] * weight.shape[-1]), np.int32)
        codes = np.ascontiguousarray(codes, np.int16)
        truncated.convolve(codes, weight, geometry, problem.truncate, (0, size[0]), out)
        return out

    def of_rows(codes, weight):
        rows = codes.reshape(-1, 1, 1, codes.shape[-1])
        weight = np.ascontiguousarray(weight, np.int32)[None, None, None]
        return convolve(rows, weight, (1, 1, 0, 0, 1, 1), (1, 1))

    if problem.kind == "matmul":

        def raw(a, b):
            lead, (m, k), p = a.shape[:-2], a.shape[-2:], b.shape[-1]
            a, b = a.reshape(-1, m, k), b.reshape(-1, k, p)
            return np.stack([of_rows(x, y) for x, y in zip(a, b)]).reshape(*lead, m, p)

    elif problem.kind == "linear":

        def raw(codes):
            out = of_rows(codes, problem.weight.T)
            return out.reshape(*codes.shape[:-1], len(problem.weight))

    else:
        weight = grouped(problem.weight, problem.groups)
        left, _, top, _ = problem.padding
        geometry = (*problem.stride, top, left, *problem.dilation)

        def raw(codes):
            size = output_size(problem, *codes.shape[1:3])
            return convolve(codes, weight, geometry, size)

    return raw


def grouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """(o, c / groups, kh, kw) codes as (groups, kh, kw, c / groups, o / groups) int32."""
    parts = weight.reshape(groups, -1, *weight.shape[1:]).transpose(0, 3, 4, 2, 1)
    return np.ascontiguousarray(parts, np.int32)


def _matmul(name: str) -> Callable:
    def raw(a, b):
        lead, (m, k), p = a.shape[:-2], a.shape[-2:], b.shape[-1]
        a, b = a.reshape(-1, m, k), b.reshape(-1, k, p)
        if name == "int64":
            out = np.empty((len(a), m, p), np.int64)
            windows.matmul(a.astype(np.int64), b.astype(np.int64), out)
        else:
            dtype = np.float32 if name == "fp32" and _full_float32() else np.float64
            x, y = (_tensor(np.ascontiguousarray(v, dtype)) for v in (a, b))
            out = torch.bmm(x, y).numpy()
        return out.reshape(*lead, m, p)

    return raw


# --- the probe --------------------------------------------------------------------------


def _patterns(count: int, lo: int, hi: int) -> np.ndarray:
    """Rows of extreme codes (p, count): constant, alternating in ones and pairs, random."""
    index = np.arange(count)
    random = np.random.Generator(np.random.PCG64(20)).integers(0, 2, (3, count))
    picks = np.stack([index * 0, index * 0 + 1, index % 2, index // 2 % 2, (index % 3) // 2])
    return np.where(np.concatenate([picks, random]), hi, lo).astype(np.int64)


def _probe_cases(name: str):
    """(problem, codes) that the path is proved for, with values at the ends of the range."""
    for k in (1, 4, 31, 64, 144, 257, 576, 1024):
        weight = _patterns(k, -128, 127)
        for lo, hi in ((0, 255), (-128, 127)):
            codes = _patterns(k, lo, hi)
            problem = Problem("linear", (lo, hi), weight)
            if name in ("vnni", "onednn"):
                # Two by two pixels with the same codes: oneDNN is not asked for fewer.
                weight = np.tile(weight, (5, 1)) if name == "vnni" else weight  # both tiles
                filters = weight.reshape(len(weight), k, 1, 1)
                problem = Problem("conv", (lo, hi), filters, size=(2, 2))
                codes = np.broadcast_to(codes[:, None, None], (len(codes), 2, 2, k))
            if _provable(name, problem) is None:
                scale = max(1, -(-problem.bound() // (LIMITS[name] // 2)))
                smaller = np.sign(weight) * (np.abs(weight) // scale)
                smaller = smaller.reshape(problem.weight.shape)
                problem = replace(problem, weight=smaller)
            if _provable(name, problem) is not None:
                yield problem, np.ascontiguousarray(codes, np.uint8 if lo == 0 else np.int8)


def _run_probe(name: str) -> tuple[int, int]:
    cases = wrong = 0
    if name == "vnni" and not vnni.supported():
        return 0, 0  # LLVM would end the process
    for problem, codes in _probe_cases(name):
        got = prepare(problem, name)(codes)
        weight = problem.weight.reshape(len(problem.weight), -1)
        want = codes.astype(np.int64) @ weight.T
        cases += want.size
        wrong += int((got.astype(np.int64) != want).sum())
    return cases, wrong


_probed = functools.lru_cache(maxsize=None)(_run_probe)


def probe() -> list[tuple[str, int, int]]:
    """(path, products tried, products wrong) for every path that runs at all.

    Extreme operands (every code at an end of its range, K up to 1024) against
    int64 numpy, run afresh.
    """
    return [(name, *_run_probe(name)) for name in PATHS]


def explain() -> list[tuple[str, bool, str]]:
    """(path, usable here, why or under which condition) for `fsim doctor`."""
    return [
        (name, (why := _unfit(name)) is None, why or f"exact while |sum| <= {LIMITS[name]}")
        for name in PATHS
    ]

"""The cell search space as plain values: which operations, how many cells, steps and channels.

Nothing here needs torch. Numbers are those of Ning et al., "FTT-NAS" (arXiv 2003.10375),
as its reference implementation aw_nas configures them (mibb.yaml, adsaf.yaml).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from fsim.errors import ConfigError
from fsim.parse import nearest

MIBB_PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""Operations of the search under feature faults (MiBB)."""

ADSAF_PRIMITIVES = (*MIBB_PRIMITIVES, "relu_conv_bn_3x3", "relu_conv_bn_5x5", "conv_1x1")
"""Operations of the search under stuck weights (adSAF); they include all of the other set."""

PREPROCESSES = ("relu_conv_bn_1x1", "relu_conv_bn_3x3")
"""What brings a cell's two inputs to the cell's channels. relu_conv_bn_1x1: where the input
is twice as large, FactorizedReduce instead. relu_conv_bn_3x3: then with stride 2."""

NORMAL, REDUCE = "N", "R"
CELL_NAMES = {NORMAL: "normal", REDUCE: "reduce"}

_MOST_CELLS, _MOST_STEPS, _MOST_CHANNELS = 64, 16, 1 << 14


@dataclass(frozen=True)
class CellSpace:
    """A space of networks made of normal and reduction cells.

    primitives       operations that an edge can have, a subset of ADSAF_PRIMITIVES
    preprocess       of PREPROCESSES
    layout           a letter a cell, input to output: N keeps the size of the feature
                     map, R halves it and doubles the channels. The paper's eight cells
                     reduce at 8 // 3 and 16 // 3.
    steps            nodes a cell adds; each sums two edges from earlier nodes, and the
                     cell's output concatenates all of them
    init_channels    channels of a node before the first R
    stem_multiplier  the stem convolution gives stem_multiplier * init_channels

    ConfigError lists everything that is not valid.
    """

    primitives: tuple[str, ...] = ADSAF_PRIMITIVES
    preprocess: str = "relu_conv_bn_3x3"
    layout: str = "NNRNNRNN"
    steps: int = 4
    init_channels: int = 20
    stem_multiplier: int = 3

    def __post_init__(self):
        problems = list(self._problems())
        if problems:
            raise ConfigError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        primitives = self.primitives
        if not isinstance(primitives, tuple) or not primitives:
            yield f"primitives must be a tuple of at least one operation, got {primitives!r}"
        else:
            for name in primitives:
                if name not in ADSAF_PRIMITIVES:
                    yield unknown_primitive(name, ADSAF_PRIMITIVES)
            if len(set(map(str, primitives))) < len(primitives):
                yield "primitives must differ from one another"
        if self.preprocess not in PREPROCESSES:
            yield f"preprocess must be {' or '.join(PREPROCESSES)}, got {self.preprocess!r}"
        layout = self.layout
        if not isinstance(layout, str) or not layout or not set(layout) <= set(CELL_NAMES):
            yield f"layout must be letters N (normal) and R (reduce), got {str(layout)[:80]!r}"
        elif len(layout) > _MOST_CELLS:
            yield f"layout must have at most {_MOST_CELLS} cells, got {len(layout)}"
        else:
            yield from self._wrong_channels()
        yield from _wrong_count("steps", self.steps, _MOST_STEPS)
        yield from _wrong_count("stem_multiplier", self.stem_multiplier, _MOST_CHANNELS)

    def _wrong_channels(self) -> Iterator[str]:
        wrong = list(_wrong_count("init_channels", self.init_channels, _MOST_CHANNELS))
        if not wrong and self.init_channels << self.layout.count(REDUCE) > _MOST_CHANNELS:
            wrong = [
                f"init_channels must be such that no cell has more than {_MOST_CHANNELS} "
                f"channels, got {self.init_channels}, doubled {self.layout.count(REDUCE)} times"
            ]
        return iter(wrong)

    def scaled(self, width: float) -> CellSpace:
        """The space with `width` times as many channels, rounded, at least one."""
        return replace(self, init_channels=scale_channels(self.init_channels, width))

    def cells(self) -> Iterator[CellShape]:
        """Every cell, from the input on."""
        stem = self.stem_multiplier * self.init_channels
        before, last, channels = stem, stem, self.init_channels
        halved = False  # the cell before made its output half as large as the one before it
        for kind in self.layout:
            stride = 2 if kind == REDUCE else 1
            channels *= stride
            yield CellShape(kind, channels, stride, (before, last), 2 if halved else 1)
            before, last, halved = last, channels * self.steps, kind == REDUCE


@dataclass(frozen=True)
class CellShape:
    """Sizes of one cell.

    kind           N or R
    channels       of each of its nodes
    stride         of edges from the two inputs
    inputs         channels of its inputs: the cell before the last one, and the last one
    before_stride  stride of the first input's preprocessing
    """

    kind: str
    channels: int
    stride: int
    inputs: tuple[int, int]
    before_stride: int


def scale_channels(channels: int, width: float) -> int:
    """`width` times as many channels, rounded, at least one. ConfigError for a bad width."""
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width <= 64:
        raise ConfigError(f"width must be a number in (0, 64], got {width!r}")
    return max(1, round(channels * width))


def unknown_primitive(name: object, known: Iterable[str]) -> str:
    """What is wrong with an operation that is not in `known`."""
    known = list(known)
    shown = str(name)[:40]
    return f"operation must be one of {', '.join(known)}, got {shown!r}{nearest(shown, known)}"


def _wrong_count(name: str, value: object, most: int) -> Iterator[str]:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        yield f"{name} must be a whole number from 1 to {most}, got {repr(value)[:40]}"


SPACES = {
    "mibb": CellSpace(MIBB_PRIMITIVES, "relu_conv_bn_1x1"),
    "adsaf": CellSpace(ADSAF_PRIMITIVES, "relu_conv_bn_3x3"),
}
"""The paper's two spaces, by the fault model they were searched under."""

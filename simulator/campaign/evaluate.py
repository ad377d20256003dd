"""What faults do to answers, by the cheapest way that is exact.

* `differences`: one transient fault in one layer of one inference. What the layer makes
  of it is computed on the golden codes of its image and carried on as differences, or in
  networks that these cannot express as whole maps (`suffix`).
* `together`: any faults, one image a trial: whole inferences, many trials in one batch.
* `machines`: faults that all images of a trial meet: one machine after another.

All three give the same outcomes and the same last sums, bit for bit; tests hold the first
against the second.
"""

from __future__ import annotations

import numpy as np

from fsim.errors import ConfigError, MappingError
from fsim.simulator import program as P
from fsim.simulator.batch import Batch
from fsim.simulator.criteria import DEFAULT, judge
from fsim.simulator.delta import Changes, Delta
from fsim.simulator.engine import FaultHooks
from fsim.simulator.inject import BATCH, run_read
from fsim.simulator.kernels.requantise import requantise_at
from fsim.simulator.replay import own_walk
from fsim.simulator.sites import Placement
from fsim.simulator.statistics import classify, top1
from fsim.simulator.trace_format import OUTCOME, tensor_digest
from fsim.simulator.walks import register_sums, walkable

from .golden import MEMORY, GoldenCache
from .population import Drawn
from .protected import mark, read_drawn
from .suffix import Suffix

WAYS = ("auto", "differences", "whole")
_STRUCK = 64  # inferences whose struck layer is computed together


class Evaluator:
    """Outcomes of trials on one machine.

    way      "auto": differences where they can; "whole": never; "differences": only, and
             MappingError with the reason where they cannot
    memory   bytes for golden codes
    threads  of compiled kernels and of batches
    critical which wrong answers are critical: a name of `criteria`
    """

    def __init__(
        self, placement: Placement, images, labels, *, way: str = "auto",
        memory: int = MEMORY, threads: int = 1, backend: str = "auto",
        critical: str = DEFAULT,
    ):  # fmt: skip
        if way not in WAYS:
            raise ConfigError(f"way must be one of {', '.join(WAYS)}, got {way!r}")
        self.placement, self.threads, self.backend = placement, threads, backend
        self.critical = critical
        self.golden = GoldenCache(placement, images, labels, memory=memory)
        if way == "differences" and self.golden.refusal:
            raise MappingError(self.golden.refusal)
        self.whole = way == "whole" or backend != "auto"
        names = [component.name for component in placement.accel.components]
        self._acts, self._weights, self._psums = map(names.index, ("acts", "weights", "psums"))

    def outcomes(self, drawn: Drawn) -> np.ndarray:
        """OUTCOME rows of trials, in the order of (trial, image)."""
        if not self.placement.accel.protected:
            return self._outcomes(drawn)
        read, repaired, detected = read_drawn(self.placement, drawn)
        table = np.empty(drawn.image.shape, OUTCOME)
        sizes = np.minimum(np.diff(read.begin), 2)
        # A trial of which nothing is left is golden, one of a single row may go on as one.
        parts = [sizes == 0, sizes == 1, sizes == 2] if drawn.single else [sizes == 0, sizes > 0]
        for number, part in enumerate(parts):
            mine = np.flatnonzero(part)
            if len(mine):
                some = read.some(mine)
                found = self._outcomes(some) if number else self._untouched(some)
                table[mine] = found.reshape(len(mine), -1)
        mark(table, repaired, detected)
        return table.reshape(-1)

    def _untouched(self, drawn: Drawn) -> np.ndarray:
        """OUTCOME rows of trials whose inferences run without faults."""
        trial = np.repeat(drawn.trial, drawn.image.shape[1])
        image = np.asarray(drawn.image).reshape(-1)
        answers = self.golden.answers
        return self._table(trial, image, answers.acc[image], answers.top1[image])

    def _outcomes(self, drawn: Drawn) -> np.ndarray:
        """OUTCOME rows of trials all of whose faults act."""
        rows, image, trial = drawn.rows, drawn.image, drawn.trial
        each = image.shape[1]
        lasting = not drawn.single or bool((rows["layer"] < 0).any())
        if each == len(self.golden.answers.images) > 1 and (lasting or self.whole):
            cuts = zip(drawn.begin[:-1], drawn.begin[1:])
            return self.machines(trial, [rows[a:b] for a, b in cuts], image)
        which = np.repeat(np.arange(len(trial)), each)
        if drawn.single and not lasting and not self.whole and not self._may_hang(rows):
            return self.differences(trial[which], image.reshape(-1), rows, which)
        return self.together(trial[which], image.reshape(-1), rows, drawn.begin, which)

    def _may_hang(self, rows: np.ndarray) -> bool:
        """Whether a machine may give no result, which differences cannot carry.

        Only one that counts its schedule itself can.
        """
        if not self.placement.accel.parameters.get("sequencer"):
            return False
        table = self.placement.accel.components
        control = [i for i, c in enumerate(table) if c.role == "control" and c.grid == (1, 1)]
        return bool(np.isin(rows["component"], control).any())

    # --- whole inferences ---

    def together(self, trial, image, rows, begin, which) -> np.ndarray:
        """OUTCOME rows of inferences as whole inferences, many in a batch.

        trial, image  (f,) of each inference
        rows, begin   FAULT of all trials and where each one's begin
        which         (f,) ascending: number of the inference's trial among them
        """
        golden = self.golden.answers
        program = self.placement.program
        sizes = np.diff(begin)[which]
        ends = np.cumsum(sizes)
        slot = np.repeat(np.arange(len(which)), sizes)
        index = np.repeat(begin[which] - ends + sizes, sizes) + np.arange(len(slot))
        acc = np.empty((len(trial), golden.acc.shape[1]), np.int64)
        classes = np.empty(len(trial), np.int32)

        def part(first: int):
            last = min(first + BATCH, len(trial))
            mine = slice(*np.searchsorted(slot, (first, last)))
            batch = Batch(rows[index[mine]], slot[mine] - first)
            hooks = FaultHooks(self.placement, batch, self.backend)
            return P.run(program, golden.images[image[first:last]], hooks=hooks, threads=1)

        begins = list(range(0, len(trial), BATCH))
        for first, result in zip(begins, P.concurrently(program, part, begins, self.threads)):
            mine = slice(first, first + len(result.acc))
            acc[mine], classes[mine] = result.acc, top1(result.logits)
        return self._table(trial, image, acc, classes)

    def machines(self, trial, rows: list[np.ndarray], image: np.ndarray) -> np.ndarray:
        """OUTCOME rows of trials whose faults strike all images of the run.

        rows   FAULT of each trial; image (t, images)
        """
        golden = self.golden.answers

        def run(number: int):
            mine = rows[number].copy()
            mine["image"] = -1
            return run_read(
                self.placement, golden, mine, backend=self.backend, end=len(golden.images),
                threads=1,
            )  # fmt: skip

        found = list(
            P.concurrently(self.placement.program, run, range(len(trial)), self.threads)
        )  # fmt: skip
        acc = np.concatenate([acc for acc, _ in found])
        classes = np.concatenate([classes for _, classes in found])
        each = image.shape[1]
        return self._table(np.repeat(trial, each), image.reshape(-1), acc, classes)

    # --- differences ---

    def differences(self, trial, image, rows, which) -> np.ndarray:
        """OUTCOME rows of inferences with one transient fault each.

        trial, image, which  (f,) of each inference; `which` numbers its row
        """
        golden = self.golden.answers
        acc = golden.acc[image]
        chunk = self.golden.chunk_of(image)
        for number in np.unique(chunk).tolist():
            mine = np.flatnonzero(chunk == number)
            delta, first = self.golden.chunk(number)
            here, struck = image[mine] - first, rows[which[mine]]
            if isinstance(delta, Suffix):
                acc[mine] = delta.carried(here, struck, self.threads)
            else:
                acc[mine] = self._carried(delta, here, struck)
        return self._table(trial, image, acc, None)

    def _carried(self, delta: Delta, image: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(f, classes) last sums of the inferences of one chunk."""
        acc = delta.acc[image]
        last = len(self.placement.program.ops) - 1
        layer, component = rows["layer"], rows["component"]
        psums = (component == self._psums) & (layer < last)
        if own_walk(self.placement.accel):  # its order of summands, its limits
            psums[:] = False
        hits = np.flatnonzero(psums)
        rest = np.flatnonzero(~psums)
        parts = []
        if len(hits):
            parts.append((hits, delta.psum_hits(image[hits], rows[hits])))
        order = rest[np.argsort(layer[rest], kind="stable")]
        cuts = np.flatnonzero(np.diff(layer[order])) + 1
        for mine in np.split(order, cuts) if len(order) else ():
            op = self.placement.program.ops[int(layer[mine[0]])]
            for begin in range(0, len(mine), _STRUCK):
                some = mine[begin : begin + _STRUCK]
                found = self._struck(delta, op, image[some], rows[some])
                if op.index == last:
                    acc[some] = found
                else:
                    parts.append((some, found))
        if parts:
            numbers, changes = _joined(parts)
            alive = np.diff(changes.begin) > 0
            if alive.any():
                numbers, changes = numbers[alive], _some(changes, np.flatnonzero(alive))
                acc[numbers] = delta.propagate(changes, threads=self.threads).acc
        return acc

    def _struck(self, delta: Delta, op, image, rows):
        """What one layer makes of faults: `Changes`, or of the last layer its sums."""
        if (rows["component"] == self._acts).all() and (rows["first"] == 0).all():
            return self._stored(delta, op, image, rows)
        program, placement = self.placement.program, self.placement
        inputs = tuple(delta.codes(i, image) for i in op.inputs)
        hooks = FaultHooks(placement, Batch(rows, np.arange(len(rows))))
        acts = rows["component"] == self._acts
        if not op.is_array or acts.any():
            out = P.step(program, op, inputs, hooks)
            if op.index == program.ops[-1].index:
                return out
            return _changes(op.index, image, out, delta.codes(op.index, image))
        acc = delta.sums(op.index, image)
        walked = walkable(placement, op, rows)
        fast = np.flatnonzero(walked)
        where, value = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        if len(fast):
            fault, index, sums = register_sums(placement, op, inputs[0], acc, rows[fast], fast)
            where.append(fast[fault] * acc[0].size + index)
            value.append(sums)
        slow = np.flatnonzero(~walked)
        if len(slow):
            some = tuple(codes[slow] for codes in inputs)
            hooks = FaultHooks(placement, Batch(rows[slow], np.arange(len(slow))))
            found = hooks.accumulated(op, some, acc[slow])
            if found is not None:
                number, index = np.divmod(found[0], acc[0].size)
                where.append(slow[number] * acc[0].size + index)
                value.append(found[1])
        where, value = np.concatenate(where), np.concatenate(value)
        if op.index == program.ops[-1].index:
            out = delta.acc[image]
            out.reshape(-1)[where] = value
            return out
        return self._requantised(delta, op, image, where, value, acc[0].size)

    def _requantised(self, delta: Delta, op, image, where, value, size: int) -> Changes:
        """Codes of changed sums, those that are the golden ones left out."""
        golden = delta.codes(op.index, image).reshape(-1)
        out = golden.copy()
        channels = np.broadcast_to(op.multiplier, op.weight.shape[:1])
        ready = self.placement.program.ready(op)
        requantise_at(
            where, value, np.ascontiguousarray(channels), self.placement.program.acc_bits,
            ready.lo, ready.hi, out,
        )  # fmt: skip
        # An index that comes twice (updates of one sum) keeps its last value: look at each once.
        where = np.unique(where)
        where = where[out[where] != golden[where]]
        number, index = np.divmod(where, size)
        begin = np.searchsorted(number, np.arange(len(image) + 1))
        layer = np.full(len(image), op.index, np.int64)
        return Changes(image, layer, begin, index, out[where].astype(np.int32))

    def _stored(self, delta: Delta, op, image, rows) -> Changes:
        """A flip in a stored code that all readers see."""
        word = rows["word"].astype(np.int64)
        golden = delta.codes(op.index, image).reshape(len(image), -1)
        code = golden[np.arange(len(image)), word].astype(np.int64)
        code = ((code & rows["and_mask"]) | rows["or_mask"]) ^ rows["xor_mask"]
        code = code.astype(golden.dtype).astype(np.int32)
        layer = np.full(len(image), op.index, np.int64)
        return Changes(image, layer, np.arange(len(image) + 1), word, code)

    # --- outcomes ---

    def _table(self, trial, image, acc, classes) -> np.ndarray:
        golden = self.golden.answers
        if classes is None:
            scale = self.placement.program.ops[-1].multiplier
            classes = top1(acc.astype(np.float32) * scale)
        rows = np.zeros(len(trial), OUTCOME)
        rows["trial"], rows["image"] = trial, image
        rows["label"], rows["golden"] = golden.labels[image], golden.top1[image]
        outcome = np.empty(len(trial), np.uint8)
        same = (acc == golden.acc[image]).all(axis=1)
        rows["digest"][same] = self.golden.digests[image[same]]
        changed = np.flatnonzero(~same)
        rows["digest"][changed] = tensor_digest(acc[changed])
        scale = self.placement.program.ops[-1].multiplier
        known = golden.acc[image]
        hung = (acc == P.HUNG).any(axis=1)
        classes = np.where(hung, -1, classes)
        rows["faulty"] = classes
        failed = None
        if self.critical != DEFAULT:
            outputs = (x.astype(np.float32) * scale for x in (known, acc))
            failed = judge(self.critical, *outputs, golden.labels[image])
        outcome[...] = classify(
            known, acc, golden.top1[image], classes, critical=failed, hung=hung
        )
        rows["outcome"] = outcome
        return rows


def way_of(evaluator: Evaluator) -> tuple[str, str | None]:
    """How single transient faults are evaluated, in words, and why not as differences."""
    if evaluator.whole:
        return "whole inferences", None
    if evaluator.golden.refusal:
        return "whole maps from the struck layer on", evaluator.golden.refusal
    return "differences from the struck layer on", None


def _changes(layer: int, image, out, golden) -> Changes:
    """What differs between codes and the golden ones, (f, ...) both."""
    out, golden = (codes.reshape(len(image), -1) for codes in (out, golden))
    number, index = np.nonzero(out != golden)
    begin = np.searchsorted(number, np.arange(len(image) + 1))
    op = np.full(len(image), layer, np.int64)
    return Changes(image, op, begin, index, out[number, index].astype(np.int32))


def _joined(parts: list[tuple[np.ndarray, Changes]]) -> tuple[np.ndarray, Changes]:
    """Changes of several groups of faults one after another, and which faults they are of."""
    sizes = np.concatenate([np.diff(c.begin) for _, c in parts])
    begin = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=begin[1:])
    columns = (
        np.concatenate([getattr(c, name) for _, c in parts])
        for name in ("image", "op", "index", "code")
    )
    image, op, index, code = columns
    return np.concatenate([n for n, _ in parts]), Changes(image, op, begin, index, code)


def _some(changes: Changes, which: np.ndarray) -> Changes:
    """Those of some faults, which between them have all the changes."""
    begin = np.append(changes.begin[which], changes.begin[-1])
    return Changes(changes.image[which], changes.op[which], begin, changes.index, changes.code)


"""Products without faults: integers where nothing overflows, the declared rule where it does."""

from __future__ import annotations

from itertools import product

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.accel_models.families import family
from fsim.accel_models.load import load_accel
from fsim.simulator.crosscheck import random_table
from fsim.simulator.gemm import gemm, overflow_free
from fsim.simulator.reference import NO_FAULTS
from fsim.simulator.runners import RUNNERS, table_rows

from .difference import in_words, same
from .machine import Machine, backends, elements, ends, operands, plain, preset_names

SHAPES = ((1, 1, 1), (3, 3, 3), (2, 5, 3), (5, 4, 2))
"""(m, k, n): one element, sizes that are no multiples of the array, several tiles and folds."""

LONG = (3, 13, 4)
"""(m, k, n) whose sums of extreme products overflow 8 bits, in the middle and at the end."""


def clean_products(machine: Machine) -> None:
    """Without overflow: the reference and `fsim.gemm` are integer arithmetic."""
    accel = machine.accel()
    for number, shape in enumerate(SHAPES):
        for peak in (None, 2):
            a, b, d = operands(accel, shape, number, peak)
            got = _agree(accel, a, b, d, f"without faults, (m,k,n) = {shape}")
            bare = accel.cycle.run(accel, a, b, None, NO_FAULTS)[0]
            zeros = accel.cycle.run(accel, a, b, np.zeros_like(d), NO_FAULTS)[0]
            same(zeros, bare, f"the reference without a bias, (m,k,n) = {shape}")
            again = accel.cycle.run(accel, a, b, d, NO_FAULTS)[0]
            same(got, again, f"the reference, run again, (m,k,n) = {shape}", "the first time")


def overflowing_products(machine: Machine) -> None:
    """Beyond acc_bits sums wrap or saturate, as FAMILY and the description say."""
    for rule in family(machine.name).overflow:
        accel = machine.accel(overflow=rule, acc_bits=8)
        label = f"overflow {rule}, {accel.acc_bits}-bit sums"
        low, high = ends(accel.operand_bits)
        least, most = ends(accel.acc_bits)
        m, k, n = LONG
        for y, bias in product((low, high), (False, True)):
            # All summands have one sign, so that their order does not matter.
            a, b = np.full((m, k), low), np.full((k, n), y)
            d = np.full((m, n), (most if y < 0 else least) if bias else 0)
            _agree(accel, a, b, d, f"{label}, a {low}, b {y}, bias {d[0, 0]}")
        for seed in range(8):
            rng = np.random.default_rng([19, seed])
            a, b = rng.choice([low, high], (m, k)), rng.choice([low, high], (k, n))
            d = rng.integers(least, most + 1, (m, n))
            _agree(accel, a, b, d, f"{label}, random ends of the words")
            _faulty(accel, rng, a, b, d, label)


def every_preset(machine: Machine) -> None:
    """Each preset with widths, rule and parameters of its own, on a part of its array."""
    for preset in preset_names(machine.name):
        whole = load_accel(preset, machine.flow)
        size = {"rows": min(whole.rows, machine.rows), "cols": min(whole.cols, machine.cols)}
        accel = load_accel(preset, machine.flow, size)
        for seed in range(4):
            rng = np.random.default_rng([23, seed])
            shape = (5, 2 * accel.rows + 1, 2 * accel.cols + 1)
            a, b, d = operands(accel, shape, seed)
            _agree(accel, a, b, d, f"preset {preset}, (m,k,n) = {shape}")
            _faulty(accel, rng, a, b, d, f"preset {preset}")


def unsigned_activations(machine: Machine) -> None:
    """Activations of an unsigned dtype, up to the largest code, with faults and without."""
    accel = machine.accel(unsigned_acts=True)
    for seed in range(30):
        rng = np.random.default_rng([29, seed])
        m, k, n = (int(x) for x in rng.integers(1, 6, 3))
        a = rng.integers(0, 1 << accel.operand_bits, (m, k)).astype(np.uint16)
        a[0, 0] = (1 << accel.operand_bits) - 1
        _, b, d = operands(accel, (m, k, n), seed)
        label = f"unsigned activations, (m,k,n) = {(m, k, n)}"
        wanted = gemm(a, b, d, accel=accel, backend="reference").out
        same(wanted, gemm(a, b, d, accel=accel).out, f"{label}, fsim.gemm")
        if plain(accel) and accel.overflow == "wrap":
            same(_declared(accel, a, b, d), wanted, f"{label}, the reference", "by integers")
        cycles = accel.schedule.cycles(accel, m, k, n)
        for backend in backends(accel):
            claims = [i for i, c in elements(accel) if backend in c.backends]
            table = random_table(rng, accel, claims, cycles, int(rng.integers(1, 4)))
            rows = table_rows(table)
            wanted, got = (
                gemm(a, b, d, accel=accel, faults=rows, backend=which).out
                for which in ("reference", backend)
            )
            same(wanted, got, f"{label}, {backend}, {in_words(accel, table)}")


def _agree(accel: Accel, a, b, d, what: str) -> np.ndarray:
    """The reference's product, which must be that of `fsim.gemm` and of arithmetic."""
    got = accel.cycle.run(accel, a, b, d, NO_FAULTS)[0]
    if overflow_free(accel, a, b, d) or (plain(accel) and _one_sign(a, b, d)):
        same(_declared(accel, a, b, d), got, f"the reference, {what}",
             f"by integers that {accel.overflow}")  # fmt: skip
    same(got, gemm(a, b, d, accel=accel).out, f"fsim.gemm, {what}")
    return got


def _declared(accel: Accel, a, b, d) -> np.ndarray:
    """a b + d by integers, with the overflow rule applied once, at the end.

    The machine's result if sums wrap, or if nothing saturates on the way that would come
    back: where all summands have one sign, or nothing overflows.
    """
    exact = a.astype(np.int64) @ b + d
    least, most = ends(accel.acc_bits)
    if accel.overflow == "saturate":
        return np.clip(exact, least, most)
    return (exact - least) % (1 << accel.acc_bits) + least


def _one_sign(a, b, d) -> bool:
    every = np.concatenate([(a[:, :, None] * b[None]).ravel(), d.ravel()])
    return bool((every >= 0).all() or (every <= 0).all())


def _faulty(accel: Accel, rng, a, b, d, label: str) -> None:
    """Some random faults: each backend gives what the reference gives."""
    cycles = accel.schedule.cycles(accel, *a.shape, b.shape[1])
    for backend in backends(accel):
        claims = [i for i, c in elements(accel) if backend in c.backends]
        for _ in range(4):
            table = random_table(rng, accel, claims, cycles, int(rng.integers(1, 4)))
            wanted = accel.cycle.run(accel, a, b, d, table)[0]
            got = RUNNERS[backend](accel, a, b, d, table)[0]
            same(wanted, got, f"{label}, {backend}, {in_words(accel, table)}")

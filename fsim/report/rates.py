"""Sections on many faults at once: numbers of flips, bit error rates, chips."""

from __future__ import annotations

from . import charts
from .markup import Html, el, join, plain, table
from .section import MOST_ROWS, Section
from .words import bounds, count, estimate, number, percent


def flips(s: Section) -> Html | None:
    rows = s.numbers["flips"]
    if not rows:
        return None
    drawn = charts.lines(
        s.named("flips"), "Outcomes by number of flips", [row["flips"] for row in rows],
        [("critical", "critical SDC", [row["sdc_critical"] for row in rows]),
         ("masked", "masked", [row["masked"] for row in rows])],
        x_name="bit flips in an inference", y_name="share of inferences", files=s.files,
    )  # fmt: skip
    behind = table(
        ["flips", "trials", "critical SDC", "interval", "masked", "interval "],
        [[row["flips"], count(row["trials"]), estimate(row["sdc_critical"]),
          bounds(row["sdc_critical"]), estimate(row["masked"]), bounds(row["masked"])]
         for row in rows[:MOST_ROWS]],
        right=["flips", "trials", "critical SDC", "interval", "masked", "interval "],
        caption="Outcomes by number of flips",
    )  # fmt: skip
    return s.show(drawn, "Bands: intervals of each number of flips by itself.", behind)


COVERED = 0.99
"""Chance, at a rate, of a number of flips that was sampled; points with less are dotted."""

SHOWN = 0.5
"""Points with less are in the tables alone."""


def rates(s: Section) -> Html | None:
    found = s.numbers["curve"]
    if found is None:
        return None
    if "why_not" in found:
        return el("p", "No curve: ", plain(found["why_not"], 400))
    shown = [at for at, mass in enumerate(found["covered"]) if mass >= SHOWN]
    if not shown:
        return el("p", "No curve: at no rate were the numbers of flips that it causes sampled.")
    faded = [found["covered"][at] < COVERED for at in shown]
    some = {key: [found[key][at] for at in shown] for key in ("ber", "accuracy", "critical")}
    clean = s.numbers["summary"]["accuracy"]["clean"]
    top = charts.lines(
        s.named("accuracy-ber"), "Accuracy against bit error rate", some["ber"],
        [("good", "accuracy", some["accuracy"])], x_name="bit error rate", y_name="accuracy",
        log=True, level=(f"without faults {percent(clean, 4)}", clean), faded=faded,
        from_zero=False, files=s.files,
    )  # fmt: skip
    low = charts.lines(
        s.named("critical-ber"), "Critical SDC against bit error rate", some["ber"],
        [("critical", "critical SDC", some["critical"])], x_name="bit error rate",
        y_name="share of inferences", log=True, faded=faded, files=s.files,
    )  # fmt: skip
    behind = table(
        ["bit error rate", "accuracy", "interval", "critical SDC", "interval ", "covered"],
        [[number(b), estimate(a), bounds(a), estimate(c), bounds(c), percent(m, 4)]
         for b, a, c, m in zip(*(found[k] for k in ("ber", "accuracy", "critical", "covered")))],
        right=["bit error rate", "accuracy", "interval", "critical SDC", "interval ", "covered"],
        caption="Accuracy and critical SDC by bit error rate",
    )  # fmt: skip
    text = (
        f"Probability per bit and residency, {count(found['bits'])} bits of an inference. Dotted: "
        f"less than {percent(COVERED, 2)} of the inferences at this rate have a number of flips "
        "that was sampled; the bands allow for the others."
    )
    return join([
        el("div", s.show(top, text), s.show(low, "Bands: intervals at each rate."), class_="pair"),
        el("details", el("summary", "The numbers by bit error rate"), behind),
    ])  # fmt: skip


def chips(s: Section) -> Html | None:
    found = s.numbers["chips"]
    if found is None:
        return None
    if "why_not" in found:
        return el("p", "No distribution over chips: ", plain(found["why_not"], 400))
    if not found["accuracy"]:
        return None
    drawn = charts.chip_steps(
        s.named("chips"), "Accuracy over chips", found["accuracy"], found["clean"], s.files
    )
    low, mean = found["quantile"], s.numbers["accuracy"]
    rows = [
        ["mean", estimate(mean), bounds(mean)],
        ["median", percent(found["median"], 4), "–"],
        [f"quantile {number(low['q'])}", percent(low["estimate"], 4), bounds(low)],
        ["worst", percent(found["worst"], 4), "–"],
    ]
    missing = None
    if low["low"] is None or low["high"] is None:
        missing = el(
            "p", f"Both limits of this quantile take {charts.plural_chips(found['chips_needed'])}.",
            class_="soft",
        )  # fmt: skip
    return el(
        "div",
        s.show(
            drawn,
            "One step a chip, each with a fault map of its own that all images meet. What differs "
            "between chips does not shrink with more images.",
            table(["chip", "accuracy"],
                  [[at, percent(a, 4)] for at, a in enumerate(found["accuracy"][:MOST_ROWS])],
                  right=["chip", "accuracy"], caption="Accuracy of each chip"),
        ),
        el("div",
           table(["accuracy", "estimate", "interval"], rows, right=["estimate", "interval"],
                 caption=f"Accuracy over {charts.plural_chips(found['chips'])}"),
           missing),
        class_="pair",
    )  # fmt: skip

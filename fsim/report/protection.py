"""The section on what to protect."""

from __future__ import annotations

from . import charts
from .markup import Html, el, plain, table
from .section import Section
from .words import METRICS, bounds, count, estimate, percent, share

_RANKED = 15  # groups that a page lists


def protect(s: Section) -> Html | None:
    found = s.numbers["protect"]
    if found is None:
        return None
    if "why_not" in found:
        return el("p", "No order of protection: ", plain(found["why_not"], 400))
    steps, ranking = found["steps"], found["ranking"]
    metric = METRICS[found["metric"]]
    if not found["unprotected"]["estimate"]:
        return el("p", f"No order of protection: no {metric} in the half of the trials that "
                       "judges it.")  # fmt: skip
    ranking = [row for row in ranking if row["events"]]
    made = []
    if len(steps) > 1:
        x = [100 * step["share_of_bits"] for step in steps]
        drawn = charts.lines(
            s.named("protect"), f"What is left of {metric} when bits are protected", x,
            [("critical", f"{metric} left", [step["residual"] for step in steps])],
            x_name="bits protected, % of all, the worst first", y_name=f"{metric}, all faults",
            level=(f"nothing protected {estimate(found['unprotected'])}",
                   found["unprotected"]["estimate"]), files=s.files,
        )  # fmt: skip
        made.append(s.show(
            drawn, _protect_text(found),
            table(["bits protected", "groups", f"{metric} left", "interval"],
                  [[percent(st["share_of_bits"]), count(st["groups"]),
                    estimate(st["residual"]), bounds(st["residual"])]
                   for st in steps],
                  right=["bits protected", "groups", f"{metric} left", "interval"],
                  caption="What is left"),
        ))  # fmt: skip
    by = found["by"]
    made.append(el("div", table(
        [*by, "of bits", "trials", "events", metric, "interval"],
        [[*(plain(row[axis], 60) for axis in by), percent(row["share"]), count(row["trials"]),
          count(row["events"]), *_ranked_rate(row["rate"])] for row in ranking[:_RANKED]],
        right=[*(a for a in by if a == "bit"), "of bits", "trials", "events", metric, "interval"],
        caption=f"What to protect first: {min(_RANKED, len(ranking))} of {count(len(ranking))} "
                "groups with events",
    )))  # fmt: skip
    return el("div", made, class_="pair")


def _ranked_rate(found: dict | None) -> tuple[str, str]:
    """Rate and interval of a group; None where a fault met several images."""
    return ("–", "–") if found is None else (estimate(found), bounds(found))


def _protect_text(found: dict) -> str:
    """How far protecting a little goes."""
    text = (
        f"Groups by {', '.join(found['by'])}, the worst first; a protected bit is taken never to "
        "fail. Half of the trials made the order, the other half judge it."
    )
    for step in found["steps"]:
        if step["residual"]["high"] < found["unprotected"]["low"]:
            return text + (
                f" The first step whose interval lies below that of no protection is "
                f"{percent(step['share_of_bits'])} of the bits: {share(step['residual'])} is left "
                f"of {share(found['unprotected'])}."
            )
    return text + " The interval of no step lies below that of no protection: events are too few."

"""The whole page: one file that loads nothing, for one campaign or for several side by side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files as resources

from . import charts
from .markup import Html, el, join, plain, table
from .palette import DARK, LIGHT, variables
from .pictures import Picture, style
from .section import Section, figure
from .sections import sections
from .summary import cautions, headline, parts
from .words import METRICS, bounds, count, estimate, number, percent, share

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser may do for the page beyond showing it: nothing, no script either."""


@dataclass(frozen=True)
class Page:
    """A finished page and its pictures."""

    html: str
    pictures: list[Picture]


@cache
def style_sheet() -> str:
    """Colours for light and dark, and the style of everything within class fsim."""
    rules = resources(__package__).joinpath("style.css").read_text("utf-8")
    return (
        f".fsim{{{variables(LIGHT)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{.fsim{{{variables(DARK)}}}}}\n{rules}"
    )


def page(numbers: dict, *, files: bool = True) -> Page:
    """The page of `numbers.report_numbers`.

    files  whether its pictures are needed as files as well
    """
    campaigns, pictures = numbers["campaigns"], []
    several = len(campaigns) > 1
    body, contents = [], []
    with style():
        if several:
            contents.append(el("li", el("a", "All campaigns", href="#all")))
            body.append(el("section", el("h2", "All campaigns", id="all"),
                           _overview(numbers, pictures, files)))  # fmt: skip
        for at, one in enumerate(campaigns, 1):
            tag = f"c{at}"
            s = Section(one, f"{at}-" if several else "", files)
            inside, items = [headline(one), cautions(one)], []
            for name, title, content in sections(s):
                items.append(el("li", el("a", title, href=f"#{tag}-{name}")))
                inside.append(el("section", el("h3", title, id=f"{tag}-{name}"), content))
            pictures += s.pictures
            title = f"{at}. {plain(one['name'], 120)}" if several else "Results"
            body.append(el("section", el("h2", title, id=tag), inside))
            if several:
                contents.append(el("li", el("a", title, href=f"#{tag}")))
            else:
                contents += items
            if several:
                inside.insert(0, None)
                body[-1] = el(
                    "section", el("h2", title, id=tag),
                    el("nav", el("ol", items), aria_label=title), inside,
                )  # fmt: skip
    title = plain(numbers["title"], 200)
    whole = [
        el("header", el("h1", title), el("p", _lead(numbers), class_="lead"),
           el("nav", el("ol", contents), aria_label="Contents")),
        el("main", body),
        el("footer", el("p", _footer(numbers))),
    ]  # fmt: skip
    html = join([
        Html("<!DOCTYPE html>\n"),
        el("html",
           el("head", el("meta", charset="utf-8"),
              el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
              el("meta", name="viewport", content="width=device-width, initial-scale=1"),
              el("meta", name="color-scheme", content="light dark"),
              el("meta", name="generator", content=f"fsim {plain(numbers['fsim'])}"),
              el("title", title), el("style", Html(style_sheet()))),
           el("body", whole, class_="fsim"), lang="en"),
        Html("\n"),
    ])  # fmt: skip
    return Page(str(html), pictures)


def _lead(numbers: dict) -> str:
    """What the page is about, in a line."""
    told = [one["summary"] for one in numbers["campaigns"]]
    trials = sum(one["trials"] for one in told)
    models = list(dict.fromkeys(plain(one["model"], 60) for one in told))
    machines = list(dict.fromkeys(plain(one["accel"], 60) for one in told))
    return (
        f"{count(trials)} trials on {', '.join(machines[:4])} running {', '.join(models[:4])}. "
        "Every share is an estimate with its interval; nothing unmeasured is shown as zero."
    )


def _footer(numbers: dict) -> str:
    return (
        f"Made by fsim {plain(numbers['fsim'])} from the files named above, whose trials, faults "
        "and digests are in the open format fsim-trace 1. The page is one file and loads nothing."
    )


def _overview(numbers: dict, pictures: list[Picture], files: bool) -> Html:
    """Several campaigns in one table and side by side."""
    campaigns = numbers["campaigns"]
    rows = []
    for at, one in enumerate(campaigns, 1):
        told = one["summary"]
        by = {row["outcome"]: row for row in one["outcomes"] or ()}
        critical = by.get("sdc_critical")
        rows.append([
            el("a", f"{at}. {plain(one['name'], 80)}", href=f"#c{at}"), plain(told["model"], 60),
            plain(told["accel"], 60), plain(told["faults"].get("kind", "")), count(told["trials"]),
            estimate(critical["share"]) if critical else "depends on a rate",
            bounds(critical["share"]) if critical else "–",
            percent(told["accuracy"]["clean"], 4),
            share(one["accuracy"]) if one["accuracy"] else "depends on a rate",
        ])  # fmt: skip
    head = ["campaign", "network", "accelerator", "faults", "trials", "critical SDC", "interval",
            "accuracy", "with faults"]  # fmt: skip
    made = [table(head, rows, right=head[4:], caption="Campaigns")]
    shown = [one for one in campaigns if one["outcomes"]]
    if shown:
        shares = [(one["name"], parts(one["outcomes"])) for one in shown]
        bars = charts.outcome_bars("all-outcomes", "Outcomes", shares, files)
        dots = charts.forest(
            "all-critical", "Critical SDC", [
                (one["name"], row["share"], one["summary"]["trials"])
                for one in shown for row in one["outcomes"] if row["outcome"] == "sdc_critical"
            ], metric="sdc_critical", files=files,
        )  # fmt: skip
        pictures += [bars, dots]
        made.append(el(
            "div", figure(bars, "Shares of all inferences, as estimated for each population."),
            figure(dots, "Campaigns of other faults answer other questions: compare what has the "
                         "same population."), class_="pair",
        ))  # fmt: skip
    if numbers["comparisons"]:
        made.append(el("h3", "Differences from the first campaign"))
        made.append(_comparisons(numbers["comparisons"]))
    return join(made)


def _comparisons(found: list[dict]) -> Html:
    rows, notes = [], []
    for one in found:
        name = plain(one["name"], 80)
        if "cannot" in one:
            rows.append([name, "–", "–", "–", "–", "–"])
            notes.append(f"{name}: {plain(one['cannot'], 300)}")
            continue
        difference = one["difference"]
        rows.append([
            name, METRICS.get(one["metric"], one["metric"]), _points(difference["estimate"]),
            f"{_points(difference['low'])} to {_points(difference['high'])}",
            f"yes, {count(one['pairs'])}: {count(one['only_this'])} only here, "
            f"{count(one['only_that'])} only there" if one["paired"] else "no",
            "–" if one["p_value"] is None else f"{number(one['p_value'])} (McNemar, exact)",
        ])  # fmt: skip
        if not one["paired"]:
            notes.append(f"{name}: not paired with the first, as {plain(one['why_not'], 300)}")
    head = ["campaign", "metric", "difference from it, points", "interval", "paired", "p"]
    return join([
        table(head, rows, right=head[2:4], caption=f"Against {plain(found[0]['with'], 80)}"),
        el("ul", [el("li", note) for note in notes], class_="soft") if notes else None,
    ])  # fmt: skip


def _points(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:+.3f}"


def fragment(numbers: dict) -> str:
    """A short form of one campaign's page for a notebook: no files, everything inline."""
    one = numbers["campaigns"][0]
    s = Section(one, files=False)
    told = one["summary"]
    with style():
        kept = [(title, content) for name, title, content in sections(s)
                if name in ("outcomes", "where", "flips", "rates", "chips")]  # fmt: skip
    return str(el(
        "div", el("style", Html(style_sheet())),
        el("p", el("strong", plain(numbers["title"], 200)), f": {plain(told['file'], 200)}, "
           f"{count(told['trials'])} trials"),
        headline(one), cautions(one),
        [el("details", el("summary", title), content) for title, content in kept],
        class_="fsim",
    ))  # fmt: skip

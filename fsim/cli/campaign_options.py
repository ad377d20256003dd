"""The options of `fsim campaign` and the YAML file that may hold them."""

from __future__ import annotations

import difflib
import math
from pathlib import Path

import click

from fsim.cli.network_options import network_options, stuck_options
from fsim.cli.options import Probability, accel_options
from fsim.errors import ConfigError

MAX_PLAN_BYTES = 1 << 20
MAX_TRIALS = 10_000_000
LISTS = ("sites", "layers", "stratify", "flips")
"""Options whose value in a file may be a list."""
KINDS = ("flip", "seu", "mbu", "transient", "intermittent", "stuck0", "stuck1")
METRICS = ("masked", "corrected", "sdc", "sdc_benign", "sdc_critical", "due")


def _loader():
    """YAML's safe loader, for which two equal keys are an error: it would keep the last."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for i, key in enumerate(keys):
                if key in keys[:i]:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key!r} twice", node.start_mark
                    )
            return super().construct_mapping(node, deep)

    return Loader


def read_plan(ctx: click.Context, param, path: Path | None) -> Path | None:
    """Make the keys of a YAML file the defaults of the command's options."""
    if path is None:
        return None
    import yaml

    if not path.is_file():
        raise ConfigError(f"a campaign's file must exist, got {path}")
    if path.stat().st_size > MAX_PLAN_BYTES:
        raise ConfigError(f"a campaign's file must be under 1 MiB ({path})")
    try:
        value = yaml.load(path.read_text("utf-8"), _loader())
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        # ValueError and LookupError: YAML's own of dates and numbers that are none.
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error) or type(error).__name__
        said += f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"a campaign's file must be YAML, got {said} ({path})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"a campaign's file must hold option: value lines ({path})")
    known = {}
    for option in ctx.command.params:
        if isinstance(option, click.Option):
            names = [n.lstrip("-") for n in option.opts]
            known.update(dict.fromkeys([*names, *(n.replace("-", "_") for n in names)], option))
    found = {}
    for key, given in value.items():
        if key not in known or not isinstance(key, str):
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{path} must name options of fsim campaign, got {key!r}{hint}")
        option = known[key]
        if option.name in found:
            raise ConfigError(f"{path} must give each option once, got {key} twice")
        nested = isinstance(given, list) and any(isinstance(x, (list, dict)) for x in given)
        if nested or isinstance(given, (dict, type(None))):
            kind = "nothing" if given is None else "a nested value"
            raise ConfigError(f"{path}: {key} must have a value, got {kind}")
        found[option.name] = _value(option, given, key, path)
    ctx.default_map = found
    return path


def _value(option: click.Option, given, key: str, path: Path):
    """A value of the file as click takes it from a command line."""
    if option.is_flag:
        if not isinstance(given, bool):
            raise ConfigError(f"{path}: {key} must be true or false, got {given!r}")
        return given
    if option.multiple:
        return [str(item) for item in given] if isinstance(given, list) else [str(given)]
    if isinstance(given, bool):
        raise ConfigError(f"{path}: {key} must be a value, got {str(given).lower()}")
    if isinstance(given, list):
        if option.name not in LISTS:
            raise ConfigError(f"{path}: {key} must be one value, got a list")
        return ",".join(map(str, given))
    return str(given)


def campaign_options(command):
    """Every option of the command, in groups that belong together."""
    for option in reversed((
        click.argument("plan", required=False, type=click.Path(path_type=Path), is_eager=True,
                       callback=read_plan),
        click.option("--accel", default="systolic", show_default=True, metavar="NAME|FILE",
                     help="A preset (fsim accel list) or a .yaml or .toml file."),
        accel_options(given=False),
        network_options,
        click.option("--fault", default="seu", show_default=True, metavar="NAME",
                     help="One fault a trial: flip (a bit of a stored word), seu or mbu "
                     "(registers), transient (a product net), intermittent, stuck0, stuck1; or a "
                     "model with parameters: mcu,shapes=2x2 (fsim faults --models)."),
        click.option("--faults", "fault_list", type=click.Path(path_type=Path), metavar="FILE",
                     help="These faults instead: a .csv of fsim trace export, or a campaign."),
        click.option("--flips", metavar="1-64|1,2,4", help="So many bit flips an inference, each "
                     "number a stratum: what fsim curve needs."),
        click.option("--chips", type=click.IntRange(1, 1 << 24),
                     help="So many chips with fixed fault maps, of --stuck-cells, --ber or a "
                     "--fault that lasts (sram-voltage, retention, link,kind=stuck1)."),
        stuck_options,
        click.option("--ber", type=Probability, metavar="P", help="With --chips: probability that "
                     "a bit of a stored weight is wrong, the same for all images."),
        click.option("--sites", help="Only these components, comma separated (fsim sites)."),
        click.option("--layers", help="Only these layers, comma separated."),
        click.option("--stratify", metavar="AXES", help="Strata: of layer, component and bit "
                     "those named, comma separated."),
        click.option("--images-per-fault", metavar="K|all", help="Images that each fault meets; "
                     "the fault is then the unit of statistics.  [default: 1; stuck: all]"),
        click.option("--trials", type=click.IntRange(1, 1 << 40),
                     help="Stop after so many faults."),
        click.option("--margin", type=float, metavar="E", help="Stop after the sample size of DATE "
                     "2009 for this margin of error; with strata, in each.  [default: 0.01]"),
        click.option("--t", "t_value", type=float, help="With --margin: normal quantile.  "
                     "[default: exact for --confidence]"),
        click.option("--p", "p_value", type=float, help="With --margin: expected share.  [default: "
                     "0.5, the worst case]"),
        click.option("--rounding", type=click.Choice(["ceil", "nearest"]), default="ceil",
                     show_default=True, help="With --margin: of the sample size."),
        click.option("--exhaustive", is_flag=True, help="Every fault with every image."),
        click.option("--failures", type=click.IntRange(1, 1 << 40), metavar="K",
                     help="Stop at the K-th event."),
        click.option("--target-halfwidth", type=float, metavar="W",
                     help="Stop when half the interval is no wider than this."),
        click.option("--threshold", type=Probability, metavar="P",
                     help="Stop when it is certain whether the share is above or below this."),
        click.option("--max-trials", type=click.IntRange(1, 1 << 40),
                     help="Stop the last three here in any case.  [default: 10000000]"),
        click.option("--metric", type=click.Choice(METRICS), default="sdc_critical",
                     show_default=True, help="The event that stopping rules look at."),
        click.option("--critical", default="top1", show_default=True, metavar="NAME",
                     help="Which wrong answers are critical: top1 (the class changes), top5 (it "
                     "is not among the first five), wrong (it was right), or a plug-in's."),
        click.option("--confidence", type=float, default=0.95, show_default=True,
                     help="Of all intervals."),
        click.option("--pilot", type=click.IntRange(2, 1 << 30), help="With --stratify: faults of "
                     "each stratum before the others go where they narrow the interval most.  "
                     "[default: 30]"),
        click.option("--way", type=click.Choice(["auto", "differences", "whole"]), default="auto",
                     show_default=True, help="Carry differences from the struck layer on, or run "
                     "whole inferences; the outcomes are the same."),
        click.option("--memory", type=click.IntRange(1, 1 << 20), default=2048, show_default=True,
                     metavar="MIB", help="For fault-free codes kept between faults."),
        click.option("--engine", type=click.Choice(["serial", "loky", "dask"]), default="serial",
                     show_default=True, help="Threads of this process, processes, or a cluster."),
        click.option("--workers", type=click.IntRange(1, 4096), help="Processes of --engine loky.  "
                     "[default: CPUs]"),
        click.option("--scheduler", metavar="ADDRESS", help="Of --engine dask: tcp://host:port."),
        click.option("--shard", metavar="K/N", help="Only part K of N, for batch queues; fsim "
                     "merge joins the files."),
        click.option("--shard-size", type=click.IntRange(1, 1 << 24), metavar="FAULTS",
                     help="Faults of a shard, what a kill costs at most.  [default: 2048 "
                     "inferences]"),
        click.option("--out", type=click.Path(path_type=Path), default="campaign.h5",
                     show_default=True, help="File of all faults and outcomes."),
        click.option("--resume", is_flag=True, help="Go on with an unfinished --out."),
        click.option("--overwrite", is_flag=True, help="Replace an existing --out."),
        click.option("--baseline", type=click.Path(path_type=Path), metavar="FILE",
                     help="An earlier campaign to compare with."),
        click.option("--fail-if", "fail_if", multiple=True, metavar="CONDITION",
                     help="End with exit code 4 if this holds: 'sdc_critical > 0.01', 'sdc.low > "
                     "baseline'. May be repeated."),
        click.option("--dry-run", is_flag=True, help="What would be done, and nothing more."),
        click.option("--quiet", is_flag=True, help="No progress."),
    )):  # fmt: skip
        command = option(command)
    return command


def part_of(text: str | None) -> tuple[int, int] | None:
    """`2/8` as (2, 8)."""
    if text is None:
        return None
    k, _, n = text.partition("/")
    numbers = text.isascii() and k.isdecimal() and n.isdecimal() and len(n) < 8
    if not (numbers and 1 <= int(k) <= int(n)):
        raise ConfigError(f"--shard must be K/N with 1 <= K <= N, got {text[:40]!r}")
    return int(k), int(n)


MAX_STRATA_OF_FLIPS = 4096


def flips_of(text: str | None) -> tuple[int, ...]:
    """`1-4,8,16` as (1, 2, 3, 4, 8, 16)."""
    if text is None:
        return ()
    found: list[int] = []
    for piece in text.split(","):
        first, dash, last = (part.strip() for part in piece.partition("-"))
        last = last if dash else first
        good = text.isascii() and all(n.isdecimal() and len(n) < 10 for n in (first, last))
        if not good or not 1 <= int(first) <= int(last):
            raise ConfigError(
                f"--flips must be numbers and ranges like 1-16,32,64, got {text[:60]!r}"
            )
        if int(last) - int(first) >= MAX_STRATA_OF_FLIPS:
            raise ConfigError(f"--flips must name at most {MAX_STRATA_OF_FLIPS} numbers")
        found += range(int(first), int(last) + 1)
    if len(found) > MAX_STRATA_OF_FLIPS or sorted(set(found)) != found:
        raise ConfigError(
            f"--flips must rise, name each number once and at most {MAX_STRATA_OF_FLIPS}, "
            f"got {text[:60]!r}"
        )
    return tuple(found)


def fault_of(text: str):
    """(design, "faults" of the task, fault model) of --fault; no model for `flip`."""
    from fsim.fault_models import families

    if text == "flip":
        return "single", {"kind": "flip"}, None
    if text in KINDS:
        from fsim.fault_models.upsets import SingleFault

        return "single", {"kind": text}, SingleFault(text)
    from fsim.campaign.campaign import design_for

    name, values = families.parse_family(text)
    if name not in families.family_names():
        from fsim.parse import nearest

        known = (*KINDS, *families.family_names())
        raise ConfigError(
            f"--fault must be a kind or a model of faults: {text[:60]!r} is not one of "
            f"{', '.join(known)}{nearest(name, known)}"
        )
    model = families.make_family(name, values)
    return design_for(model), families.described(model), model


def each_of(text: str | None, permanent: bool, images: int) -> int | None:
    """--images-per-fault as in Frame: None for one.

    permanent  the fault is a defect of the machine: it meets all images, or several
    """
    if text is None:
        return images if permanent else None
    if text == "all":
        return images
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or not 1 <= int(text) <= images:
        raise ConfigError(f"--images-per-fault must be 1 to {images} or all, got {text[:40]!r}")
    if int(text) == 1 and not permanent:
        return None
    return int(text)


def rule_of(given: dict) -> dict:
    """The stopping rule that the options state, as JSON values of `Rule`.

    given  values of trials, margin, exhaustive, failures, target_halfwidth, threshold,
           metric, confidence, max_trials
    """
    names = ("trials", "margin", "exhaustive", "failures", "target_halfwidth", "threshold")
    chosen = [name for name in names if given[name] is not None and given[name] is not False]
    if len(chosen) > 1:
        raise ConfigError(
            "one rule must stop a campaign, got "
            + " and ".join("--" + name.replace("_", "-") for name in chosen)
        )
    name = chosen[0] if chosen else "margin"
    for option in ("margin", "target_halfwidth", "confidence"):
        value = given[option]
        if value is not None and not (math.isfinite(value) and 0 < value < 1):
            raise ConfigError(
                f"--{option.replace('_', '-')} must lie strictly between 0 and 1, got {value!r}"
            )
    if given["confidence"] > 1 - 1e-9 or given["confidence"] < 1e-9:
        raise ConfigError(
            f"--confidence must be at most 1 - 1e-9 and at least 1e-9, got {given['confidence']!r}"
        )
    if name == "threshold" and not 0 < given["threshold"] < 1:
        raise ConfigError("--threshold must lie strictly between 0 and 1")
    rule = {"failures": "failures", "target_halfwidth": "width", "threshold": "threshold"}.get(
        name, "fixed"
    )
    value = 0 if rule == "fixed" else given[name]
    if rule == "fixed" and given["max_trials"] is not None:
        raise ConfigError(
            "--max-trials belongs to --failures, --target-halfwidth and --threshold: "
            f"the faults of --{name} are known before"
        )
    most = given["trials"] if name == "trials" else given["max_trials"] or MAX_TRIALS
    return {
        "name": rule, "metric": given["metric"], "value": value,
        "confidence": given["confidence"], "most": most,
    }  # fmt: skip

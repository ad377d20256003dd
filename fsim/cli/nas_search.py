"""`fsim nas search` and `fsim nas derive`: find a genotype."""

from __future__ import annotations

import time
from pathlib import Path

import click

from fsim.cli.fault_backend import DEVICES, device_of, faults_of
from fsim.cli.nas_options import COMMON, DATA, FAULTS, bar, progress, train_options
from fsim.cli.tables import print_json, table
from fsim.errors import ConfigError
from fsim.threads import use_threads

SAMPLES = 8
COVERED = (
    "on the array: convolutions and linear layers; not on it, in float and without faults: "
    "pooling, sums, skips, batch normalisation"
)
SPACE = ("primitives", "layout", "steps", "init_channels")


@train_options(*FAULTS, *(name for name in DATA if name != "test_images"), *COMMON)
@click.command(epilog=DEVICES)
@click.option("--method", type=click.Choice(["rl", "evolution", "random", "multi"]), default="rl",
              show_default=True, help="LSTM controller, regularised evolution, uniform sampling, "
              "or several objectives (Optuna).")  # fmt: skip
@click.option("--preset", type=click.Choice(["default", "paper"]), default="default",
              show_default=True, help="A small space, or the paper's search.")  # fmt: skip
@click.option("--alpha-l", type=click.FloatRange(0, 1), help="Of the faulty loss.  [default: 0.5]")
@click.option(
    "--alpha-r", type=click.FloatRange(0, 1), help="Of the faulty reward.  [default: 0.5]"
)
@click.option("--epochs", type=click.IntRange(1), help="In place of the preset's.")
@click.option("--batch", type=click.IntRange(2), help="In place of the preset's.")
@click.option("--proposals", type=click.IntRange(1), help="Rewards an epoch.")
@click.option("--reward-batch", type=click.IntRange(1),
              help="Images of a reward.  [default: as many as of a step]")  # fmt: skip
@click.option("--primitives", metavar="NAMES", help="mibb, adsaf, or operations with commas.")
@click.option("--layout", metavar="LETTERS", help="A letter a cell: N normal, R reduction.")
@click.option("--steps", type=click.IntRange(1, 16), help="Nodes that a cell adds.")
@click.option("--channels", "init_channels", type=click.IntRange(1), help="Before the first R.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/search"),
              show_default=True, help="Folder for checkpoint, history and genotype.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
def search(**options):
    """Search an architecture: R = (1 - alpha_r) acc(clean) + alpha_r acc(faulty).

    \b
    fsim nas search --fault-backend numba --accel systolic --ber 1e-5 --out out/search
    fsim nas search --data cifar10 --preset paper --fault-backend torch --mibb 1e-4

    --alpha-l 0 --alpha-r 0 is plain NAS, --alpha-l 0 FT-NAS, neither 0 FTT-NAS.
    """
    from fsim.nas.search.run import SearchRun, write_options

    out, as_json, quiet = options["out"], options["as_json"], options["quiet"]
    built = _build(options)
    found = built.search
    run = SearchRun(out, built.identity, found, resume=options["resume"])
    write_options(out, {name: _plain(value) for name, value in options.items()})
    show, begin = progress(quiet), time.monotonic()
    if not as_json:
        _head(built, run)

    def on_epoch(entry):
        show("")
        if not as_json:
            click.echo(
                f"epoch {entry.epoch + 1:>3}  loss {entry.loss:7.4f}  reward {_share(entry.reward)}"
                f"  accuracy {_share(entry.accuracy)}  under faults {_share(entry.accuracy_faulty)}"
            )

    run.go(on_epoch, lambda epoch, done: show(
        f"epoch {epoch + 1}/{found.settings.epochs} {bar(done, found.total(epoch))}"))  # fmt: skip
    _derive(built, out, SAMPLES, as_json, show, begin)


@train_options("quiet", "device", "threads", "as_json")
@click.command(epilog=DEVICES)
@click.option("--search", "folder", type=click.Path(path_type=Path), default=Path("out/search"),
              show_default=True, help="Folder of a finished search.")  # fmt: skip
@click.option("--samples", type=click.IntRange(1, 10_000), default=SAMPLES, show_default=True,
              help="Genotypes to compare.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="Genotype file.  [default: genotype.toml in the folder]")  # fmt: skip
def derive(folder, samples, out, quiet, device, threads, as_json):
    """The best of several genotypes of a finished search, by reward on the held-out share."""
    from fsim.nas.search.run import OPTIONS, SearchRun, read_options

    own = {"threads": threads, "device": device}
    options = read_options(folder, {option.name for option in search.params} - set(own)) | own
    try:
        built = _build(options)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{folder / OPTIONS} must be one of fsim nas search, got {str(error)[:200]}"
        ) from error
    run = SearchRun(folder, built.identity, built.search, resume=True)
    missing = built.search.settings.epochs - len(run.history)
    if missing:
        raise ConfigError(f"the search must be finished, {missing} epochs are left: --resume it")
    _derive(built, folder, samples, as_json, progress(quiet), time.monotonic(), out)


def _plain(value):
    """For JSON; files by their whole path, so that the search can be used from anywhere."""
    if isinstance(value, str) and value.endswith((".npz", ".yaml", ".yml", ".toml", ".json")):
        value = Path(value)
    return str(value.resolve()) if isinstance(value, Path) else value


def _build(options):
    """The search that the options ask for."""
    multi = options["method"] == "multi"
    faults = faults_of(**options, machine_too=multi)
    device = device_of(options["device"], options["fault_backend"])
    use_threads(options["threads"])
    from dataclasses import replace

    from fsim.nas.search.build import PRESETS, build_search, space_of

    weights = any(getattr(model, "target", "") == "weights" for model in _several(faults[1]))
    preset = PRESETS[options["preset"]]
    if options["preset"] == "paper" and weights:
        preset = replace(preset, alpha_l=0.7, alpha_r=0.2)
    names = ("alpha_l", "alpha_r", "epochs", "batch", "proposals", "reward_batch", "seed")
    changes = {name: options[name] for name in names if options[name] is not None}
    settings = replace(preset, **changes)
    settings = replace(settings, warmup=min(settings.warmup, settings.epochs - 1))
    space = space_of(options["preset"], weights, {name: options[name] for name in SPACE})
    data = options["data"] or ("cifar10" if options["preset"] == "paper" else "digits")
    return build_search(
        options["method"], settings, space, faults, data=data, data_dir=options["data_dir"],
        images=options["images"], device=device,
    )  # fmt: skip


def _several(models):
    return models if isinstance(models, list) else [models]


def _head(built, run):
    found, space = built.search, built.space
    click.echo(f"search    {built.identity['method']}, {found.settings.kind}: alpha_l "
               f"{found.settings.alpha_l}, alpha_r {found.settings.alpha_r}")  # fmt: skip
    click.echo(f"space     {space.layout}, {space.steps} steps, {space.init_channels} channels, "
               f"{len(space.primitives)} operations")  # fmt: skip
    click.echo(
        f"images    {len(found.weights[0])} for weights, {len(found.rewards[0])} for rewards"
    )
    click.echo(f"faults    {built.identity['faults']['text']}")
    if built.identity["faults"]["backend"] == "numba":
        click.echo(f"          {COVERED}")
    if run.history:
        click.echo(f"resumed   after epoch {len(run.history)}")


def _derive(built, folder, samples, as_json, show, begin, out=None):
    """Compare genotypes, write the best and print all."""
    from fsim.nas.search.run import GENOTYPE, write_genotype
    from fsim.nas.space.files import as_tree
    from fsim.nas.space.genotype import Architecture, describe

    found = built.search
    ranked = found.derive(samples, lambda done: show(f"derive {bar(done, samples)}"))
    show("")
    best, scored = ranked[0]
    out = out or folder / GENOTYPE
    identity = built.identity
    settings, faults = found.settings, identity["faults"]["text"]
    source = (
        f"fsim nas search, {identity['method']}, {settings.kind}, seed {settings.seed}, {faults}"
    )
    source = source[:500]
    write_genotype(out, best, built.space, source)
    if found.searcher.objectives > 1:  # none of the front is the best of all: keep each
        for number, (genotype, _) in enumerate(ranked, 1):
            write_genotype(folder / f"front-{number}.toml", genotype, built.space, source)
    cycles = [found.cycles(genotype) if found.cycles else None for genotype, _ in ranked]
    if as_json:
        print_json({
            "identity": identity, "genotype": as_tree(Architecture(best, built.space)),
            "candidates": [vars(value) | {"cycles": count}
                           for (_, value), count in zip(ranked, cycles)],
            "proposals": len(found.searcher.told), "written": str(out),
        })  # fmt: skip
        return
    head = ("derived", "reward", "accuracy", "under faults", "cycles")
    click.echo(table(head, [
        (str(i + 1), f"{value.reward:.4f}", _share(value.accuracy), _share(value.accuracy_faulty),
         "" if count is None else f"{count:,}")
        for i, ((_, value), count) in enumerate(zip(ranked, cycles))
    ], right=head[1:]))  # fmt: skip
    click.echo()
    click.echo(describe(Architecture(best, built.space)))
    spent = f"{len(found.searcher.told)} proposals, {time.monotonic() - begin:.0f} s"
    click.echo(f"done      {spent}: reward {scored.reward:.4f} on the held-out share")
    click.echo(f"written   {out}")


def _share(value) -> str:
    return "      -" if value is None else f"{100 * value:6.2f} %"

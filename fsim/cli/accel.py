"""`fsim accel list|show|check`: accelerator descriptions."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import click

from fsim.cli.group import one_line
from fsim.cli.options import ShapeType, accel_options, json_option, load_accel_option
from fsim.cli.tables import pairs, print_json, table
from fsim.errors import ConfigError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def accel():
    """List, show and check accelerator descriptions."""


@accel.command("list")
@json_option
def list_command(as_json: bool):
    """The presets."""
    from fsim.accel_models.families import broken_plugins
    from fsim.accel_models.load import presets, read_description

    found, problems = [], list(broken_plugins().values())
    for name, path in presets().items():
        try:
            found.append(read_description(path, f"{name}.yaml"))
        except ConfigError as error:  # one bad plug-in must not hide the other machines
            problems.append(str(error))
    problems += _hidden_presets()
    for problem in problems:
        click.echo(f"warning: {one_line(problem)}", err=True)
    if as_json:
        print_json([_summary(item.to_accel()) | {"about": item.about} for item in found])
        return
    rows = []
    for item in found:
        machine = item.to_accel()
        rows.append(
            (
                machine.name,
                machine.family,
                f"{machine.rows}x{machine.cols}",
                f"{machine.operand_bits}/{machine.product_bits}/{machine.acc_bits}",
                machine.dataflow,
                " ".join(machine.dataflows),
                machine.kind.evidence or UNCHECKED,
            )
        )
    heads = ("name", "family", "PEs", "bits", "default", "dataflows", "checked against")
    click.echo(table(heads, rows))
    click.echo("\nbits: operand/product/accumulator. More with: fsim accel show NAME")


def _hidden_presets() -> list[str]:
    """Presets of plug-ins whose names are taken: nothing would say so else."""
    from fsim.accel_models.families import broken_plugins, family, plugin_names
    from fsim.accel_models.load import presets

    known, broken = presets(), broken_plugins()
    return [
        f"the preset {path.stem!r} of family {name!r} must have a name of its own: "
        f"{known[path.stem]} goes first, {path} is not used"
        for name in plugin_names()
        if name not in broken and family(name).presets
        for path in sorted(Path(family(name).presets).glob("*.yaml"))
        if known.get(path.stem) != path
    ]


def _summary(machine) -> dict:
    values = {
        field.name: getattr(machine, field.name)
        for field in dataclasses.fields(machine)
        if field.name not in ("buffers", "sources")
    }
    values["evidence"] = machine.kind.evidence or UNCHECKED
    return values | {name: dataclasses.asdict(b) for name, b in machine.buffers.items()}


@accel.command()
@click.argument("name", metavar="NAME|FILE")
@accel_options(given=False)
@click.option(
    "--gemm",
    "shape",
    type=ShapeType,
    metavar="M,K,N",
    help="Also print the cycles of the product (M x K)(K x N), for systolic arrays beside "
    "those that SCALE-Sim counts.",
)
@click.option(
    "--yaml", "as_yaml", is_flag=True, help="Print the description as a .yaml file to edit."
)
@json_option
def show(name, settings, dataflow, shape, as_yaml, as_json):
    """Sizes, memories, components and the sources of every number.

    Components are what a fault can name: its bits, how many there are, its kind
    (register, net, memory), what it carries and which backends serve it.

    \b
    fsim accel show systolic --yaml > mine.yaml
    """
    if as_yaml and (as_json or shape):
        raise ConfigError("--yaml must be given without --json and --gemm")
    from fsim.accel_models.scalesim import scalesim_cycles

    machine = load_accel_option(name, settings, dataflow)
    if as_yaml:
        from fsim.accel_models.load import description_yaml, load_description
        from fsim.parse import parse_assignments

        description = load_description(name, dataflow, parse_assignments(settings))
        click.echo(description_yaml(description), nl=False)
        return
    components = [_component(machine, component) for component in machine.components]
    cycles = machine.schedule.cycles(machine, *shape) if shape else None
    counted = scalesim_cycles(machine, *shape) if shape else None
    if as_json:
        value = _summary(machine) | {"components": components, "sources": machine.sources}
        if shape:
            value["gemm"] = dict(zip("mkn", shape)) | {
                "cycles": cycles,
                "scalesim_cycles": counted,
            }
        print_json(value)
        return
    click.echo(
        pairs(
            [
                ("name", machine.name),
                ("family", machine.family),
                ("checked against", machine.kind.evidence or UNCHECKED),
                ("dataflow", f"{machine.dataflow} (can run {', '.join(machine.dataflows)})"),
                ("PEs", f"{machine.rows} rows x {machine.cols} columns"),
                (
                    "bits",
                    f"operand {machine.operand_bits}, product {machine.product_bits}, "
                    f"accumulator {machine.acc_bits}, {_OVERFLOW[machine.overflow]}",
                ),
                ("activations", "signed" + (" or unsigned" if machine.unsigned_acts else "")),
                *((memory, _memory(buffer)) for memory, buffer in machine.buffers.items()),
            ]
        )
    )
    click.echo()
    click.echo(
        table(
            ("component", "bits", "count", "kind", "carries", "backends", "about"),
            [
                (
                    item["name"],
                    item["bits"],
                    item["count"],
                    item["kind"],
                    item["role"],
                    " ".join(item["backends"]),
                    item["about"],
                )
                for item in components
            ],
            right=("bits", "count"),
        )
    )
    if shape:
        click.echo(f"\ncycles of ({shape[0]} x {shape[1]})({shape[1]} x {shape[2]}): {cycles}")
        if counted is not None:
            click.echo(f"as SCALE-Sim counts a plain {machine.dataflow} array: {counted}")
    if machine.sources:
        click.echo("\nWhere the numbers come from:")
        click.echo(pairs((f"  {key}", source) for key, source in machine.sources.items()))
    else:
        click.echo("\nWhere the numbers come from: the description does not say")


UNCHECKED = "not checked against RTL"

_OVERFLOW = {"wrap": "sums wrap", "saturate": "sums saturate"}


def _component(machine, component) -> dict:
    """A component with how many words of it the machine has."""
    from fsim.accel_models.accel import CHECK

    if component.kind == "memory":
        buffer = machine.buffers[component.name.removesuffix(CHECK)]
        width = buffer.word_bits if component.role == "check" else component.bits
        count = int(buffer.kib * 8192) // width
    else:
        count = machine.elements(component)
    return {**dataclasses.asdict(component), "count": count}


def _memory(buffer) -> str:
    parts = [f"{buffer.kib:g} KiB"]
    if buffer.double_buffered:
        parts.append("double buffered")
    if buffer.banks > 1:
        parts.append(f"{buffer.banks} banks")
    if buffer.interleave > 1:
        parts.append(f"{buffer.interleave} words interleaved")
    if buffer.check_bits:
        bits = f"{buffer.word_bits + buffer.check_bits}, {buffer.word_bits}"
        parts.append(f"{buffer.protection} ({bits})")
    for what in ("cycles", "inferences"):
        every = getattr(buffer, f"scrub_{what}")
        if every is not None:
            parts.append(f"scrubbed every {every:,} {what}")
    return ", ".join(parts)


@accel.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@json_option
def check(file, as_json):
    """Check a description file; exit code 2 and every problem if it is not valid."""
    from fsim.accel_models.load import read_description

    try:
        description = read_description(file, str(file))
    except ConfigError as error:
        problems = str(error).split("\n")
        if as_json:
            print_json({"file": str(file), "ok": False, "problems": problems})
        else:
            click.echo("Error: " + "\n       ".join(map(one_line, problems)), err=True)
        raise SystemExit(2) from None
    components = description.to_accel().components
    if as_json:
        print_json({"file": str(file), "ok": True, "problems": []})
    else:
        click.echo(f"ok: {description.name}, {len(components)} components ({file})")


@accel.command("new")
@click.argument("name", metavar="NAME")
@click.option(
    "--dir",
    "folder",
    metavar="PATH",
    help="Folder to make.  [default: NAME, here]",
)
@json_option
def new_command(name, folder, as_json):
    """Write the skeleton of an accelerator family of your own.

    A small machine that works, as a package of its own with an entry point, the tests of
    fsim.testing, and a README that says what to change.

    \b
    fsim accel new my-npu
    pip install --no-build-isolation --no-deps -e my-npu
    pytest my-npu/tests
    """
    from fsim.skeleton import write_skeleton

    if folder == "":  # Path would read it as the folder we are in
        raise ConfigError("--dir must be the name of a folder, got ''")
    folder = Path(name if folder is None else folder)
    written = write_skeleton(name, folder)
    if as_json:
        print_json({"name": name, "files": [str(path) for path in written]})
        return
    click.echo(table(("file",), [(str(path),) for path in written]))
    there, tests = shlex.quote(str(folder)), shlex.quote(str(folder / "tests"))
    click.echo(f"\nNext: pip install --no-build-isolation --no-deps -e {there}")
    click.echo(f"      pytest {tests}")

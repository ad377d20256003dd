"""Options that several commands share.

accel_options()  gemm, inject and whatever runs on one accelerator
json_option      every command that prints a result
threads_option   commands whose work is parallel; pass the value to `threads.use_threads`
seed_option      commands that draw random numbers
device_option    commands that compute in torch; read it with `fault_backend.device_of`
Probability, Seconds, ShapeType, FaultType: parameter types that state what they expect
"""

from __future__ import annotations

import click

from fsim.errors import ConfigError, FsimError


class Parsed(click.ParamType):
    """A parameter read by a function of `fsim.parse`; its FsimError becomes a usage error."""

    def __init__(self, name: str, function: str):
        self.name, self._function = name, function

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        from fsim import parse

        try:
            return getattr(parse, self._function)(value)
        except FsimError as error:
            self.fail(str(error), param, ctx)


Probability = Parsed("probability", "parse_probability")
Seconds = Parsed("seconds", "parse_seconds")
ShapeType = Parsed("m,k,n", "parse_shape")
FaultType = Parsed("key=value,...", "parse_fault")


def accel_options(given: bool = True, required: bool = True):
    """Decorator: --set (repeatable), --dataflow and, if `given`, --accel."""
    options = [
        click.option(
            "--dataflow",
            metavar="NAME",
            help="ws, os, is (weight, output, input stationary) or another that the machine can "
            "run, instead of its own.",
        ),
        click.option(
            "--set",
            "--accel-set",
            "settings",
            metavar="KEY=VALUE",
            multiple=True,
            help="Change the accelerator: rows, cols, operand_bits, acc_bits, "
            "buffers.acts.kib, ... May be repeated.",
        ),
    ]
    if given:
        options.append(
            click.option(
                "--accel",
                required=required,
                metavar="NAME|FILE",
                help="A preset (fsim accel list) or a .yaml or .toml file.",
            )
        )

    def decorate(command):
        for option in options:
            command = option(command)
        return command

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")

threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads to use; the default is all CPUs this process may run on.",
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(0, (1 << 64) - 1),
    default=0,
    show_default=True,
    help="Seed of the random draws; the same seed gives the same faults.",
)

device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="Where torch computes: cpu, cuda, cuda:1, ... (--fault-backend torch or none).",
)


def load_accel_option(accel: str, settings: tuple[str, ...], dataflow: str | None):
    """The `Accel` that the values of `accel_options` describe.

    Of several problems the error names the first and says how many there are;
    `fsim accel check` lists them.
    """
    from fsim.accel_models.load import load_accel
    from fsim.parse import parse_assignments

    try:
        return load_accel(accel, dataflow, parse_assignments(settings))
    except ConfigError as error:
        first, *more = str(error).split("\n")
        if not more:
            raise
        raise ConfigError(f"{first}; {len(more)} more of its values are not valid") from None

"""Groups of commands whose modules load only when they are used."""

from __future__ import annotations

import importlib
from typing import ClassVar

import click


class LazyGroup(click.Group):
    """A group that imports a subcommand's module only to run it or to show its help.

    table  subcommand -> (module:attribute, its line in the group's help)
    """

    table: ClassVar[dict[str, tuple[str, str]]]

    def list_commands(self, ctx):
        return list(self.table)

    def get_command(self, ctx, name):
        if name not in self.table:
            return None
        module, attribute = self.table[name][0].split(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx, formatter):
        """The list in `--help`, from the table: no module is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in self.table.items()])

    def resolve_command(self, ctx, args):
        if args and args[0] not in self.table and not args[0].startswith("-"):
            from fsim.parse import nearest

            ctx.fail(
                f"command must be one of {', '.join(self.table)}, got {args[0]!r}"
                + nearest(args[0], self.table)
            )
        return super().resolve_command(ctx, args)

"""The command `outboard`: a group whose commands are imported when they are used.

Only the group; each command is a file of its own, cli_<name>.py, that holds a click command of the
same name.
"""

from __future__ import annotations

import importlib

import click

COMMANDS = ("doctor", "plan", "timeline")


class LazyGroup(click.Group):
    """Imports cli_<name> when <name> is asked for, so that one command's needs are not all's."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f".cli_{cmd_name}", __package__), cmd_name)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="outboard")
def main() -> None:
    """Training with the optimizer state in host memory: plan it, check the machine, see a step."""

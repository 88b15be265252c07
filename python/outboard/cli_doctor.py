"""`outboard doctor`: options, table and JSON. What is looked at is doctor.py's."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from .doctor import ERROR, OK, WARNING, Row, examine

_STYLES = {OK: "green", WARNING: "yellow", ERROR: "red"}


def table_of(rows: list[Row]) -> Table:
    table = Table(title="outboard doctor", title_justify="left")
    for heading in ("what", "found", "", "what to do"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        status = f"[{_STYLES[row.status]}]{row.status}[/]"
        table.add_row(row.name, row.value, status, row.advice)
    return table


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--measure/--no-measure", default=True, help="Measure link and updates (2 seconds).")
@click.option("--simulate", is_flag=True, hidden=True, help="Measure the fake device.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, measure: bool, simulate: bool) -> None:
    """Look at versions, devices, limits and speeds, and say what to mend.

    Exits with 1 if there is an error.
    """
    rows, machine = examine(is_measured=measure, simulate=(0, 0, 0) if simulate else ())
    if as_json:
        content = {
            "rows": [asdict(row) for row in rows],
            "machine": None if machine is None else asdict(machine),
        }
        click.echo(json.dumps(content, indent=2))
    else:
        Console().print(table_of(rows))
    ctx.exit(1 if any(row.status == ERROR for row in rows) else 0)

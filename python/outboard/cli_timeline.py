"""`outboard timeline`: a picture of a trace file, and its breakdown in words.

Only the command's options and messages; timeline.py reads, breakdown.py adds up, and
timeline_picture.py draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .breakdown import StepTime
from .timeline import Timeline, read_timeline
from .timeline_picture import draw


class StepRange(click.ParamType):
    """FIRST:LAST, both included and either optional, or one number; steps count from 1."""

    name = "first:last"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int | None]:
        if isinstance(value, tuple):
            return value
        first, colon, last = value.partition(":")
        try:
            begin = int(first) if first or not colon else 1
            end = (int(last) if last else None) if colon else begin
        except ValueError:
            self.fail(f"{value!r} is no range of steps; give FIRST:LAST, as in 2:4", param, ctx)
        if begin < 1 or (end is not None and end < begin):
            self.fail(f"{value!r} holds no steps; they count from 1, the last included", param, ctx)
        return begin, end


@click.command()
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The picture: .png, .pdf or .svg. Without it, only the breakdown is printed.",
)
@click.option("--steps", type=StepRange(), help="Only these steps, as in 2:4, 3, or 2:.")
def timeline(trace: Path, output: Path | None, steps: tuple[int, int | None] | None) -> None:
    """Draw a file of optimizer.trace(), and print where the time of its steps went."""
    try:
        content = read_timeline(trace)
        times = select_steps(content, steps)
        if output is not None:
            draw(content, times, output)
    except (ImportError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    for time in times:
        click.echo(str(time))
    if not times:
        click.echo("no whole step was traced")
    if output is not None:
        click.echo(f"drawn to {output}")


def select_steps(content: Timeline, steps: tuple[int, int | None] | None) -> list[StepTime]:
    """The breakdown of the wished steps; None: of all. Raises ValueError if there are none."""
    times = content.step_times()
    if steps is None:
        return times
    first, last = steps
    chosen = [t for t in times if first <= t.number and (last is None or t.number <= last)]
    if not chosen:
        raise ValueError(
            f"[outboard timeline] steps {first}:{last or ''} are not among the {len(times)} traced "
            "ones; choose others with --steps"
        )
    return chosen

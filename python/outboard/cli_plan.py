"""`outboard plan`: options, table and JSON. What an iteration costs is the native library's."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from .doctor import free_memory
from .model_shape import ModelShape, shape_of_config, shape_of_size
from .plan import (
    KNOWN_MACHINES,
    SCHEDULES,
    Machine,
    Plan,
    PlanWish,
    alternatives,
    compute_time,
    make_plan,
    measured_machine,
    to_dict,
)

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MASTERS = {"bfloat16": "split", "float16": "fp32", "float32": "weight"}


class Size(click.ParamType):
    """80GB, 125GiB, 64e9: bytes."""

    name = "bytes"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)(i?)b?", value.strip().lower())
        if match is None or (match[3] and not match[2]):
            self.fail(f"{value!r} is no size; give bytes as in 80GB, 125GiB or 64e9", param, ctx)
        try:
            units = _BINARY_UNITS if match[3] else _UNITS
            return int(float(match[1]) * units[match[2]])
        except ValueError:
            self.fail(f"{value!r} is no size; give bytes as in 80GB", param, ctx)


def machine_named(name: str | None, wish: PlanWish) -> Machine:
    """A known machine, one from a file, or this one. Raises click.ClickException."""
    if name in KNOWN_MACHINES:
        return KNOWN_MACHINES[name]
    if name is not None:
        if not Path(name).exists():
            known = ", ".join(KNOWN_MACHINES)
            raise click.ClickException(
                f"there is no file {name}; --machine takes one that --save-machine wrote, or one "
                f"of: {known}"
            )
        return Machine.load(name)
    if not torch.cuda.is_available():
        raise click.ClickException(
            "there is no GPU to measure; give --machine FILE (written by --save-machine where "
            f"there is one) or --machine {next(iter(KNOWN_MACHINES))}"
        )
    return measured_machine(
        0,
        rule=wish.rule,
        state_formats=(wish.state_format,),
        dtype=wish.dtype,
        master=wish.master,
    )


def with_compute_time(
    wish: PlanWish,
    shape: ModelShape,
    machine: Machine,
    tokens: int,
    compute_ms: float | None,
    is_recomputed: bool,
) -> PlanWish:
    """Forward and backward as measured, or counted. Raises click.ClickException."""
    backward_share = 0.75 if is_recomputed else 2 / 3
    if compute_ms is not None:
        backward = compute_ms * 1e-3 * backward_share
        return replace(wish, forward_s=compute_ms * 1e-3 - backward, backward_s=backward)
    if machine.flops <= 0:
        raise click.ClickException(
            "the machine's speed in forward and backward is not known; give --compute-ms or --flops"
        )
    forward, backward = compute_time(shape.active_parameters, tokens, machine.flops, is_recomputed)
    return replace(wish, forward_s=forward, backward_s=backward)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}"


def _shares(plan: Plan) -> str:
    total = sum(plan.elements.values())
    shares = ((kind, count / total) for kind, count in plan.elements.items())
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares if share >= 0.005)


def table_of(plans: list[Plan], chosen: Plan) -> Table:
    table = Table(title_justify="left")
    for heading in ("schedule", "placement"):
        table.add_column(heading)
    for heading in ("iteration, ms", "exposed, ms"):
        table.add_column(heading, justify="right")
    table.add_column("bounded by")
    for heading in ("host, GB", "device, GB"):
        table.add_column(heading, justify="right")
    table.add_column("fits")
    for plan in plans:
        is_chosen = (plan.schedule, plan.elements) == (chosen.schedule, chosen.elements)
        table.add_row(
            plan.schedule,
            _shares(plan),
            f"{plan.iteration_s * 1e3:.0f}",
            f"{plan.exposed_s * 1e3:.0f}",
            plan.bound,
            _gigabytes(plan.host_bytes),
            _gigabytes(plan.device_bytes),
            "yes" if plan.fits else "no",
            style="bold green" if is_chosen else None,
        )
    return table


def show(shape: ModelShape, wish: PlanWish, model_bytes: int, plans: list[Plan], best: Plan):
    console = Console()
    compute = wish.accumulation_steps * (wish.forward_s + wish.backward_s)
    console.print(
        f"{shape.name}: {shape.parameters / 1e9:.3f}e9 parameters, {wish.rule} with "
        f"{wish.state_format} state; forward and backward {compute * 1e3:.0f} ms, weights and "
        f"activations {_gigabytes(model_bytes)} GB",
        highlight=False,
    )
    console.print(table_of(plans, best))
    for reason in best.reasons:
        console.print(f"- {reason}", highlight=False, markup=False)
    for group in ("host", "device"):
        held = {k: size for k, size in best.bytes.items() if k.startswith(f"{group}_") and size}
        kinds = ", ".join(
            f"{k.removeprefix(f'{group}_').replace('_', ' ')} {_gigabytes(size)}"
            for k, size in held.items()
        )
        console.print(f"- {group} memory, GB: {kinds or 'none'}", highlight=False)


@click.command()
@click.option("--parameters", type=float, help="A GPT of this size, as in 2.65e9.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="A config.json.")
@click.option("--tokens", default=16384, show_default=True, help="Of one micro-step.")
@click.option("--accumulation", default=1, show_default=True, help="Micro-steps per iteration.")
@click.option("--dtype", type=click.Choice(list(_MASTERS)), default="bfloat16", show_default=True)
@click.option(
    "--master",
    type=click.Choice(["auto", "split", "split8", "fp32", "stochastic"]),
    default="auto",
    help="As the optimizer's option.",
)
@click.option("--optimizer", default="AdamW", show_default=True, help="A native rule.")
@click.option("--state-format", default="8bit", show_default=True)
@click.option("--compute-ms", type=float, help="Measured forward and backward of a micro-step.")
@click.option("--flops", type=float, help="Operations per second of forward and backward.")
@click.option("--recompute/--no-recompute", default=True, help="Activation checkpointing.")
@click.option("--clipping/--no-clipping", default=True, help="Or skip_nonfinite, or a GradScaler.")
@click.option("--clip-rate", default=0.0, help="Share of steps in which clipping fires.")
@click.option("--attached/--not-attached", default=True, help="optimizer.attach(model) is called.")
@click.option("--schedule", type=click.Choice(["auto", *SCHEDULES]), default="auto")
@click.option("--placement", type=click.Choice(["auto", "host", "streamed"]), default="auto")
@click.option("--device-memory", type=Size(), help="Of the whole GPU; default: what is there.")
@click.option("--device-state", type=Size(), default=0, help="Budget of resident state.")
@click.option("--host-memory", type=Size(), help="Default: what can be had here.")
@click.option("--machine", help="A file of --save-machine, or h200; default: measure this one.")
@click.option("--save-machine", type=click.Path(dir_okay=False), help="Write what was measured.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def plan(**options: Any) -> None:
    """Choose placement and schedule for a model: what fits, what an iteration takes, and why."""
    try:
        _plan(**options)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _plan(parameters: float | None, config: str | None, as_json: bool, **options: Any) -> None:
    if (parameters is None) == (config is None):
        raise click.UsageError("give either --parameters or --config")
    shape = shape_of_size(parameters) if config is None else shape_of_config(config)
    wish = _wish_of(options)
    machine = machine_named(options["machine"], wish)
    if options["save_machine"]:
        machine.save(options["save_machine"])
    if options["flops"]:
        machine = replace(machine, flops=options["flops"])
    tokens, is_recomputed = options["tokens"], options["recompute"]
    wish = with_compute_time(wish, shape, machine, tokens, options["compute_ms"], is_recomputed)
    model_bytes = shape.device_bytes(tokens, 4 if wish.dtype == "float32" else 2)
    wish = _with_budgets(wish, options, model_bytes)
    best = make_plan(shape.elements, machine, wish)
    plans = alternatives(shape.elements, machine, wish)
    if as_json:
        content = {
            "model": asdict(shape) | {"parameters": shape.parameters, "device_bytes": model_bytes},
            "machine": asdict(machine),
            "wish": asdict(wish),
            "plan": to_dict(best),
            "alternatives": [to_dict(other) for other in plans],
        }
        content["model"].pop("elements")
        click.echo(json.dumps(content, indent=2))
    else:
        show(shape, wish, model_bytes, plans, best)


def _wish_of(options: dict[str, Any]) -> PlanWish:
    master = options["master"]
    return PlanWish(
        rule=options["optimizer"],
        state_format=options["state_format"],
        dtype=options["dtype"],
        master=_MASTERS[options["dtype"]] if master == "auto" else master,
        accumulation_steps=options["accumulation"],
        needs_norm=options["clipping"],
        redo_rate=options["clip_rate"],
        is_attached=options["attached"],
        schedule=options["schedule"],
        placement=options["placement"],
        device_state_bytes=options["device_state"],
    )


def _with_budgets(wish: PlanWish, options: dict[str, Any], model_bytes: int) -> PlanWish:
    """Budgets as given; where this machine was measured, else, what it has."""
    is_here = options["machine"] is None
    device = options["device_memory"]
    if device is None and is_here:
        device = torch.cuda.mem_get_info(0)[1]
    host = options["host_memory"]
    if host is None and is_here:
        host = free_memory(Path("/"))
    left = None if device is None else device - model_bytes
    if left is not None and left < 0:
        raise ValueError(
            f"[outboard plan] weights and activations take {model_bytes / 1e9:.1f} GB, the device "
            f"has {device / 1e9:.1f} GB; give fewer --tokens, or a smaller model"
        )
    return replace(wish, device_bytes=left, host_bytes=host)

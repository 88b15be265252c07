"""Runs one case of offload.py in this process and prints one JSON object.

Iterations follow each other without a wait in between, as in training: on a GPU, times are those
between events at the beginnings of iterations on the stream of forward and backward, and the last
iteration ends when everything that belongs to it has. Warm-up steps are left out everywhere.
"""

from __future__ import annotations

import json
import mmap
import statistics
import sys
import time
from typing import Any

import torch
from model import build, loss_of, tokens
from systems import (
    CASES,
    Case,
    NotInstalled,
    System,
    available_bytes,
    bytes_of,
    free_gradients_in_hook,
    make_system,
)
from torch import Tensor, nn

# Bytes per element that design.md's memory table gives for a bf16 weight.
_MASTER_BYTES = {"auto": 2, "split": 2, "split8": 1, "fp32": 4, "none": 0, "stochastic": 0}
_STATE_BYTES = {"fp32": 8, "bf16": 4, "8bit": 2 + 8 / 128, "4bit": 1 + 8 / 128}
_IMAGE_BYTES, _GRADIENT_BYTES = 2, 2
_CAUSES = ("waiting_for_gradients", "updating", "returning", "exposed", "in_step")
_COUNTERS = (
    "gradient_norm",
    "clip_factor",
    "steps",
    "skipped_steps",
    "early_updates",
    "dropped_updates",
)


def main() -> None:
    job = json.loads(sys.argv[1])
    case = CASES[job["case"]]
    device = torch.device("cpu" if job["simulate"] else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"skipped": "torch finds no GPU; --simulate runs without one"}))
        return
    try:
        print(json.dumps(measure(job, case, device)))
    except NotInstalled as missing:
        print(json.dumps({"skipped": str(missing)}))


def measure(job: dict[str, Any], case: Case, device: torch.device) -> dict[str, Any]:
    """Everything that is reported about one case."""
    model = build(job["size"], device)
    batches = tokens(job["warm_up"] + job["steps"], job["batch"], job["seq"], device)
    accumulation = job["accumulation"]
    alone, _ = _time_forward_backward(model, batches, job["warm_up"], device, accumulation)
    result: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": job["batch"] * job["seq"],
        "accumulation": accumulation,
        "clip": case.clip,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "simulated",
        "forward_backward_ms": _summary(alone),
        "forward_backward_device_peak_bytes": _device_peak(device),
    }
    _reset_peak(device)
    resident_before = _resident_bytes("VmRSS")
    extra = dict(job["options"]) | ({"simulate": [1, 0, 1]} if job["simulate"] else {})
    begin = time.perf_counter()
    system = make_system(case, model, extra, job["batch"], job["accumulation"])
    _synchronize(device)
    result["construction_s"] = round(time.perf_counter() - begin, 3)
    result |= _time_system(model, system, batches, job["warm_up"], device, accumulation)
    result["iteration_over_forward_backward"] = round(
        result["iteration_ms"]["median"] / result["forward_backward_ms"]["median"], 4
    )
    result["device_peak_bytes"] = _device_peak(device)
    result |= _host_memory(case, system, resident_before, extra)
    if job["startup"] and result.get("host_expected_bytes"):
        result |= _time_fresh_memory(result["host_expected_bytes"], device)
    return result


def _time_forward_backward(
    model: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    warm_up: int,
    device: torch.device,
    accumulation: int,
) -> tuple[list[float], list[float]]:
    hooks = free_gradients_in_hook(list(model.parameters()))
    times = _time_steps(model, System(lambda: None), batches, warm_up, device, accumulation)
    for hook in hooks:
        hook.remove()
    return times


def _time_system(
    model: nn.Module,
    system: System,
    batches: list[tuple[Tensor, Tensor]],
    warm_up: int,
    device: torch.device,
    accumulation: int,
) -> dict[str, Any]:
    times, losses = _time_steps(model, system, batches, warm_up, device, accumulation)
    last = system.stats()[1]
    result: dict[str, Any] = {
        "iteration_ms": _summary(times),
        "losses": [round(loss, 5) for loss in losses],
    }
    if last:
        result["last_step_s"] = {name: round(last[name], 5) for name in _CAUSES}
        for name in _COUNTERS:
            result[name] = last[name]
    return result


def _time_steps(
    model: nn.Module,
    system: System,
    batches: list[tuple[Tensor, Tensor]],
    warm_up: int,
    device: torch.device,
    accumulation: int,
) -> tuple[list[float], list[float]]:
    """Seconds of each step after the warm-up, and all losses."""
    begins, losses = [], []
    _synchronize(device)
    for inputs, targets in batches:
        begins.append(_now(device))
        for _ in range(accumulation):
            loss = loss_of(system.model or model, inputs, targets) / accumulation
            system.backward(loss)
        losses.append(loss.detach() * accumulation)
        system.step()
    # What hides behind a next forward that does not come is not hidden.
    system.synchronize()
    _synchronize(device)
    begins.append(_now(device))
    _synchronize(device)
    pairs = zip(begins[warm_up:], begins[warm_up + 1 :], strict=False)
    return [_seconds(begin, end) for begin, end in pairs], [float(loss) for loss in losses]


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(begin: Any, end: Any) -> float:
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) * 1e-3


def _host_memory(
    case: Case, system: System, resident_before: int, extra: dict[str, Any]
) -> dict[str, Any]:
    memory, _, elements = system.stats()
    result: dict[str, Any] = {
        "resident_bytes_before_optimizer": resident_before,
        "resident_bytes": _resident_bytes("VmRSS"),
        "resident_bytes_peak": _resident_bytes("VmHWM"),
    }
    if not memory:
        return result
    options = case.options | extra
    state = (
        _MASTER_BYTES[options.get("master", "auto")]
        + _STATE_BYTES[options.get("state_format", "fp32")]
    )
    # Updates that a step may still drop are made into second copies.
    is_tentative = case.attach and options.get("skip_nonfinite", True)
    copies = 2 if is_tentative and options.get("schedule", "auto") != "next_forward" else 1
    expected = (_IMAGE_BYTES + state + _GRADIENT_BYTES) * elements.get("host", 0)
    expected += copies * state * elements.get("streamed", 0)
    kinds = ("weights", "masters", "state", "gradients")
    held = sum(memory[f"host_{kind}"] for kind in kinds)
    return result | {
        "memory_bytes": memory,
        "elements": elements,
        "host_expected_bytes": expected,
        "host_over_expected": round(held / expected, 4) if expected else None,
    }


def _time_fresh_memory(size: int, device: torch.device) -> dict[str, Any]:
    """Seconds that touching and registering as many fresh bytes takes, while the others are held.

    The ceiling for construction: virtual machines hand out memory slowly when it is first touched.
    """
    if size > 0.9 * available_bytes():
        return {"fresh_memory_s": None}
    begin = time.perf_counter()
    with mmap.mmap(-1, size) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        view = torch.frombuffer(memory, dtype=torch.uint8)
        view.zero_()  # all of torch's threads
        if device.type == "cuda":
            runtime = torch.cuda.cudart()
            status = runtime.cudaHostRegister(view.data_ptr(), size, 0)
            seconds = time.perf_counter() - begin
            if int(status) == 0:
                runtime.cudaHostUnregister(view.data_ptr())
        else:
            seconds = time.perf_counter() - begin
        del view
    return {"fresh_memory_s": round(seconds, 3)}


def _summary(times: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(times) * 1e3, 2), "min": round(min(times) * 1e3, 2)}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _device_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process."""
    return bytes_of("/proc/self/status", field)


if __name__ == "__main__":
    main()

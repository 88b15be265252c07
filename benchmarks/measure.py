"""Runs one case of offload.py in this process and prints one JSON object.

Times are wall-clock around a synchronised iteration; warm-up steps are left out everywhere.
"""

from __future__ import annotations

import json
import mmap
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from model import build, loss_of, tokens
from systems import CASES, Case, NotInstalled, System, free_gradients_in_hook, make_system
from torch import Tensor, nn

# Bytes per element that design.md's memory table gives for a bf16 weight.
_MASTER_BYTES = {"auto": 2, "split": 2, "fp32": 4, "none": 0, "stochastic": 0}
_STATE_BYTES = {"fp32": 8, "bf16": 4, "8bit": 2 + 8 / 128, "4bit": 1 + 8 / 128}
_IMAGE_BYTES, _GRADIENT_BYTES = 2, 2
_CAUSES = ("waiting_for_gradients", "updating", "returning", "exposed", "in_step")


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
    alone, _ = _time_forward_backward(model, batches, job["warm_up"], device)
    result: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": job["batch"] * job["seq"],
        "clip": case.clip,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "simulated",
        "forward_backward_ms": _summary(alone),
        "forward_backward_device_peak_bytes": _device_peak(device),
    }
    _reset_peak(device)
    resident_before = _resident_bytes("VmRSS")
    extra = dict(job["options"]) | ({"simulate": [1, 0, 1]} if job["simulate"] else {})
    begin = time.perf_counter()
    system = make_system(case, model, extra)
    _synchronize(device)
    result["construction_s"] = round(time.perf_counter() - begin, 3)
    result |= _time_system(model, system, batches, job["warm_up"], device)
    result["iteration_over_forward_backward"] = round(
        result["iteration_ms"]["median"] / result["forward_backward_ms"]["median"], 4
    )
    result["device_peak_bytes"] = _device_peak(device)
    result |= _host_memory(case, system, resident_before, extra)
    if job["startup"] and result.get("host_expected_bytes"):
        result |= _time_fresh_memory(result["host_expected_bytes"], device)
    return result


def _time_forward_backward(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], warm_up: int, device: torch.device
) -> tuple[list[float], list[float]]:
    hooks = free_gradients_in_hook(list(model.parameters()))
    times = _time_steps(model, lambda: None, batches, warm_up, device)
    for hook in hooks:
        hook.remove()
    return times


def _time_system(
    model: nn.Module,
    system: System,
    batches: list[tuple[Tensor, Tensor]],
    warm_up: int,
    device: torch.device,
) -> dict[str, Any]:
    causes: list[dict[str, Any]] = []
    times, losses = _time_steps(
        model, system.step, batches, warm_up, device, lambda: causes.append(system.stats()[1])
    )
    measured = [c for c in causes[warm_up:] if c]
    result: dict[str, Any] = {
        "iteration_ms": _summary(times),
        "losses": [round(loss, 5) for loss in losses],
    }
    if measured:
        result["last_step_s"] = {
            name: round(statistics.median(c[name] for c in measured), 5) for name in _CAUSES
        }
        for name in ("gradient_norm", "clip_factor", "steps", "skipped_steps"):
            result[name] = measured[-1][name]
    return result


def _time_steps(
    model: nn.Module,
    step: Callable[[], None],
    batches: list[tuple[Tensor, Tensor]],
    warm_up: int,
    device: torch.device,
    after: Callable[[], None] = lambda: None,
) -> tuple[list[float], list[float]]:
    """Seconds of each step after the warm-up, and all losses. `after` runs outside the time."""
    times, losses = [], []
    for inputs, targets in batches:
        _synchronize(device)
        begin = time.perf_counter()
        loss = loss_of(model, inputs, targets)
        loss.backward()
        step()
        _synchronize(device)
        times.append(time.perf_counter() - begin)
        losses.append(float(loss.detach()))
        after()
    return times[warm_up:], losses


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
    per_element = (
        _IMAGE_BYTES
        + _MASTER_BYTES[options.get("master", "auto")]
        + _STATE_BYTES[options.get("state_format", "fp32")]
        + _GRADIENT_BYTES
    )
    expected = per_element * elements.get("host", 0)
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
    if size > 0.9 * _available_bytes():
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
    return _kib_of("/proc/self/status", field)


def _available_bytes() -> int:
    return _kib_of("/proc/meminfo", "MemAvailable")


def _kib_of(path: str, field: str) -> int:
    with open(path) as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    main()

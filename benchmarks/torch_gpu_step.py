#!/usr/bin/env python3
"""Device time of torch's fused AdamW on the shapes of gpu_step.cc, and of the low-bit AdamW of
other libraries where they are installed: one JSON line per case."""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
from collections.abc import Callable

import torch

_WARM_UPS = 3
_REPEATS = 12


def _gpt_shapes(width: int, layers: int, vocabulary: int) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(vocabulary, width)]
    for _ in range(layers):
        shapes += [(width,)] * 4
        shapes += [(rows * width, width) for rows in (3, 1, 4, 4)]
    return shapes + [(width,)] * 2


def _milliseconds(enqueue: Callable[[], object]) -> list[float]:
    times = []
    for i in range(_WARM_UPS + _REPEATS):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        enqueue()
        end.record()
        end.synchronize()
        if i >= _WARM_UPS:
            times.append(begin.elapsed_time(end))
    return times


def _copy_bandwidth() -> float:
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    ms = statistics.median(_milliseconds(lambda: target.copy_(source)))
    return 2 * source.nbytes / ms / 1e6


def _report(
    name: str, elements: int, bytes_per_element: float, times: list[float], copy: float
) -> None:
    ms = statistics.median(times)
    bandwidth = bytes_per_element * elements / ms / 1e6
    line = {
        "benchmark": "torch_gpu_step",
        "case": name,
        "elements": elements,
        "ms": round(ms, 4),
        "ms_min": round(min(times), 4),
        "bytes_per_element": bytes_per_element,
        "gb_per_s": round(bandwidth, 1),
        "copy_gb_per_s": round(copy, 1),
        "ratio_to_copy": round(bandwidth / copy, 4),
    }
    print(json.dumps(line), flush=True)


def _parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    parameters = []
    for shape in _gpt_shapes(2048, 24, 50304):
        parameter = torch.nn.Parameter(torch.randn(shape, device="cuda").mul_(0.02).to(dtype))
        parameter.grad = torch.randn_like(parameter) * 1e-3
        parameters.append(parameter)
    return parameters


def _run(name: str, dtype: torch.dtype, state_bytes: float, make: Callable, copy: float) -> None:
    parameters = _parameters(dtype)
    optimizer = make(parameters)
    times = _milliseconds(optimizer.step)
    elements = sum(parameter.numel() for parameter in parameters)
    size = parameters[0].element_size()
    name = f"{name}, {str(dtype).removeprefix('torch.')} weight"
    _report(name, elements, 3.0 * size + 2 * state_bytes, times, copy)


def _peers() -> list[tuple[str, float, Callable]]:
    """Name, bytes of state per element, and factory of the optimizers that are installed."""
    found: list[tuple[str, float, Callable]] = []
    with contextlib.suppress(ImportError):
        import bitsandbytes

        found.append(("bitsandbytes AdamW8bit", 2 + 8 / 256, bitsandbytes.optim.AdamW8bit))
    with contextlib.suppress(ImportError):
        import flashoptim

        found.append(("flashoptim FlashAdamW", 2.0, flashoptim.FlashAdamW))
    with contextlib.suppress(ImportError):
        import torchao.optim

        found += [
            ("torchao AdamW8bit", 2 + 8 / 256, torchao.optim.AdamW8bit),
            ("torchao AdamW4bit", 1 + 8 / 128, torchao.optim.AdamW4bit),
            ("torchao AdamWFp8", 2 + 8 / 256, torchao.optim.AdamWFp8),
        ]
    return found


def main() -> None:
    if not torch.cuda.is_available():
        print(json.dumps({"benchmark": "torch_gpu_step", "skipped": "no GPU in this machine"}))
        return
    copy = _copy_bandwidth()
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        fused = functools.partial(torch.optim.AdamW, lr=1e-3, fused=True)
        _run("torch fused AdamW, state as the weight", dtype, 2 * size, fused, copy)
        torch.cuda.empty_cache()
    for name, state_bytes, make in _peers():
        try:
            _run(name, torch.bfloat16, state_bytes, make, copy)
        except Exception as error:  # a peer that does not run here is reported, not fatal
            line = {"benchmark": "torch_gpu_step", "case": name, "failed": repr(error)[:300]}
            print(json.dumps(line), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

"""Time of PyTorch's fused CPU AdamW (fp32) on the sizes of cpu_step.cc, and of the 8-bit CPU steps
of other libraries where they are installed, one JSON line per case."""

import argparse
import contextlib
import functools
import json
import statistics
import time
from collections.abc import Callable

import torch


def measure(make: Callable, elements: int, tensors: int, repeat: int) -> list[float]:
    """Seconds of each step after one warm-up."""
    parameters = []
    for _ in range(tensors):
        parameter = torch.nn.Parameter(torch.rand(elements // tensors) - 0.5)
        parameter.grad = torch.rand_like(parameter) - 0.5
        parameters.append(parameter)
    optimizer = make(parameters)
    times = []
    for _ in range(repeat + 1):
        begin = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    return times[1:]


def peers() -> list[tuple[str, Callable]]:
    """Name and factory of the 8-bit optimizers that are installed."""
    found: list[tuple[str, Callable]] = []
    with contextlib.suppress(ImportError):
        import bitsandbytes

        found.append(("bitsandbytes_adamw8bit", bitsandbytes.optim.AdamW8bit))
    with contextlib.suppress(ImportError):
        import torchao.optim

        found.append(("torchao_adamw8bit", torchao.optim.AdamW8bit))
    return found


def report(case: str, times: list[float], elements: int, tensors: int) -> None:
    line = {
        "benchmark": "torch_cpu_step",
        "case": case,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "tensors": tensors,
        "elements": elements,
        "ns_per_element": round(statistics.median(times) / elements * 1e9, 4),
        "ns_per_element_min": round(min(times) / elements * 1e9, 4),
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=64 << 20)
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's default")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--peers", action="store_true", help="8-bit steps of other libraries too")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    fused = functools.partial(torch.optim.AdamW, fused=True)
    for tensors in (1, 128):
        times = measure(fused, options.elements, tensors, options.repeat)
        report("adamw_f32_fused", times, options.elements, tensors)
    for name, make in peers() if options.peers else []:  # slow: few elements, few repeats
        elements = options.elements // 8
        report(name, measure(make, elements, 1, 3), elements, 1)


if __name__ == "__main__":
    main()

"""Time of PyTorch's fused CPU AdamW (fp32) on the sizes of cpu_step.cc, one JSON line per case."""

import argparse
import json
import statistics
import time

import torch


def measure(elements: int, tensors: int, repeat: int) -> list[float]:
    """Seconds of each step after one warm-up."""
    parameters = []
    for _ in range(tensors):
        parameter = torch.nn.Parameter(torch.rand(elements // tensors) - 0.5)
        parameter.grad = torch.rand_like(parameter) - 0.5
        parameters.append(parameter)
    optimizer = torch.optim.AdamW(parameters, fused=True)
    times = []
    for _ in range(repeat + 1):
        begin = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    return times[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=64 << 20)
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's default")
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for tensors in (1, 128):
        times = measure(options.elements, tensors, options.repeat)
        print(
            json.dumps(
                {
                    "benchmark": "torch_cpu_step",
                    "case": "adamw_f32_fused",
                    "torch": torch.__version__,
                    "threads": torch.get_num_threads(),
                    "tensors": tensors,
                    "elements": options.elements,
                    "ns_per_element": round(statistics.median(times) / options.elements * 1e9, 4),
                    "ns_per_element_min": round(min(times) / options.elements * 1e9, 4),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()

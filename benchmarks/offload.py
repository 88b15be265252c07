#!/usr/bin/env python3
"""An iteration of a whole GPT under several systems: one JSON line per case.

    python benchmarks/offload.py --size 2.7B --batch 8 --seq 2048 --cases fp32-clip,torchao
    python benchmarks/offload.py --simulate          # without a GPU: proves that the script runs

Every case runs in a process of its own, which measures forward and backward alone, with gradients
freed as they appear, before it constructs the optimizer. Systems are in systems.py, the worker is
in measure.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from model import BENCHMARK_SIZES
from systems import CASES

_DEFAULT_CASES = "noopt,fp32-clip,fp32,bf16-nomaster,torchao,torch-fused-clip"


def main() -> int:
    options = _parse()
    failures = 0
    for name in options.cases.split(","):
        result = _run(name, options)
        failures += "error" in result
        print(json.dumps(result), flush=True)
    return 1 if failures else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Iteration time of a GPT under several systems.")
    parser.add_argument("--size", choices=BENCHMARK_SIZES, help="2.7B; with --simulate tiny")
    parser.add_argument("--batch", type=int, help="sequences (8; with --simulate 1)")
    parser.add_argument("--seq", type=int, help="tokens per sequence (2048; with --simulate 32)")
    parser.add_argument("--accumulation", type=int, default=1, help="backwards per step")
    parser.add_argument("--steps", type=int, default=6, help="measured steps")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--cases", help=f"comma-separated, of: {', '.join(CASES)}")
    parser.add_argument("--simulate", action="store_true", help="on the CPU, with a fake device")
    parser.add_argument("--startup", action="store_true", help="also time fresh host memory")
    parser.add_argument("--options", type=json.loads, default={}, help="more for outboard, as JSON")
    parser.add_argument("--timeout", type=float, default=300, help="seconds per case")
    options = parser.parse_args()
    options.size = options.size or ("tiny" if options.simulate else "2.7B")
    options.batch = options.batch or (1 if options.simulate else 8)
    options.seq = options.seq or (32 if options.simulate else 2048)
    options.cases = options.cases or ("noopt,fp32-clip" if options.simulate else _DEFAULT_CASES)
    unknown = [name for name in options.cases.split(",") if name not in CASES]
    if unknown:
        parser.error(f"--cases: {', '.join(unknown)} unknown; known are {', '.join(CASES)}")
    return options


def _run(name: str, options: argparse.Namespace) -> dict[str, object]:
    """The case's measurements, or why there are none ("skipped" or "error")."""
    job = {key: value for key, value in vars(options).items() if key != "cases"} | {"case": name}
    worker = [sys.executable, str(Path(__file__).with_name("measure.py")), json.dumps(job)]
    header = {"benchmark": "offload", "case": name, "size": options.size}
    if options.options:
        header["options"] = options.options
    try:
        done = subprocess.run(worker, capture_output=True, text=True, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        return header | {"error": f"no result after {options.timeout:.0f} s"}
    sys.stderr.write(done.stderr[-4000:])
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return header | {"error": f"exit status {done.returncode}: {reason}"}
    return header | json.loads(lines[-1])


if __name__ == "__main__":
    sys.exit(main())

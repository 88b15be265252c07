#!/usr/bin/env python3
"""Compares the figures of two builds (or of two saved runs): one line per case and figure.

    python benchmarks/compare.py before.jsonl after.jsonl
    python benchmarks/compare.py build/old/benchmarks/bench_cpu_step \\
        build/bench/benchmarks/bench_cpu_step --repeat 3 -- --threads 8

Programs are run in turn, before and after alternating, so that a machine that gets slower slows
both down; the best of the repetitions counts. A ratio is after / before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

# Figures that describe a case rather than measure it.
_DESCRIPTIONS = {"elements", "tensors", "threads", "batch", "seq", "parameters", "tokens", "clip"}
# Units of which more is better; of all the others less is.
_MORE_IS_BETTER = ("gb_per_s", "gbps", "tokens_per_s", "of_ceiling", "of_copy")

Figures = dict[str, float]
Cases = dict[str, Figures]


def main() -> int:
    options = _parse()
    before: Cases = {}
    after: Cases = {}
    for _ in range(options.repeat):
        for source, cases in ((options.before, before), (options.after, after)):
            for case, figures in read_cases(_lines(source, options.arguments)):
                _keep_best(cases.setdefault(case, {}), figures)
    shared = [case for case in before if case in after]
    for case in before.keys() ^ after.keys():
        print(f"only in one of the two: {case}", file=sys.stderr)
    worse = 0
    for case in shared:
        worse += _print_case(case, before[case], after[case], options)
    if not shared:
        print("no case is in both", file=sys.stderr)
    return 1 if worse or not shared else 0


def read_cases(lines: Iterable[str]) -> Iterator[tuple[str, Figures]]:
    """(case, its measured figures) of every JSON line; other lines are passed over."""
    for line in lines:
        if not line.startswith("{"):
            continue
        names, figures = [], {}
        for key, value in _flatten(json.loads(line)):
            if isinstance(value, bool) or value is None:
                continue
            if isinstance(value, str) or key in _DESCRIPTIONS:
                names.append(str(value) if isinstance(value, str) else f"{key}={value}")
            else:
                figures[key] = float(value)
        yield " ".join(names), figures


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ratios between two benchmark runs.")
    parser.add_argument("before", type=Path, help="program, or file of JSON lines")
    parser.add_argument("after", type=Path)
    parser.add_argument("--repeat", type=int, default=1, help="runs of each program")
    parser.add_argument("--only", help="figures whose name contains this text")
    parser.add_argument("--limit", type=float, help="fail if a figure is this many times worse")
    parser.add_argument("arguments", nargs="*", help="after --: arguments of both programs")
    options = parser.parse_args()
    for source in (options.before, options.after):
        if not source.is_file():
            parser.error(f"{source} is no file; name a program or a file of JSON lines")
    return options


def _lines(source: Path, arguments: list[str]) -> list[str]:
    if source.suffix in (".json", ".jsonl") or not os.access(source, os.X_OK):
        return source.read_text().splitlines()
    command = [str(source.resolve()), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def _flatten(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, leaf) pairs; lists are left out, they hold details such as losses."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flatten(part, f"{name}.{key}" if name else str(key))
    elif not isinstance(value, list):
        yield name, value


def _keep_best(best: Figures, figures: Figures) -> None:
    for key, value in figures.items():
        choose = max if _is_better_higher(key) else min
        best[key] = choose(best.get(key, value), value)


def _is_better_higher(key: str) -> bool:
    return any(unit in key.lower() for unit in _MORE_IS_BETTER)


def _print_case(case: str, before: Figures, after: Figures, options: argparse.Namespace) -> int:
    """Prints the figures that both have; returns how many are worse than --limit allows."""
    worse = 0
    for key in before:
        if key not in after or not before[key] or (options.only and options.only not in key):
            continue
        ratio = after[key] / before[key]
        loss = 1 / ratio if _is_better_higher(key) and ratio else ratio
        is_worse = options.limit is not None and loss > options.limit
        worse += is_worse
        mark = "  WORSE" if is_worse else ""
        print(f"{case}  {key}  {before[key]:.6g}  {after[key]:.6g}  x{ratio:.3f}{mark}")
    return worse


if __name__ == "__main__":
    sys.exit(main())

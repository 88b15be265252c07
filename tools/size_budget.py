"""Keeps files and functions short.

Warns about files over 300 lines and functions over 60, fails for files over 500. Reads the last
build's log too, if there is one, and warns about files that take long to compile. Functions are
found by their indentation, which clang-format guarantees.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FOLDERS = (
    "include",
    "quant",
    "cpu_kernels",
    "gpu_kernels",
    "offload",
    "python",
    "tests",
    "benchmarks",
    "examples",
    "tools",
    "cmake",
)
FILE_WARN, FILE_FAIL = 300, 500
FUNCTION_WARN = 60
COMPILE_WARN_S = 20

NOT_A_FUNCTION = re.compile(
    r"^\s*(namespace|class|struct|union|enum|extern|if|for|while|switch|do|else|try|catch|#|//)"
)


def statement_start(lines: list[str], index: int) -> int:
    """The first line of the declaration that line `index` ends."""
    ends = (";", "}", "{", ":")
    while index > 0:
        before = lines[index - 1].strip()
        if not before or before.endswith(ends) or before.startswith(("#", "//")):
            break
        index -= 1
    return index


def cpp_functions(lines: list[str]) -> list[tuple[int, int]]:
    """(first line, length) of each function body in clang-formatted C++."""
    found = []
    index = 0
    while index < len(lines):
        if lines[index].rstrip().endswith("{"):
            start = statement_start(lines, index)
            declaration = " ".join(lines[start : index + 1])
            if ")" in declaration and not NOT_A_FUNCTION.match(lines[start]):
                indent = len(lines[start]) - len(lines[start].lstrip())
                closing = re.compile(rf"^ {{{indent}}}\}}")
                rest = range(index + 1, len(lines))
                end = next((i for i in rest if closing.match(lines[i])), index)
                found.append((start + 1, end - start + 1))
                index = end
        index += 1
    return found


def python_functions(text: str) -> list[tuple[int, int]]:
    nodes = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        (node.lineno, node.end_lineno - node.lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, nodes)
    ]


def source_files() -> list[Path]:
    suffixes = {".h", ".cc", ".cu", ".cuh", ".py", ".cmake", ".sh"}
    roots = (ROOT / folder for folder in FOLDERS)
    return sorted(
        path
        for root in roots
        for path in root.rglob("*")
        if path.is_file()
        and (path.suffix in suffixes or path.parent == ROOT / "tools")
        and "__pycache__" not in path.parts
    )


def slow_files() -> list[tuple[float, str]]:
    """(seconds, object) of the compilations without libtorch in the last dev build."""
    log = ROOT / "build/dev/.ninja_log"
    if not log.exists():
        return []
    slow = {}
    for line in log.read_text().splitlines()[1:]:
        start, end, _, output, _ = line.split("\t")
        seconds = (int(end) - int(start)) / 1000
        if output.endswith(".o") and not re.search(r"torch|python|examples", output):
            slow[output] = seconds
    return sorted((s, o) for o, s in slow.items() if s > COMPILE_WARN_S)


def main() -> int:
    failures = 0
    files = source_files()
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text()
        lines = text.splitlines()
        if len(lines) > FILE_FAIL:
            failures += 1
            print(f"error: {name}: {len(lines)} lines, at most {FILE_FAIL}")
        elif len(lines) > FILE_WARN:
            print(f"warning: {name}: {len(lines)} lines, better {FILE_WARN}")
        functions = (
            python_functions(text)
            if path.suffix == ".py"
            else (cpp_functions(lines) if path.suffix in {".h", ".cc", ".cu", ".cuh"} else [])
        )
        for line, length in functions:
            if length > FUNCTION_WARN:
                print(f"warning: {name}:{line}: function of {length} lines, better {FUNCTION_WARN}")
    for seconds, output in slow_files():
        print(f"warning: {output}: compiled in {seconds:.0f} s, better {COMPILE_WARN_S}")
    print(f"size: {len(files)} files, {failures} over the limit")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

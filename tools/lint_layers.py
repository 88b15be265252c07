"""Checks every #include against the table of allowed includes.

The layers, and which outside library may be used where, are the tables below; docs/HACKING.md
draws them. Nothing else lives here: what a file contains beyond its includes is not looked at.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A folder may include its own headers and those of the folders and files listed here.
LAYERS = {
    "include": {"include"},
    "quant": {"include", "quant"},
    "cpu_kernels": {"include", "quant", "cpu_kernels"},
    "gpu_kernels": {"include", "quant", "gpu_kernels"},
    "offload": {"include", "quant", "cpu_kernels", "gpu_kernels", "offload"},
    "python": {
        "include",
        "offload/torch",
        "offload/planning/machine.h",
        "cpu_kernels/targets.h",
        "python",
    },
}

# Outside libraries: how their headers are named, and the files that may include them.
LIBRARIES = {
    "Highway": (r"hwy/", r"quant/([^/]*(\.cc|-inl\.h)|dispatch\.h)$|cpu_kernels/"),
    "oneTBB": (r"(tbb|oneapi)/", r"cpu_kernels/parallel\.cc$"),
    "xsimd": (r"xsimd/", r"cpu_kernels/gradient_math\.cc$"),
    "libtorch": (
        r"(torch|ATen|c10|caffe2)/",
        r"offload/torch/|include/outboard/torch/|python/[^/]*\.(cc|h)$",
    ),
    "CUDA": (
        r"(cuda|cub|cooperative_groups|curand|thrust|nvtx3|nv/)",
        r"gpu_kernels/(.*\.(cu|cuh)$|cuda_)|offload/devices/cuda_"
        r"|quant/[^/]*\.cuh$|include/outboard/hd\.h$",
    ),
    "zlib": (r"zlib\.h$", r"offload/"),
    "the operating system": (
        r"(sys|linux)/|(fcntl|unistd|sched|pthread|dlfcn)\.h$",
        r"offload/|cpu_kernels/parallel\.cc$",
    ),
}

# Narrower than the folder's own row.
EXCEPTIONS = [
    (
        "gpu_kernels/device/",
        {"include", "gpu_kernels/device"},
        "includes device/ and include only",
    ),
    (
        "offload/checkpoint/",
        {"include", "offload/checkpoint"},
        "knows files, zip and pickle, and nothing of optimizers",
    ),
    (
        "offload/memory/",
        {"include", "offload/memory"},
        "knows bytes and what a device can do, and nothing of parameters",
    ),
    (
        "offload/devices/",
        {"include", "quant", "cpu_kernels", "gpu_kernels", "offload/devices"},
        "includes devices/, kernels and include only",
    ),
]

# Made by cmake/outboard_catalogue.cmake, with the folder that each stands for.
GENERATED = {
    "outboard_rules.h": "include",
    "outboard_codecs.h": "quant",
    "outboard_device_codecs.cuh": "quant",
}

INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]')


def folder_of(target: str) -> str | None:
    """The project folder that an include path points into, or None for outside headers."""
    if target in GENERATED:
        return GENERATED[target]
    if target.startswith("outboard/"):
        return "include"
    if (ROOT / target).is_file():
        return target.rsplit("/", 1)[0]
    return None


def inside(folder: str, allowed: set[str]) -> bool:
    return any(folder == a or folder.startswith(a + "/") for a in allowed)


def problem_with(file: str, quoted: bool, target: str) -> str | None:
    """Why `file` may not include `target`, or None when it may."""
    folder = folder_of(target)
    if folder is None:
        for library, (header, allowed) in LIBRARIES.items():
            if re.match(header, target):
                return None if re.match(allowed, file) else f"{library} may not be used here"
        return "no such header; name it from the repository root" if quoted else None
    layer = file.split("/", 1)[0]
    if not inside(folder, LAYERS[layer]) and target not in LAYERS[layer]:
        return f"{layer} may include {', '.join(sorted(LAYERS[layer]))} only"
    if layer == "offload" and target.endswith((".cuh", ".cu", "-inl.h")):
        return "offload sees the kernels' host headers (*.h) only"
    if folder.startswith("offload/torch") and layer == "offload" and "/torch/" not in file:
        return "the core knows no framework: offload/torch may include offload, not the reverse"
    face = LIBRARIES["libtorch"][1] + r"|include/outboard/outboard\.h$"
    if target.startswith("outboard/torch/") and not re.match(face, file):
        return "the libtorch face is for offload/torch and python"
    for prefix, allowed, why in EXCEPTIONS:
        if file.startswith(prefix) and not inside(folder, allowed):
            return why
    return None


def sources() -> list[Path]:
    suffixes = {".h", ".cc", ".cu", ".cuh"}
    return sorted(
        path
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*")
        if path.suffix in suffixes and path.is_file()
    )


def main() -> int:
    problems = 0
    files = sources()
    for path in files:
        file = path.relative_to(ROOT).as_posix()
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            reason = match and problem_with(file, match[1] == '"', match[2])
            if reason:
                problems += 1
                print(f'{file}:{number}: includes "{match[2]}": {reason}')
    print(f"layers: {len(files)} files, {problems} problems")
    return 1 if problems or not files else 0


if __name__ == "__main__":
    sys.exit(main())

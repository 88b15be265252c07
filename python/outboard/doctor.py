"""What `outboard doctor` finds out about an environment: versions, devices, memory, limits, cores.

Each check is a function that returns rows; files of the system are read below a root that tests
replace. Nothing is printed or changed here.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .plan import Machine, measured_machine

OK, WARNING, ERROR = "ok", "warning", "error"
GIB = 1 << 30
_SLOW_LINK = 10e9  # PCIe 3 with 16 lanes reaches 12 GB/s
_SLOW_TARGETS = ("SCALAR", "EMU128", "SSE2", "SSSE3", "SSE4")


@dataclass(frozen=True)
class Row:
    """One fact: what it means for outboard, and what to do if it is not as it should be."""

    name: str
    value: str
    status: str = OK
    advice: str = ""


def _text(path: Path) -> str:
    """The stripped content, or "" where there is no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def versions() -> Iterator[Row]:
    info = dict(torch.ops.outboard.build_info())
    yield Row("outboard", f"{info['version']}, CUDA {info['cuda']}")
    yield Row("Python, torch", f"{platform.python_version()}, {torch.__version__}")
    target = info["simd_target"]
    is_slow = target in _SLOW_TARGETS
    yield Row(
        "SIMD target",
        target,
        WARNING if is_slow else OK,
        "updates are slow without AVX2 or newer; prefer resident or streamed state"
        if is_slow
        else "",
    )
    if torch.cuda.is_available() and info["cuda"] == "none":
        yield Row(
            "CUDA kernels",
            "not in this build",
            ERROR,
            "install nvcc of torch's CUDA version and build outboard again",
        )


def _cuda_driver(root: Path) -> str:
    """The driver's version, and the newest CUDA that it runs."""
    match = re.search(r"Module.*?(\d+\.[\d.]+)", _text(root / "proc/driver/nvidia/version"))
    number = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except OSError:
        return "none"
    newest = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return f"{match[1] if match else 'unknown'}, for CUDA up to {newest}"


def gpus(root: Path) -> Iterator[Row]:
    runtime = torch.version.cuda or "none"
    if not torch.cuda.is_available():
        yield Row(
            "GPU",
            f"none (torch's CUDA runtime: {runtime})",
            WARNING,
            "parameters in host memory are updated in place; for a GPU, check the driver and "
            "CUDA_VISIBLE_DEVICES",
        )
        return
    yield Row("CUDA", f"runtime {runtime}, driver {_cuda_driver(root)}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        is_used = free < 0.9 * total
        yield Row(
            f"GPU {index}",
            f"{properties.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
            + _numa_of_gpu(root, properties),
            WARNING if is_used else OK,
            "others use its memory; end them, or plan with what is left" if is_used else "",
        )


def _numa_of_gpu(root: Path, properties: object) -> str:
    try:
        bus = (
            f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}"
            f":{properties.pci_device_id:02x}.0"
        )
    except AttributeError:
        return ""
    node = _text(root / "sys/bus/pci/devices" / bus / "numa_node")
    return f", NUMA node {node}" if node.isdecimal() else ""


def lock_limit() -> Iterator[Row]:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        yield Row("locked memory", "unlimited")
        return
    can_raise = hard == resource.RLIM_INFINITY
    yield Row(
        "locked memory",
        f"{soft / GIB:.2f} GiB (RLIMIT_MEMLOCK)",
        WARNING,
        "pinning may be refused and copies then block; "
        + (
            "run `ulimit -l unlimited` first"
            if can_raise
            else "raise memlock in limits.conf, or start the container with --ulimit memlock=-1"
        ),
    )


def huge_pages(root: Path) -> Iterator[Row]:
    text = _text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    chosen = text[text.find("[") + 1 : text.find("]")] if "[" in text else "unknown"
    is_on = chosen in ("always", "madvise")
    yield Row(
        "transparent huge pages",
        chosen,
        OK if is_on else WARNING,
        ""
        if is_on
        else "construction and updates are faster with madvise in "
        "/sys/kernel/mm/transparent_hugepage/enabled",
    )


def numa(root: Path) -> Iterator[Row]:
    nodes = sorted((root / "sys/devices/system/node").glob("node[0-9]*"))
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    used = [n.name for n in nodes if usable & _cores(_text(n / "cpulist"))]
    is_spread = len(used) > 1
    yield Row(
        "NUMA nodes",
        f"{max(len(nodes), 1)}, of these {max(len(used), 1)} used",
        WARNING if is_spread else OK,
        "keep process and memory beside the GPU: numactl --cpunodebind=N --membind=N"
        if is_spread
        else "",
    )


def _cores(ranges: str) -> set[int]:
    """{0, 1, 2, 8} from "0-2,8"."""
    cores: set[int] = set()
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores


def cgroup_folders(root: Path) -> list[Path]:
    """The process's control groups, innermost first (version 2)."""
    line = next(
        (text for text in _text(root / "proc/self/cgroup").splitlines() if text.startswith("0::")),
        "0::/",
    )
    top = root / "sys/fs/cgroup"
    folder = top / line.removeprefix("0::").strip("/")
    return [f for f in (folder, *folder.parents) if f == top or top in f.parents]


def cpu_quota(root: Path) -> float | None:
    """Cores' worth of time that control groups allow; None: no limit."""
    quotas = []
    for folder in cgroup_folders(root):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def cores(root: Path) -> Iterator[Row]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = int(torch.ops.outboard.update_threads(0))
    quota = cpu_quota(root)
    is_short = quota is not None and quota < threads
    limit = "" if quota is None else f", a quota of {quota:g}"
    yield Row(
        "cores",
        f"{os.cpu_count()}, {usable} usable{limit}; updates use {threads} threads",
        WARNING if is_short else OK,
        f"threads beyond the quota are stopped: give threads={max(1, int(quota))}"
        if is_short
        else "",
    )


def memory_limit(root: Path) -> int | None:
    """Bytes that control groups leave to the process; None: no limit."""
    left = []
    for folder in cgroup_folders(root):
        limit = _text(folder / "memory.max")
        used = _text(folder / "memory.current") or "0"
        if limit.isdecimal() and used.isdecimal():
            left.append(int(limit) - int(used))
    limit = _text(root / "sys/fs/cgroup/memory/memory.limit_in_bytes")  # version 1
    if limit.isdecimal() and int(limit) < 1 << 60:
        used = _text(root / "sys/fs/cgroup/memory/memory.usage_in_bytes") or "0"
        left.append(int(limit) - int(used))
    return max(0, min(left)) if left else None


def free_memory(root: Path) -> int | None:
    """Bytes of host memory that can be had: what is available, or what control groups leave."""
    lines = dict(
        line.split(":", 1) for line in _text(root / "proc/meminfo").splitlines() if ":" in line
    )
    known = [int(lines["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in lines else []
    limit = memory_limit(root)
    return min([*known, *([] if limit is None else [limit])], default=None)


def memory(root: Path) -> Iterator[Row]:
    free = free_memory(root)
    yield Row("host memory", "unknown" if free is None else f"{free / GIB:.1f} GiB to be had")
    limit = memory_limit(root)
    is_limit = limit is not None and limit == free
    yield Row(
        "control group's memory",
        "no limit" if limit is None else f"{limit / GIB:.1f} GiB left",
        WARNING if is_limit else OK,
        "beyond it the process is killed: plan with --host-memory, or raise the limit"
        if is_limit
        else "",
    )


def link(machine: Machine) -> Iterator[Row]:
    if machine.link_down > 0:
        is_slow = min(machine.link_down, machine.link_up) < _SLOW_LINK
        yield Row(
            "link",
            f"{machine.link_down / 1e9:.1f} GB/s down, {machine.link_up / 1e9:.1f} up, "
            f"{machine.link_duplex / 1e9:.1f} each way at once",
            WARNING if is_slow else OK,
            "slower than PCIe 4 with 16 lanes: check the slot and whether memory could be pinned"
            if is_slow
            else "",
        )
    speeds = "; ".join(
        f"{name}: {seconds * 1e9:.2f} ns/element" for name, seconds in machine.updates.items()
    )
    yield Row(
        "host update",
        f"{machine.host_bandwidth / 1e9:.1f} GB/s on {machine.threads} threads; {speeds}",
    )
    if machine.device_bandwidth > 0:
        yield Row("device memory", f"{machine.device_bandwidth / 1e9:.0f} GB/s copied")


def examine(
    root: Path = Path("/"), is_measured: bool = True, simulate: tuple[int, ...] = ()
) -> tuple[list[Row], Machine | None]:
    """All rows, and the machine as the planner takes it if it was measured (2 seconds)."""
    rows = [
        *versions(),
        *gpus(root),
        *cores(root),
        *numa(root),
        *memory(root),
        *huge_pages(root),
        *lock_limit(),
    ]
    if not is_measured:
        return rows, None
    try:
        machine = measured_machine(
            0 if torch.cuda.is_available() and not simulate else None, simulate=simulate
        )
    except RuntimeError as error:
        return [*rows, Row("measurement", str(error), ERROR, "mend this first")], None
    return [*rows, *link(machine)], machine

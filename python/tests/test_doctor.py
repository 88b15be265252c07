"""What `outboard doctor` says about systems good and bad, whose files a test writes."""

import json
import resource

import pytest
import torch
from outboard import doctor

click_testing = pytest.importorskip("click.testing")
pytest.importorskip("rich")

from outboard.cli import COMMANDS, main  # noqa: E402


def run(*arguments):
    return click_testing.CliRunner().invoke(main, list(arguments))


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def only(rows):
    (row,) = rows
    return row


@pytest.fixture
def system(tmp_path):
    """A system without complaints: 64 GiB available, one node, no limits."""
    write(tmp_path, "proc/meminfo", "MemTotal: 99999999 kB\nMemAvailable: 67108864 kB\n")
    write(tmp_path, "proc/self/cgroup", "0::/jobs/mine\n")
    write(tmp_path, "sys/fs/cgroup/jobs/mine/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/jobs/mine/cpu.max", "max 100000\n")
    write(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    write(tmp_path, "sys/devices/system/node/node0/cpulist", "0-4095\n")
    return tmp_path


def test_a_good_system_has_no_complaints(system):
    for check in (doctor.cores, doctor.numa, doctor.memory, doctor.huge_pages):
        for row in check(system):
            assert (row.status, row.advice) == (doctor.OK, ""), row
    assert doctor.free_memory(system) == 64 << 30


def test_a_system_without_any_file_is_no_error(tmp_path):
    rows, _ = doctor.examine(tmp_path, is_measured=False)
    assert {row.status for row in rows} <= {doctor.OK, doctor.WARNING}
    assert doctor.free_memory(tmp_path) is None


def test_the_tightest_control_group_counts(system):
    write(system, "sys/fs/cgroup/jobs/mine/memory.max", str(40 << 30))
    write(system, "sys/fs/cgroup/jobs/memory.max", str(24 << 30))
    write(system, "sys/fs/cgroup/jobs/memory.current", str(4 << 30))
    assert doctor.memory_limit(system) == 20 << 30
    assert doctor.free_memory(system) == 20 << 30
    assert [row.status for row in doctor.memory(system)] == [doctor.OK, doctor.WARNING]


def test_version_1_control_groups_count_too(system):
    write(system, "sys/fs/cgroup/memory/memory.limit_in_bytes", str(8 << 30))
    assert doctor.memory_limit(system) == 8 << 30
    write(system, "sys/fs/cgroup/memory/memory.limit_in_bytes", str((1 << 63) - 4096))
    assert doctor.memory_limit(system) is None


def test_a_quota_below_the_threads_is_a_warning(system):
    write(system, "sys/fs/cgroup/jobs/cpu.max", "50000 100000\n")
    row = only(doctor.cores(system))
    assert row.status == doctor.WARNING
    assert "a quota of 0.5" in row.value
    assert "threads=1" in row.advice


def test_several_nodes_are_a_warning_only_if_used(system, monkeypatch):
    write(system, "sys/devices/system/node/node0/cpulist", "0-3,8\n")
    write(system, "sys/devices/system/node/node1/cpulist", "4-7\n")
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0, 8})
    assert only(doctor.numa(system)).status == doctor.OK
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0, 7})
    row = only(doctor.numa(system))
    assert (row.status, row.value) == (doctor.WARNING, "2, of these 2 used")


def test_huge_pages_that_are_off_are_a_warning(system):
    write(system, "sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n")
    row = only(doctor.huge_pages(system))
    assert (row.value, row.status) == ("never", doctor.WARNING)


@pytest.mark.parametrize(
    ("limits", "status", "advice"),
    [
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), doctor.OK, ""),
        ((8 << 20, resource.RLIM_INFINITY), doctor.WARNING, "ulimit -l unlimited"),
        ((8 << 20, 8 << 20), doctor.WARNING, "limits.conf"),
    ],
)
def test_lock_limit(monkeypatch, limits, status, advice):
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: limits)
    row = only(doctor.lock_limit())
    assert row.status == status
    assert advice in row.advice


def test_a_slow_link_is_a_warning():
    fast = doctor.Machine(55e9, 55e9, 44e9, 140e9, 4000e9, threads=14, updates={"x": 1e-10})
    slow = doctor.Machine(3e9, 55e9, 3e9, 140e9)
    assert [row.status for row in doctor.link(fast)] == [doctor.OK] * 3
    assert next(doctor.link(slow)).status == doctor.WARNING


class _Properties:
    name = "H200"
    pci_domain_id, pci_bus_id, pci_device_id = 0, 0x1B, 0


class _Driver:
    @staticmethod
    def cuDriverGetVersion(target):
        target._obj.value = 13010


def test_a_gpu_is_described(system, monkeypatch):
    write(
        system,
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n",
    )
    write(system, "sys/bus/pci/devices/0000:1b:00.0/numa_node", "1\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: _Properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100 << 30, 139 << 30))
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda _: _Driver)
    cuda, gpu = doctor.gpus(system)
    assert cuda.value.endswith("driver 580.65.06, for CUDA up to 13.1")
    assert gpu.value == "H200, 100.0 of 139.0 GiB free, NUMA node 1"
    assert gpu.status == doctor.WARNING


def test_a_build_without_kernels_beside_a_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    info = {"version": "1", "cuda": "none", "simd_target": "SSE4"}
    monkeypatch.setattr(torch.ops.outboard, "build_info", lambda: info)
    status = {row.name: row.status for row in doctor.versions()}
    assert status["CUDA kernels"] == doctor.ERROR
    assert status["SIMD target"] == doctor.WARNING


def test_the_command_prints_a_table_and_json():
    result = run("doctor", "--simulate")
    assert result.exit_code == 0, result.output
    for text in ("outboard", "SIMD target", "cores", "NUMA nodes", "locked memory", "link"):
        assert text in result.output
    content = json.loads(run("doctor", "--simulate", "--json").output)
    assert {"name", "value", "status", "advice"} == set(content["rows"][0])
    assert content["machine"]["link_down"] > 0


def test_without_measuring_it_takes_no_time():
    content = json.loads(run("doctor", "--no-measure", "--json").output)
    assert content["machine"] is None
    assert "host update" not in {row["name"] for row in content["rows"]}


def test_every_command_loads_and_has_help():
    for name in COMMANDS:
        result = run(name, "--help")
        assert result.exit_code == 0, result.output
    assert run("nonsense").exit_code == 2

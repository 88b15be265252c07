"""Host memory: refused with numbers when there is none, and flat while saving and loading. Each
test is a process of its own, so that limits and peaks are its own."""

import subprocess

import torch
from support import SIMULATED
from test_checkpoint import run_python

PRELUDE = """
import resource, sys, torch, outboard
torch.set_num_threads(2)

def optimizer_for(elements):
    p = torch.nn.Parameter(torch.zeros(elements))
    return p, outboard.CPUOffloadOptimizer([("big", p)], simulate=[0, 0, 0], threads=1)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
"""


def output_of(code, *arguments):
    process = run_python(PRELUDE + code, arguments=arguments, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return output


def test_out_of_host_memory_says_how_much_and_the_process_goes_on():
    output = output_of("""
p = torch.nn.Parameter(torch.zeros(1 << 26))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), resource.RLIM_INFINITY))
try:
    outboard.CPUOffloadOptimizer([("big", p)], simulate=[0, 0, 0], threads=1)
except torch.OutOfMemoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
p, optimizer = optimizer_for(1 << 20)
p.sum().backward()
optimizer.step()
optimizer.synchronize()
print("after", p[0].item() < 0)
""")
    message, after = output.strip().splitlines()
    assert "MiB" in message or "GiB" in message
    assert "asked" in message or "on top of" in message
    assert after == "after True"


def test_saving_and_loading_need_no_second_copy(tmp_path):
    output = output_of(
        """
p, optimizer = optimizer_for(1 << 24)
p.sum().backward()
optimizer.step()
optimizer.synchronize()
p.grad = None
before = peak()
optimizer.save(sys.argv[1])
saved = peak()
optimizer.load(sys.argv[1])
print(saved - before, peak() - saved)
""",
        tmp_path / "state.pt",
    )
    state = 2 * 4 << 24
    saving, loading = map(int, output.split())
    assert saving < state / 2
    # The file's own pages count while they are mapped.
    assert loading < state * 1.5


def test_memory_of_the_table_is_what_is_held():
    for dtype, master, expected in (
        (torch.bfloat16, "auto", 2 + 2 + 8),
        (torch.bfloat16, "split8", 2 + 1 + 8),
        (torch.bfloat16, "none", 2 + 8),
        (torch.bfloat16, "fp32", 2 + 4 + 8),
        (torch.float16, "auto", 2 + 4 + 8),
        (torch.float32, "auto", 4 + 8),
    ):
        p = torch.nn.Parameter(torch.zeros(1 << 18, dtype=dtype))
        memory = SIMULATED.optimizer([p], master=master).stats().memory
        held = memory.host_weights + memory.host_masters + memory.host_state
        assert expected <= held / p.numel() <= 1.05 * expected

"""A process that is killed in the middle of a step loses nothing that was saved: with every
schedule and placement the run that goes on has the bits of one that was never killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import outboard
import pytest
from support import assert_same

SCRIPT = Path(__file__).with_name("killed_training.py")
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def run(path, device, schedule, killed_at=0, killed_in="step"):
    arguments = [str(path), device, schedule, "7", str(killed_at), killed_in]
    # Without it a deterministic cuBLAS refuses to multiply.
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment
    )


@pytest.fixture(scope="module", params=["cpu", CUDA])
def uninterrupted(request, tmp_path_factory):
    """A device and the end of a run there that is not killed; it is the same for all schedules."""
    path = tmp_path_factory.mktemp("whole") / "run.pt"
    done = run(path, request.param, "at_step")
    assert done.returncode == 0, done.stderr
    return request.param, outboard.load(f"{path}.end")


@pytest.mark.parametrize(
    ("schedule", "killed_in"),
    [
        ("at_step", "between"),
        ("next_forward", "step"),
        ("in_backward", "backward"),
        ("in_backward", "between"),  # updates were made tentatively
    ],
)
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path, uninterrupted, schedule, killed_in):
    device, whole = uninterrupted
    path = tmp_path / "run.pt"
    killed = run(path, device, schedule, killed_at=5, killed_in=killed_in)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert path.exists()
    resumed = run(path, device, schedule)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(outboard.load(f"{path}.end"), whole)

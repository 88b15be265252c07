"""Fixtures of all Python tests: where parameters live. No tests here."""

import pytest
import torch
from support import CPU, CUDA, SIMULATED


def pytest_configure(config):
    torch.set_num_threads(2)


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(skip)


@pytest.fixture(
    params=[CPU, SIMULATED, pytest.param(CUDA, marks=pytest.mark.gpu)], ids=lambda p: p.name
)
def place(request):
    """CPU parameters updated in place, CPU parameters treated as if on a device, CUDA."""
    return request.param


@pytest.fixture(params=[SIMULATED, pytest.param(CUDA, marks=pytest.mark.gpu)], ids=lambda p: p.name)
def offloaded(request):
    """The places from which gradients travel."""
    return request.param


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() is torch.float32

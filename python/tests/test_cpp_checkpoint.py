"""Checkpoints of the C++ face and of this package are one format: each reads the other's files.

Uses the program checkpoint_tool, which is built with the C++ tests. Without it these are skipped,
but not in continuous integration, which builds it.
"""

import os
import subprocess
from pathlib import Path

import outboard
import pytest
import torch


class OwnRMSprop(torch.optim.RMSprop):
    """A class without a native rule, which torch's C++ library has too."""


CLASSES = {
    "AdamW": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "Adam": (torch.optim.Adam, {"lr": 1e-2, "amsgrad": True}),
    "SGD": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
    "Lion": (outboard.Lion, {"lr": 1e-2, "weight_decay": 0.1}),
    "Adagrad": (
        torch.optim.Adagrad,
        {"lr": 1e-2, "lr_decay": 0.1, "initial_accumulator_value": 0.5},
    ),
    "RMSprop": (torch.optim.RMSprop, {"lr": 1e-2, "centered": True, "momentum": 0.5}),
    "AdEMAMix": (outboard.AdEMAMix, {"lr": 1e-2, "t_alpha": 4, "t_beta3": 4}),
    "LAMB": (outboard.LAMB, {"lr": 1e-2, "weight_decay": 0.1, "max_unorm": 0.5}),
    "LARS": (outboard.LARS, {"lr": 1.0, "weight_decay": 0.1}),
    "Generic": (OwnRMSprop, {"lr": 1e-2}),
}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CASES = [(name, "fp32") for name in CLASSES] + [("AdamW", "bf16"), ("SGD", "bf16")]
# State of 8 bits: the tool takes the suffix off, and then that of factored second moments.
CASES += [("AdamW8bit", "bf16"), ("Lion8bit", "fp32")]
CASES += [("AdamWFactored", "fp32"), ("AdamWFactored8bit", "bf16")]


def find_tool() -> Path | None:
    library = Path(outboard.__file__).with_name("liboutboard.so").resolve()
    tool = library.parent / "tests" / "checkpoint_tool"
    return tool if tool.exists() else None


pytestmark = pytest.mark.skipif(
    find_tool() is None and "CI" not in os.environ, reason="checkpoint_tool is not built"
)


def run_tool(name: str, dtype: str, first: int, last: int, source: object, target: Path):
    """The flat fp32 weights after step `last`."""
    command = [find_tool(), name, dtype, first, last, source, target]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.tensor([float(line) for line in done.stdout.split()])


def pattern(shape, start: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return (((torch.arange(count) * 7 + start * 5) % 13 - 6).float() / 8).view(shape)


class Training:
    """What checkpoint_tool does, through this package."""

    def __init__(self, name: str, dtype: str):
        kind = name.removesuffix("8bit")
        cls, options = CLASSES[kind.removesuffix("Factored")]
        options = {"state_format": "fp32" if kind == name else "8bit", **options}
        if kind.endswith("Factored"):
            options["factored_second_moment"] = True
        self.parameters = [
            torch.nn.Parameter(pattern((17, 33), 0).to(TYPES[dtype])),
            torch.nn.Parameter(pattern((300,), 1).to(TYPES[dtype])),
        ]
        self.optimizer = outboard.CPUOffloadOptimizer(
            self.parameters,
            cls,
            min_offload_elements=0,
            min_quantized_elements=0,
            simulate=[0, 0, 0],
            **options,
        )

    def run(self, first: int, last: int) -> None:
        for step in range(first, last):
            for number, parameter in enumerate(self.parameters):
                parameter.grad = pattern(parameter.shape, 3 * step + number).to(parameter.dtype)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.optimizer.synchronize()

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().float().flatten() for p in self.parameters])


def assert_same_state(theirs: dict, ours: dict) -> None:
    assert theirs["state"].keys() == ours["state"].keys()
    for index, entry in ours["state"].items():
        assert theirs["state"][index].keys() == entry.keys()
        for key, value in entry.items():
            torch.testing.assert_close(theirs["state"][index][key], value, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_cpp_writes_what_python_writes(name, dtype, tmp_path):
    training = Training(name, dtype)
    training.run(0, 3)
    weights = run_tool(name, dtype, 0, 3, "-", tmp_path / "cpp.pt")
    assert torch.equal(weights, training.weights())
    theirs = torch.load(tmp_path / "cpp.pt", weights_only=True)
    ours = training.optimizer.state_dict(compressed=True)
    assert_same_state(theirs, ours)
    assert theirs["outboard"].keys() == ours["outboard"].keys()
    for group, own in zip(theirs["param_groups"], ours["param_groups"], strict=True):
        for key in group:
            assert group[key] == own[key], key


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_python_resumes_a_cpp_run(name, dtype, tmp_path):
    run_tool(name, dtype, 0, 3, "-", tmp_path / "three.pt")
    training = Training(name, dtype)
    training.run(0, 3)
    training.optimizer.load(tmp_path / "three.pt")
    training.run(3, 6)
    weights = run_tool(name, dtype, 0, 6, "-", tmp_path / "six.pt")
    assert torch.equal(weights, training.weights())


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_cpp_resumes_a_python_run(name, dtype, tmp_path):
    training = Training(name, dtype)
    training.run(0, 3)
    training.optimizer.save(tmp_path / "three.pt")
    training.run(3, 6)
    weights = run_tool(name, dtype, 3, 6, tmp_path / "three.pt", tmp_path / "six.pt")
    assert torch.equal(weights, training.weights())
    theirs = torch.load(tmp_path / "six.pt", weights_only=True)
    assert_same_state(theirs, training.optimizer.state_dict(compressed=True))


def test_cpp_reads_torchs_own_state_dict(tmp_path):
    parameters = [torch.nn.Parameter(pattern((17, 33), 0)), torch.nn.Parameter(pattern((300,), 1))]
    plain = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    for step in range(3):
        for number, parameter in enumerate(parameters):
            parameter.grad = pattern(parameter.shape, 3 * step + number)
        plain.step()
    torch.save(plain.state_dict(), tmp_path / "torch.pt")
    run_tool("AdamW", "fp32", 3, 3, tmp_path / "torch.pt", tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert_same_state(again, plain.state_dict())


def test_torch_reads_a_cpp_checkpoint(tmp_path):
    run_tool("AdamW", "fp32", 0, 3, "-", tmp_path / "cpp.pt")
    parameters = [torch.nn.Parameter(torch.zeros(17, 33)), torch.nn.Parameter(torch.zeros(300))]
    plain = torch.optim.AdamW(parameters)
    saved = torch.load(tmp_path / "cpp.pt", weights_only=True)
    plain.load_state_dict(saved)
    assert plain.param_groups[0]["lr"] == 1e-2
    assert torch.equal(plain.state[parameters[0]]["exp_avg"], saved["state"][0]["exp_avg"])
    parameters[0].grad = torch.ones(17, 33)
    plain.step()

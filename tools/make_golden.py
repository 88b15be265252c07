"""Recomputes tests/golden/torch.safetensors with PyTorch's CPU optimizers.

The file holds the inputs (p0, g1 ... g5), the arguments (JSON in its metadata) and what PyTorch
made of them (p1 ... p5 and every state). This program reads inputs and arguments, runs PyTorch
again and compares every array bit by bit; with --write it stores the new results instead. Fused
kernels must agree anywhere; the single-tensor paths take their square root from the math library of
the machine, so there the last bit of a parameter may differ (--strict counts those too). bf16
arrays are stored as their 16-bit patterns.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "torch.safetensors"


def to_torch(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().clone()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def run_case(name: str, case: dict, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Steps one optimizer from p0 through the gradients; returns inputs and results by name."""
    arguments = json.loads(case["args"])
    if "betas" in arguments:
        arguments["betas"] = tuple(arguments["betas"])
    parameter = torch.nn.Parameter(to_torch(inputs[f"{name}/p0"]))
    optimizer = getattr(torch.optim, case["class"])([parameter], **arguments)
    arrays = {f"{name}/p0": inputs[f"{name}/p0"]}
    for step in range(1, case["steps"] + 1):
        arrays[f"{name}/g{step}"] = inputs[f"{name}/g{step}"]
        parameter.grad = to_torch(inputs[f"{name}/g{step}"])
        optimizer.step()
        arrays[f"{name}/p{step}"] = to_numpy(parameter)
        for key, value in optimizer.state[parameter].items():
            if key != "step" and isinstance(value, torch.Tensor):
                arrays[f"{name}/{key}{step}"] = to_numpy(value)
    return arrays


def differing_elements(old: np.ndarray | None, new: np.ndarray) -> int:
    if old is None or old.shape != new.shape or old.dtype != new.dtype:
        return new.size
    width = f"u{new.dtype.itemsize}"
    return int(np.count_nonzero(old.view(width) != new.view(width)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=GOLDEN)
    parser.add_argument("--write", action="store_true", help="store what PyTorch gives now")
    parser.add_argument("--strict", action="store_true", help="unfused cases must agree too")
    options = parser.parse_args()
    torch.set_num_threads(1)

    with safe_open(options.file, "np") as file:
        metadata = file.metadata()
        old = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    cases = {key: json.loads(text) for key, text in metadata.items() if text.startswith("{")}

    new: dict[str, np.ndarray] = {}
    failures = 0
    for name, case in cases.items():
        arrays = run_case(name, case, old)
        counts = {key: differing_elements(old.get(key), value) for key, value in arrays.items()}
        differences = {key: count for key, count in counts.items() if count}
        is_fused = json.loads(case["args"]).get("fused", False)
        failures += bool(differences) and (is_fused or options.strict)
        print(f"{name}: {len(arrays)} arrays, differing elements: {differences or 0}")
        new.update(arrays)
    missing = sorted(set(old) - set(new))
    if missing:
        print(f"not made any more: {missing}")

    if options.write:
        metadata["torch"] = torch.__version__
        save_file(new, options.file, metadata)
        print(f"wrote {options.file}")
        return 0
    return 1 if failures or missing else 0


if __name__ == "__main__":
    sys.exit(main())

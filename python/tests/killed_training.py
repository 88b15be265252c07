"""A training run that saves, and may be killed while updates are under way. Run by test_killed.py.

python killed_training.py CHECKPOINT DEVICE SCHEDULE LAST_STEP KILLED_AT KILLED_IN
"""

import os
import signal
import sys
from pathlib import Path

import outboard
import torch

SAVED_AT = 3
PLACEMENT = {"0.*": "host", "1.*": "streamed", "2.*": "resident"}


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def make_model(device):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(288, 288) for _ in range(3)]
    return torch.nn.Sequential(*layers).to(device, torch.bfloat16)


def make_optimizer(model, device, schedule):
    optimizer = outboard.CPUOffloadOptimizer(
        model.named_parameters(),
        torch.optim.AdamW,
        lr=1e-2,
        placement=PLACEMENT,
        schedule=schedule,
        state_format="8bit",
        max_grad_norm=1e6,
        simulate=[1, 2000, 1] if device == "cpu" else None,
    )
    if schedule != "at_step":
        optimizer.attach(model)
    return optimizer


def save(path, model, optimizer):
    state = {"model": model.state_dict(), "step": SAVED_AT}
    outboard.save(state | {"optimizer": optimizer.state_dict(compressed=True)}, path)


def main() -> None:
    path, device, schedule, last, killed_at, killed_in = sys.argv[1:]
    torch.use_deterministic_algorithms(True)
    model = make_model(device)
    optimizer = make_optimizer(model, device, schedule)
    begin = 0
    if Path(path).exists():
        saved = outboard.load(path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = saved["step"]
    for step in range(begin, int(last)):
        dies = step + 1 == int(killed_at)
        if dies and killed_in == "backward":
            # The last layers have their gradients by then, the first has none.
            model[0].weight.register_hook(die)
        x = torch.randn(4, 288, generator=torch.Generator().manual_seed(step))
        model(x.to(device, torch.bfloat16)).float().pow(2).mean().backward()
        if dies and killed_in == "between":
            die()
        optimizer.step()
        optimizer.zero_grad()
        if dies:
            die()  # updates of this step are under way
        if step + 1 == SAVED_AT:
            save(path, model, optimizer)
    optimizer.synchronize()
    state = optimizer.state_dict(compressed=True)["state"]
    weights = [p.detach().cpu() for p in model.parameters()]
    outboard.save({"weights": weights, "state": state}, f"{path}.end")


if __name__ == "__main__":
    main()

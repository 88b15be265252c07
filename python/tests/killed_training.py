"""A training run that saves, and may be killed while updates are under way. Run by test_killed.py.

python killed_training.py CHECKPOINT SCHEDULE PLACEMENT LAST_STEP KILLED_AFTER
"""

import os
import signal
import sys
from pathlib import Path

import outboard
import torch


def main() -> None:
    path, schedule, placement, last, killed_after = sys.argv[1:]
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(288, 288) for _ in range(3))).bfloat16()
    optimizer = outboard.CPUOffloadOptimizer(
        model.parameters(),
        torch.optim.AdamW,
        lr=1e-2,
        placement=placement,
        schedule=schedule,
        state_format="8bit",
        max_grad_norm=1e6,
        simulate=[1, 2000, 1],
    )
    if schedule != "at_step":
        optimizer.attach(model)
    begin = 0
    if Path(path).exists():
        saved = outboard.load(path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = saved["step"]
    for step in range(begin, int(last)):
        x = torch.randn(4, 288, generator=torch.Generator().manual_seed(step)).bfloat16()
        model(x).float().pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 == int(killed_after):
            os.kill(os.getpid(), signal.SIGKILL)  # updates of this step are under way
        if step == 2:
            state = {"model": model.state_dict(), "step": 3}
            outboard.save(state | {"optimizer": optimizer.state_dict(compressed=True)}, path)
    optimizer.synchronize()
    torch.save([p.detach() for p in model.parameters()], f"{path}.weights")


if __name__ == "__main__":
    main()

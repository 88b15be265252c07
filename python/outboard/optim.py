"""Optimizer classes that torch does not have. They follow torch's conventions and work alone;
given to CPUOffloadOptimizer as optimizer_class, their native rule does the work instead.
"""

import torch
from torch.optim.optimizer import Optimizer


class Lion(Optimizer):
    """Evolved sign momentum (Chen et al.: Symbolic Discovery of Optimization Algorithms, 2023).

        c  = m + (1 - beta1) * (g - m)
        p' = p * (1 - lr * weight_decay) - lr * sign(c)
        m' = m + (1 - beta2) * (g - m)

    `step()` is a plain torch implementation on the parameters' own device and in their own dtype,
    meant as reference and for small models. lr may be a float or a 0-dim tensor.
    """

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, *, maximize=False):
        # Written so that NaN fails too.
        if not float(lr) >= 0.0:
            raise ValueError(f"[Lion] lr is {lr}; give a number that is at least 0")
        if len(betas) != 2 or not all(0.0 <= float(beta) < 1.0 for beta in betas):
            raise ValueError(f"[Lion] betas are {betas}; give two numbers in [0, 1)")
        if not weight_decay >= 0.0:
            raise ValueError(f"[Lion] weight_decay is {weight_decay}; give a number of at least 0")
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """One step. Returns the closure's loss. Raises RuntimeError on sparse gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter, group):
        if parameter.grad.is_sparse:
            raise RuntimeError("[Lion] a gradient is sparse; make it dense (sparse=False)")
        gradient = -parameter.grad if group["maximize"] else parameter.grad
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        moment = state["exp_avg"]
        beta1, beta2 = (float(beta) for beta in group["betas"])
        lr = group["lr"]
        direction = moment.lerp(gradient, 1 - beta1).sign_()
        parameter.mul_(1 - lr * group["weight_decay"]).sub_(direction * lr)
        moment.lerp_(gradient, 1 - beta2)

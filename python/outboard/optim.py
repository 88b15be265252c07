"""Optimizer classes that torch does not have. They follow torch's conventions and work alone;
given to CPUOffloadOptimizer as optimizer_class, their native rule does the work instead.
"""

import math

import torch
from torch.optim.optimizer import Optimizer


class _PerParameter(Optimizer):
    """The loop around a subclass's `_update(parameter, gradient, state, group)`."""

    @torch.no_grad()
    def step(self, closure=None):
        """One step. Returns the closure's loss. Raises RuntimeError on sparse gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    who = type(self).__name__
                    raise RuntimeError(
                        f"[{who}] a gradient is sparse; make it dense (sparse=False)"
                    )
                gradient = -parameter.grad if group["maximize"] else parameter.grad
                self._update(parameter, gradient, self.state[parameter], group)
        return loss

    def _check(self, count, betas, **values):
        # Written so that NaN fails too.
        who = f"[{type(self).__name__}]"
        if len(betas) != count or not all(0.0 <= float(beta) < 1.0 for beta in betas):
            raise ValueError(f"{who} betas are {betas}; give {count} numbers in [0, 1)")
        for name, value in values.items():
            if not float(value) >= 0.0:
                raise ValueError(f"{who} {name} is {value}; give a number that is at least 0")


class Lion(_PerParameter):
    """Evolved sign momentum (Chen et al.: Symbolic Discovery of Optimization Algorithms, 2023).

        c  = m + (1 - beta1) * (g - m)
        p' = p * (1 - lr * weight_decay) - lr * sign(c)
        m' = m + (1 - beta2) * (g - m)

    `step()` is a plain torch implementation on the parameters' own device and in their own dtype,
    meant as reference and for small models. lr may be a float or a 0-dim tensor.
    """

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, *, maximize=False):
        self._check(2, betas, lr=lr, weight_decay=weight_decay)
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    def _update(self, parameter, gradient, state, group):
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        moment = state["exp_avg"]
        beta1, beta2 = (float(beta) for beta in group["betas"])
        lr = group["lr"]
        direction = moment.lerp(gradient, 1 - beta1).sign_()
        parameter.mul_(1 - lr * group["weight_decay"]).sub_(direction * lr)
        moment.lerp_(gradient, 1 - beta2)


class AdEMAMix(_PerParameter):
    """Adam with a second, slower average of the gradient (Pagliardini, Ablin, Grangier: The
    AdEMAMix Optimizer: Better, Faster, Older, 2025).

        m1' = m1 + (1 - beta1) * (g - m1)              exp_avg
        v'  = beta2 * v + (1 - beta2) * g^2            exp_avg_sq
        m2' = m2 + (1 - beta3(t)) * (g - m2)           exp_avg_slow
        p'  = p * (1 - lr * weight_decay)
              - lr * (m1' / (1 - beta1^t) + alpha(t) * m2') / (sqrt(v' / (1 - beta2^t)) + eps)

    Over the first `t_alpha` steps alpha(t) grows linearly; over the first `t_beta3` steps beta3(t)
    does, in half-lives, from beta1 to beta3. 0 or None is no warm-up. `step()` is as Lion's.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999, 0.9999),
        alpha=5.0,
        t_alpha=0,
        t_beta3=0,
        eps=1e-8,
        weight_decay=1e-2,
        *,
        maximize=False,
    ):
        t_alpha, t_beta3 = t_alpha or 0, t_beta3 or 0
        numbers = {"alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3, "eps": eps}
        self._check(3, betas, lr=lr, weight_decay=weight_decay, **numbers)
        defaults = {"lr": lr, "betas": betas, **numbers, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "maximize": maximize})

    def _update(self, parameter, gradient, state, group):
        if not state:
            state["step"] = torch.tensor(0.0, dtype=torch.float32)
            for key in ("exp_avg", "exp_avg_sq", "exp_avg_slow"):
                state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        t = state["step"].item()
        beta1, beta2, beta3 = (float(beta) for beta in group["betas"])
        lr = group["lr"]
        fast = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        slow = state["exp_avg_slow"].lerp_(
            gradient, 1 - _warm_beta(t, group["t_beta3"] or 0, beta1, beta3)
        )
        share = group["alpha"] * min(t / (group["t_alpha"] or t), 1.0)
        mixed = fast / (1 - beta1**t) + share * slow
        root = (square / (1 - beta2**t)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - lr * group["weight_decay"]).sub_(mixed.div_(root) * lr)


class LAMB(_PerParameter):
    """Adam whose step is scaled to each parameter's norm (You et al.: Large Batch Optimization for
    Deep Learning: Training BERT in 76 minutes, 2020). With `max_unorm` > 0 it is bitsandbytes' LAMB
    instead: AdamW whose update is clipped to max_unorm times the weight's norm, never scaled up.

        u  = (m' / (1 - beta1^t)) / (sqrt(v' / (1 - beta2^t)) + eps)           m', v' as Adam's
        max_unorm = 0:  r = u + weight_decay * p
                        p' = p - lr * min(|p| / |r|, 10) * r
        max_unorm > 0:  p' = p * (1 - lr * weight_decay) - lr * min(1, max_unorm * |p| / |u|) * u

    Both ratios are 1 where a norm is 0; bitsandbytes never moves a parameter of zeros. `step()` is
    as Lion's.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        max_unorm=0.0,
        *,
        maximize=False,
    ):
        numbers = {"eps": eps, "weight_decay": weight_decay, "max_unorm": max_unorm}
        self._check(2, betas, lr=lr, **numbers)
        super().__init__(params, {"lr": lr, "betas": betas, **numbers, "maximize": maximize})

    def _update(self, parameter, gradient, state, group):
        if not state:
            state["step"] = torch.tensor(0.0, dtype=torch.float32)
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        t = state["step"].item()
        beta1, beta2 = (float(beta) for beta in group["betas"])
        lr, decay, limit = group["lr"], group["weight_decay"], group["max_unorm"]
        moment = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (square / (1 - beta2**t)).sqrt_().add_(group["eps"])
        update = (moment / (1 - beta1**t)).div_(root)
        if limit > 0:
            ratio = _clip_ratio(limit, parameter, update)
            parameter.mul_(1 - lr * decay)
        else:
            update.add_(parameter, alpha=decay)
            ratio = _norm(parameter) / _norm(update)
            ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio.clamp(max=10.0), 1.0)
        parameter.sub_(update * (lr * ratio))


class LARS(_PerParameter):
    """SGD with momentum whose gradient is scaled to each parameter's norm (You, Gitman, Ginsburg:
    Large Batch Training of Convolutional Networks, 2017). With `max_unorm` > 0 it is bitsandbytes'
    LARS instead: SGD whose update is clipped to max_unorm times the weight's norm, never scaled up.

        max_unorm = 0:  s = (g + weight_decay * p) * trust
                        trust = trust_coefficient * |p| / (|g| + weight_decay * |p| + eps)
        max_unorm > 0:  s = g + weight_decay * p
        b = s on the first step, momentum * b + (1 - dampening) * s later
        d = momentum = 0 ? s : nesterov ? s + momentum * b : b
        p' = p - lr * ratio * d,   ratio = max_unorm > 0 ? min(1, max_unorm * |p| / |d|) : 1

    Trust and ratio are 1 where a norm is 0; bitsandbytes never moves a parameter of zeros. `step()`
    is as Lion's.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        momentum=0.9,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        eps=1e-8,
        max_unorm=0.0,
        trust_coefficient=1e-3,
        *,
        maximize=False,
    ):
        norms = {"eps": eps, "max_unorm": max_unorm, "trust_coefficient": trust_coefficient}
        self._check(0, (), lr=lr, momentum=momentum, weight_decay=weight_decay, **norms)
        if nesterov and not (momentum > 0 and dampening == 0):
            raise ValueError(
                f"[LARS] nesterov with momentum {momentum} and dampening {dampening} is not "
                "defined; give momentum > 0 and dampening 0, or switch nesterov off"
            )
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening}
        defaults.update(weight_decay=weight_decay, nesterov=nesterov, **norms)
        super().__init__(params, {**defaults, "maximize": maximize})

    def _update(self, parameter, gradient, state, group):
        decay, momentum, limit = group["weight_decay"], group["momentum"], group["max_unorm"]
        step = gradient.add(parameter, alpha=decay)
        if not limit > 0:
            weight_norm, gradient_norm = _norm(parameter), _norm(gradient)
            trust = group["trust_coefficient"] * weight_norm
            trust = trust / (gradient_norm + decay * weight_norm + group["eps"])
            is_known = (weight_norm > 0) & (gradient_norm > 0) & trust.isfinite()
            step.mul_(torch.where(is_known, trust, 1.0))
        direction = step
        if momentum != 0:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = step.clone(memory_format=torch.preserve_format)
            else:
                state["momentum_buffer"].mul_(momentum).add_(step, alpha=1 - group["dampening"])
            buffer = state["momentum_buffer"]
            direction = step.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        ratio = _clip_ratio(limit, parameter, direction) if limit > 0 else 1.0
        parameter.sub_(direction * (group["lr"] * ratio))


def _norm(values):
    return torch.linalg.vector_norm(values, dtype=torch.float32)


def _clip_ratio(limit, parameter, update):
    """What keeps the update's norm at most `limit` times the weight's; 1 for a weight of zeros."""
    most = limit * _norm(parameter)
    norm = _norm(update)
    return torch.where((most > 0) & (norm > most), most / norm, 1.0)


def _warm_beta(t, steps, first, last):
    """The coefficient at step t whose half-life has gone t / steps of the way from `first`'s."""
    if t >= steps or last == 0:
        return last
    share = t / steps
    inverse = ((1 - share) / math.log(first) if first > 0 else 0.0) + share / math.log(last)
    return min(math.exp(1 / inverse), last)

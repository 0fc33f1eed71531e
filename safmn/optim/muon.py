"""Muon: momentum made orthogonal for the matrices of a network, Adam for the rest.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scale of the step as in
J. Liu et al., "Muon is scalable for LLM training" (arXiv 2502.16982). ``torch.optim.Muon`` has no convolutions and no
Adam for what is left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

# Quintic Newton-Schulz iteration of the first source: steep at zero, which counts, and only near one in the end.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_RMS = 0.2  # of an Adam step of rate 1, about (the second source)
_SMALLEST_SIDE = 8  # thinner matrices (an image's three channels, depthwise kernels) have little to make orthogonal


class Muon(torch.optim.Optimizer):
    """Muon for every convolution and linear layer that mixes channels, Adam for all other parameters.

    A convolution of (out, in, kh, kw) counts as a matrix of (out, in * kh * kw).

    Where ``lr`` is a tensor (a scalar on the parameters' device) a step neither waits for that device nor depends on
    numbers of the host: a CUDA graph can record it. It then leaves everything as it is where the attribute
    ``found_inf`` (a scalar on the device, as torch's fused optimisers have it) is 1.

    Args:
        params: parameters or groups of them.
        lr: rate of Adam.
        matrix_lr_ratio: rate of the matrices, as a multiple of ``lr``; at 1 their steps are as long as Adam's.
        momentum: of the matrices, Nesterov's.
        betas: Adam's decays of the mean of the gradient and of its square.
        eps: Adam's.
        weight_decay: decoupled, as AdamW's; of the matrices alone, whose steps do not shrink with their gradients and
            which grow without it. Norms and biases would vanish.
        newton_schulz_steps: of each orthogonalisation.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        *,
        matrix_lr_ratio: float = 4.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        newton_schulz_steps: int = 5,
    ) -> None:
        if lr < 0 or matrix_lr_ratio < 0 or weight_decay < 0 or eps < 0:
            raise ValueError("lr, matrix_lr_ratio, weight_decay and eps must not be negative")
        if not (0 <= momentum < 1 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"momentum and betas must be in [0, 1), not {momentum} and {betas}")
        defaults = {
            "lr": lr,
            "matrix_lr_ratio": matrix_lr_ratio,
            "momentum": momentum,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "newton_schulz_steps": newton_schulz_steps,
            "steps": torch.zeros_like(lr) if isinstance(lr, Tensor) else 0,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            matrices = [parameter for parameter in moved if _is_matrix(parameter)]
            others = [parameter for parameter in moved if not _is_matrix(parameter)]
            if isinstance(group["lr"], Tensor):
                self._step_on_device(matrices, others, group)
                continue
            group["steps"] += 1
            if matrices and group["weight_decay"]:
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            if matrices:
                self._muon(matrices, group)
            if others:
                self._adam(others, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = _gradients(parameters)
        momenta = self._buffers(parameters, "momentum_buffer")
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        directions = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
        same_shape = defaultdict(list)
        for parameter, direction in zip(parameters, directions, strict=True):
            same_shape[parameter.shape].append((parameter, direction.flatten(1)))
        for pairs in same_shape.values():  # matrices of one shape at once
            steps = orthogonal(torch.stack([direction for _, direction in pairs]), group["newton_schulz_steps"])
            length = _RMS * max(steps.shape[1:]) ** 0.5
            for (parameter, _), step in zip(pairs, steps, strict=True):
                rate = group["lr"] * group["matrix_lr_ratio"]
                parameter.add_(step.view(parameter.shape), alpha=-rate * length)

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        gradients = _gradients(parameters)
        means = self._buffers(parameters, "exp_avg")
        squares = self._buffers(parameters, "exp_avg_sq")
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - beta2 ** group["steps"]) ** 0.5)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(parameters, means, roots, value=-group["lr"] / (1 - beta1 ** group["steps"]))

    def _step_on_device(self, matrices: list[Tensor], others: list[Tensor], group: dict[str, Any]) -> None:
        rate, bad = group["lr"], getattr(self, "found_inf", None)
        moves = torch.ones_like(rate) if bad is None else 1 - bad  # 1 or 0
        if matrices:
            torch._foreach_mul_(matrices, 1 - moves * rate * group["weight_decay"])
            self._muon_on_device(matrices, group, moves)
        group["steps"] += 1  # the kernel of Adam's step wants it counted; taken back where nothing moves
        if others:
            torch._fused_adam_(
                others,
                _gradients(others),
                self._buffers(others, "exp_avg"),
                self._buffers(others, "exp_avg_sq"),
                [],
                [group["steps"]] * len(others),
                lr=rate,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=0.0,
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                found_inf=bad,
            )
        group["steps"] -= 1 - moves

    def _muon_on_device(self, parameters: list[Tensor], group: dict[str, Any], moves: Tensor) -> None:
        """As :meth:`_muon`, where ``moves`` is 1; leaves all as it is where it is 0, whatever the gradients are."""
        length = -_RMS * group["matrix_lr_ratio"] * group["lr"] * moves
        same_shape = defaultdict(list)
        for parameter in parameters:
            same_shape[parameter.shape].append(parameter)
        for shape, alike in same_shape.items():
            momenta = self._buffers(alike, "momentum_buffer")
            before = torch.stack(momenta)
            gradients = torch.stack(_gradients(alike)).where(moves > 0, 0)
            after = torch.where(moves > 0, group["momentum"] * before + gradients, before)
            torch._foreach_copy_(momenta, after.unbind())
            directions = (gradients + group["momentum"] * after).flatten(2)
            steps = orthogonal(directions, group["newton_schulz_steps"])
            steps = steps * (length * max(steps.shape[1:]) ** 0.5)
            torch._foreach_add_(alike, [step.view(shape) for step in steps.unbind()])

    def _buffers(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        """One buffer for each parameter, zeros at first."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[:2]) >= _SMALLEST_SIDE


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """The nearest (half-)orthogonal matrices, about: singular values between 0.7 and 1.2.

    Args:
        matrices: (n, rows, columns) in float32.
        steps: of the Newton-Schulz iteration.

    Returns:
        (n, rows, columns).
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x

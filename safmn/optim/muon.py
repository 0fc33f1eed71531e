"""Muon: orthogonalised momentum for the matrices of a network, Adam for the other parameters.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). The step's scale follows
J. Liu et al., "Muon is scalable for LLM training" (arXiv 2502.16982). ``torch.optim.Muon`` supports neither
convolutions nor Adam for the other parameters.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.value_types import Decay, NotNegativeFloat, Positive

# The quintic Newton-Schulz iteration of the first source: steep at zero, so that small singular values grow fast. In
# the end they are only near one.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_RMS = 0.2  # approximate RMS of an Adam step at learning rate 1 (the second source)
_SMALL = 1 << 16  # elements; matrices up to this size are padded to one size and computed together on a GPU
_SMALLEST_SIDE = 8  # thinner ones (3 image channels, depthwise kernels) have little to orthogonalise: Adam updates them


class Muon(torch.optim.Optimizer):
    """Muon for every convolution and linear layer that mixes channels, Adam for all other parameters.

    A convolution (out, in, kh, kw) is treated as a matrix (out, in * kh * kw).

    If ``lr`` is a tensor (a scalar on the parameters' device), a CUDA graph can record the step: it neither waits for
    the device nor depends on numbers on the host. Such a step changes nothing if the attribute ``found_inf`` is 1 (a
    scalar on the device, as in torch's fused optimisers).

    Args:
        params: parameters or parameter groups.
        lr: learning rate of Adam.
        matrix_lr_ratio: learning rate of the matrices, as a multiple of ``lr``; at 1 their steps are as long as Adam's.
        momentum: Nesterov momentum of the matrices.
        betas: Adam's decay rates for the mean of the gradient and of its square.
        eps: added to the denominator of Adam's step.
        weight_decay: decoupled weight decay, as in AdamW, for the matrices only. Their steps do not shrink with the
            gradients, so these weights would grow without decay. Norms and biases get none: they would vanish.
        newton_schulz_steps: iterations of each orthogonalisation.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        *,
        matrix_lr_ratio: NotNegativeFloat = 4.0,
        momentum: Decay = 0.95,
        betas: tuple[Decay, Decay] = (0.9, 0.99),
        eps: NotNegativeFloat = 1e-8,
        weight_decay: NotNegativeFloat = 0.0,
        newton_schulz_steps: Positive = 5,
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
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:  # all are frozen; for Adam, the steps count from the first gradient
                continue
            matrices = [parameter for parameter in moved if _is_matrix(parameter)]
            others = [parameter for parameter in moved if not _is_matrix(parameter)]
            if isinstance(group["lr"], Tensor):
                self._step_on_device(matrices, others, group)
                continue
            group["steps"] += 1
            if matrices and group["weight_decay"]:
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            if matrices and matrices[0].is_cuda:
                self._muon_on_device(matrices, group, torch.ones((), device=matrices[0].device))
            elif matrices:
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
        for pairs in same_shape.values():  # matrices of the same shape together
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
        group["steps"] += 1  # Adam's kernel expects the count after the step; undone below if the step is skipped
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
        """Do the same as :meth:`_muon` if ``moves`` is 1; change nothing if it is 0, whatever the gradients are.

        A GPU takes as long for one small matrix as for many, so all small ones are orthogonalised together.
        """
        ordered = sorted(parameters, key=lambda parameter: tuple(parameter.shape))  # equal shapes next to each other
        small = [parameter for parameter in ordered if parameter.numel() <= _SMALL]
        large = _alike([parameter for parameter in ordered if parameter.numel() > _SMALL])
        for batch in [small, *large] if small else large:
            self._move_on_device(batch, group, moves)

    def _move_on_device(self, parameters: list[Tensor], group: dict[str, Any], moves: Tensor) -> None:
        length = -_RMS * group["matrix_lr_ratio"] * group["lr"] * moves
        momenta = self._buffers(parameters, "momentum_buffer")
        before = _packed(momenta)
        gradients = _packed(_gradients(parameters)).where(moves > 0, 0)
        after = torch.where(moves > 0, group["momentum"] * before + gradients, before)
        torch._foreach_copy_(momenta, _unpacked(after, parameters))
        steps = orthogonal(gradients + group["momentum"] * after, group["newton_schulz_steps"])
        factors = [max(_matrix(parameter).shape) ** 0.5 for parameter in parameters]
        moved = _unpacked(steps * length, parameters)
        torch._foreach_mul_(moved, factors)
        torch._foreach_add_(parameters, moved)

    def _buffers(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        """Return one buffer per parameter, initially zero."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[:2]) >= _SMALLEST_SIDE


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _matrix(parameter: Tensor) -> Tensor:
    """Return (out, in, kh, kw) as (out, kh * kw * in), a view of a channels_last tensor; the column order is free."""
    return parameter.permute(0, *range(2, parameter.ndim), 1).flatten(1)


def _alike(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Group neighbouring parameters of the same shape."""
    return [list(group) for _, group in itertools.groupby(parameters, key=lambda parameter: parameter.shape)]


def _packed(parameters: list[Tensor]) -> Tensor:
    """Return all as matrices with rows <= columns, padded with zeros to one size: (n, rows, columns)."""
    stacks = [torch.stack([_matrix(parameter) for parameter in alike]) for alike in _alike(parameters)]
    stacks = [stack.mT if stack.shape[1] > stack.shape[2] else stack for stack in stacks]
    rows, columns = (max(stack.shape[side] for stack in stacks) for side in (1, 2))
    return torch.cat([F.pad(stack, (0, columns - stack.shape[2], 0, rows - stack.shape[1])) for stack in stacks])


def _unpacked(matrices: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Undo :func:`_packed`: return copies with the shape and memory layout of each parameter."""
    result: list[Tensor] = []
    for alike in _alike(parameters):
        shape = alike[0].permute(0, *range(2, alike[0].ndim), 1).shape  # (out, kh, kw, in)
        rows, columns = _matrix(alike[0]).shape
        own = matrices[len(result) : len(result) + len(alike)]
        own = own[:, :columns, :rows].mT if rows > columns else own[:, :rows, :columns]
        parts = own.clone(memory_format=torch.contiguous_format).view(-1, *shape).unbind()
        result += [part.permute(0, -1, *range(1, part.ndim - 1)) for part in parts]
    return result


def orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """Return approximately the nearest (semi-)orthogonal matrices: singular values between 0.7 and 1.2.

    Args:
        matrices: (n, rows, columns) in float32.
        steps: number of Newton-Schulz iterations.

    Returns:
        (n, rows, columns).
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        if x.is_cuda:  # fewer launches; on a CPU the last digits would differ from the runs in docs/runs
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        else:
            x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x

"""Learning rates as functions of the iteration. A schedule has no state to save or to restore on resume.

A schedule's name in an option file stands for a function that takes the section's other keys and returns the schedule.

The formulas are ``basicsr.models.lr_scheduler`` in closed form. A test compares every iteration with BasicSR.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any

from msgspec import Meta

from safmn.errors import OptionError, located
from safmn.own_code import defined_at, described
from safmn.registry import SCHEDULE_REGISTRY, build, find
from safmn.value_types import NotNegative, NotNegativeFloat, Positive, PositiveFloat

Schedule = Callable[[int, float], float]  # (iteration from 1, base learning rate) -> learning rate


def multi_step_restart(
    milestones: Sequence[NotNegative],
    gamma: PositiveFloat = 0.1,
    restarts: Sequence[NotNegative] = (0,),
    restart_weights: Sequence[PositiveFloat] = (1,),
) -> Schedule:
    """A constant rate that is multiplied by ``gamma`` at each milestone and returns to base * weight at each restart.

    Args:
        milestones: Iterations at which the rate is multiplied by ``gamma``.
        gamma: The factor at each milestone.
        restarts: Iterations at which the rate returns to the base rate.
        restart_weights: A factor on the base rate for each restart.
    """
    if len(restarts) != len(restart_weights):
        raise OptionError("train.scheduler: restarts and restart_weights must have the same length")
    steps = sorted(milestones)
    begins = sorted(zip(restarts, restart_weights, strict=True))

    def schedule(iteration: int, base: float) -> float:
        t = iteration - 1  # BasicSR's scheduler counts from 0
        begin, weight = max((pair for pair in begins if pair[0] <= t), default=(-1, 1.0))
        passed = bisect.bisect_right(steps, t) - bisect.bisect_right(steps, begin)
        return float(base * weight * gamma**passed)

    return schedule


def cosine_annealing_restart(
    periods: Annotated[Sequence[Positive], Meta(min_length=1)],
    restart_weights: Sequence[PositiveFloat] = (1,),
    eta_min: NotNegativeFloat = 0.0,
) -> Schedule:
    """A cosine from base * weight to ``eta_min`` over each period; the rate stays at ``eta_min`` after the last one.

    Args:
        periods: Length of each period in iterations.
        restart_weights: A factor on the base rate for each period.
        eta_min: The rate at the end of a period.
    """
    if len(periods) != len(restart_weights):
        raise OptionError("train.scheduler: periods and restart_weights must have the same length")
    ends = list(accumulate(periods))

    def schedule(iteration: int, base: float) -> float:
        t = min(iteration - 1, ends[-1])
        index = bisect.bisect_left(ends, t)
        begin = ends[index - 1] if index else 0
        phase = math.pi * (t - begin) / periods[index]
        return float(eta_min + restart_weights[index] * 0.5 * (base - eta_min) * (1 + math.cos(phase)))

    return schedule


def true_cosine_annealing(T_max: Positive, eta_min: NotNegativeFloat = 0.0) -> Schedule:
    """A cosine from the base rate to ``eta_min`` over ``T_max`` iterations, and back over the next ``T_max``.

    NAFNet's name for torch's ``CosineAnnealingLR``.

    Args:
        T_max: Iterations from the base rate to ``eta_min``.
        eta_min: The lowest rate.
    """

    def schedule(iteration: int, base: float) -> float:
        return float(eta_min + 0.5 * (base - eta_min) * (1 + math.cos(math.pi * (iteration - 1) / T_max)))

    return schedule


def cosine_annealing_restart_cyclic(
    periods: Annotated[Sequence[Positive], Meta(min_length=1)],
    restart_weights: Sequence[PositiveFloat] = (1,),
    eta_mins: Sequence[NotNegativeFloat] = (0.0,),
) -> Schedule:
    """A cosine for each period, each with a lowest rate of its own: Restormer's ``CosineAnnealingRestartCyclicLR``.

    Args:
        periods: Length of each period in iterations.
        restart_weights: A factor on the base rate for each period.
        eta_mins: The rate at the end of each period.
    """
    if not len(periods) == len(restart_weights) == len(eta_mins):
        raise OptionError("train.scheduler: periods, restart_weights and eta_mins must have the same length")
    ends = list(accumulate(periods))

    def schedule(iteration: int, base: float) -> float:
        t = min(iteration - 1, ends[-1])
        index = bisect.bisect_left(ends, t)
        phase = math.pi * (t - (ends[index - 1] if index else 0)) / periods[index]
        low = eta_mins[index]
        return float(low + restart_weights[index] * 0.5 * (base - low) * (1 + math.cos(phase)))

    return schedule


SCHEDULE_REGISTRY.register(multi_step_restart, name="MultiStepLR")
SCHEDULE_REGISTRY.register(multi_step_restart, name="MultiStepRestartLR")
SCHEDULE_REGISTRY.register(cosine_annealing_restart, name="CosineAnnealingRestartLR")
SCHEDULE_REGISTRY.register(cosine_annealing_restart_cyclic, name="CosineAnnealingRestartCyclicLR")
SCHEDULE_REGISTRY.register(true_cosine_annealing, name="TrueCosineAnnealingLR")


def build_schedule(section: Mapping[str, Any], *, warmup_iter: int = -1) -> Schedule:
    """Return the schedule that ``section`` (``train.scheduler``) describes, after a linear warm-up.

    Args:
        section: the schedule's name (``type``) and its arguments.
        warmup_iter: the warm-up replaces the schedule in the iterations before this one; -1 for no warm-up.

    Raises:
        OptionError: the name is unknown, or the function rejects the arguments.
    """
    with located("train.scheduler"):
        schedule: Schedule = build(SCHEDULE_REGISTRY, section)
    if not callable(schedule):
        raise OptionError(
            f"train.scheduler: {section['type']}{defined_at(find(SCHEDULE_REGISTRY, section['type']))} returns a "
            f"{type(schedule).__name__}, not a function "
            "(iteration, base learning rate) -> learning rate"
        )

    name = f"train.scheduler: {section['type']}{defined_at(find(SCHEDULE_REGISTRY, section['type']))}"

    def with_warmup(iteration: int, base: float) -> float:
        if iteration < warmup_iter:
            return base * iteration / warmup_iter
        try:
            rate = schedule(iteration, base)
        except Exception as error:
            raise OptionError(f"{name} fails in iteration {iteration}: {described(error)}") from error
        return _checked(rate, name, iteration)

    return with_warmup


def _checked(rate: Any, name: str, iteration: int) -> float:
    """Return the learning rate that a schedule gave.

    Raises:
        OptionError: it is no finite number of at least 0.
    """
    try:
        value = float(rate)
    except (TypeError, ValueError):
        raise OptionError(
            f"{name} gives {type(rate).__name__} for iteration {iteration}, not a learning rate"
        ) from None
    if not 0 <= value < math.inf:
        raise OptionError(f"{name} gives {value:g} for iteration {iteration}; a learning rate is a number from 0 on")
    return value

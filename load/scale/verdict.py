"""A goal, what was measured, and whether it is met: one line each."""

import operator
from collections.abc import Callable, Mapping

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt}


def verdict(what: str, measured: float, comparison: str, goal: float, unit: str = "") -> bool:
    """Print `what` beside its goal; whether it is met. A figure that is not a number meets nothing."""
    met = _COMPARE[comparison](measured, goal)
    print(f"- {what}: **{measured:.4g}{unit}** (goal {comparison} {goal:g}{unit}: {'met' if met else 'MISSED'})", flush=True)
    return met

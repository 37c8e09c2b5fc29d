"""Whole numbers for messages: what would fit, and what of it is nearest."""

from __future__ import annotations

from collections.abc import Iterable
from math import isqrt


def divisors_of(number: int) -> list[int]:
    """Divisors of a positive number in ascending order."""
    low = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return sorted({*low, *(number // divisor for divisor in low)})


def nearest(numbers: Iterable[int], wanted: int) -> int:
    """The number nearest to the wanted one, the smaller of two."""
    return min(numbers, key=lambda number: (abs(number - wanted), number))


def nearest_multiple(wanted: int, factor: int) -> int:
    """The positive multiple of ``factor`` nearest to the wanted number."""
    return max(1, round(wanted / factor)) * factor

"""How long an emulated chip takes for a step of an engine, and whether the host keeps up with it."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

CHIPS = Path(__file__).resolve().parents[2]
"""Where the facts and curves of the chips are."""
GAP_S = 0.02
"""Between two steps that follow on each other, what scheduling may take on a host that keeps up."""
WRITE_S = 2.0


@dataclass(frozen=True)
class StepCurve:
    """What a chip sustains, with the model for which it was made up; the real one computes much less."""

    launch_s: float
    """Of every step, however many chips share it."""
    weights_s: float
    """Of every step: the weights are read."""
    sequence_s: float
    """Of each sequence in it."""
    prompt_tokens_per_s: float
    tp_efficiency: Mapping[int, float]
    jitter: float
    """Standard deviation of the logarithm of a duration."""
    seed: int

    def duration_s(self, num_sequences: int, prompt_tokens: int, tp: int = 1) -> float:
        """Seconds for a step that gives each sequence a token and reads so many tokens of prompts, without jitter."""
        share = 1 / (tp * self.tp_efficiency[max(degree for degree in self.tp_efficiency if degree <= tp)])
        work_s = self.weights_s + num_sequences * self.sequence_s + prompt_tokens / self.prompt_tokens_per_s
        return self.launch_s + share * work_s


def read_step_curve(chip: str) -> StepCurve:
    """The curve of an emulated chip."""
    return StepCurve(**yaml.safe_load((CHIPS / f"serve-curve-{chip}.yaml").read_text()))


def read_memory_bytes(chip: str) -> int:
    """The memory of an emulated chip."""
    entries = yaml.safe_load((CHIPS / "chips.yaml").read_text())
    memory_gib: float = next(entry["memory_gib"] for entry in entries if entry["name"] == chip)
    return round(memory_gib * 2**30)


@dataclass
class Count:
    """What was done so far."""

    chip: str
    steps: int = 0
    chip_s: float = 0.0
    """The chip's time for all of them."""
    late_steps: int = 0
    late_s: float = 0.0
    """By how much the host was slower than the chip, summed."""

    def __str__(self) -> str:
        share = self.late_s / self.chip_s if self.chip_s else 0.0
        return (
            f"emulated {self.chip}: {self.steps} steps in {self.chip_s:.1f} s of the chip's time; "
            f"the host was late {self.late_steps} times, by {self.late_s:.2f} s in all ({share:.1%})"
        )


class Pace:
    """Holds the steps of a worker back until its chip would be done.

    :param name: tells the jitter of instances apart; equal names repeat it.
    :param file: where the count is written while there is work, and at the end.
    """

    def __init__(self, chip: str, curve: StepCurve, name: str, tp: int = 1, file: Path | None = None) -> None:
        self._curve, self._tp, self._file = curve, tp, file
        self._random = random.Random(f"{curve.seed}/{name}")
        self._start_s: float | None = None
        self._duration_s = 0.0
        self._end_s = 0.0
        self._written_s = 0.0
        self.count = Count(chip)

    def begin(self, num_sequences: int, prompt_tokens: int, follows: bool) -> None:
        """A step begins; ``follows``: it goes on with sequences of the step before."""
        now = time.perf_counter()
        gap_s = now - self._end_s
        if follows and gap_s > GAP_S:
            self._late(gap_s)
        self._start_s = self._end_s if follows and gap_s <= GAP_S else now
        jitter = math.exp(self._random.gauss(0.0, self._curve.jitter))
        self._duration_s = jitter * self._curve.duration_s(num_sequences, prompt_tokens, self._tp)

    def end(self) -> None:
        """What the step computes is there: wait until the chip would have it; nothing where no step began."""
        if self._start_s is None:
            return
        deadline_s, self._start_s = self._start_s + self._duration_s, None
        late_s = time.perf_counter() - deadline_s
        if late_s <= 0.0:
            time.sleep(-late_s)
            self._end_s = deadline_s  # sleep oversleeps: the next step makes up for it
        else:
            self._end_s = deadline_s + late_s
            self._late(late_s)
        self.count.steps += 1
        self.count.chip_s += self._duration_s
        if self._end_s - self._written_s > WRITE_S:
            self._written_s = self._end_s
            self.write()

    def _late(self, seconds: float) -> None:
        self.count.late_steps += 1
        self.count.late_s += seconds

    def write(self) -> None:
        """Write the count down."""
        if self._file:
            new = self._file.with_suffix(".new")
            new.write_text(json.dumps(asdict(self.count)) + "\n")
            os.replace(new, self._file)

"""What an instance was measured to do: seconds of a step by what is in it. And the file of such measurements."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, inf
from pathlib import Path
from typing import Any, Final

from flagvega.config.fields import read
from flagvega.config.report import Report
from flagvega.errors import ConfigError, Fault

SCHEMA: Final = 1
KIND: Final = "serve-profile"
PROFILE_FILE: Final = "serve_profile.json"
"""In the run's folder, written by ``action=profile``."""
DEFAULT_SLOTS: Final = 256
DEFAULT_STEP_TOKENS: Final = 2048
"""vLLM's own ``max_num_seqs`` and ``max_num_batched_tokens`` of a server, where the YAML gives none."""


def form_name(chip: str, tp: int, pp: int) -> str:
    """What a form of an instance is called."""
    return " ".join([chip, *([f"tp{tp}"] if tp > 1 else []), *([f"pp{pp}"] if pp > 1 else [])])


@dataclass(frozen=True)
class Level:
    """So many sequences at once, none of which has prompt left to read."""

    sequences: int = field(metadata={"minimum": 1})
    step_s: float
    """Between two tokens of each."""
    tokens_per_s: float = 0.0
    """Of all, prompts and waiting included: what a load of so many clients got."""
    first_token_s: float = 0.0
    """Median of that load, whose clients all came at once."""


@dataclass(frozen=True)
class Reading:
    """A prompt that has the instance for itself."""

    tokens: int = field(metadata={"minimum": 1})
    first_token_s: float


@dataclass(frozen=True)
class Row:
    """One form of an instance, measured alone."""

    service: str
    chip: str
    levels: tuple[Level, ...]
    """By rising number of sequences."""
    readings: tuple[Reading, ...]
    tp: int = 1
    pp: int = 1
    model: str = ""
    """Folder of the model."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the engine."""
    input_tokens: int = 0
    """Length of the prompts behind the levels."""
    max_tokens: int | None = None
    """Prompt and answer together."""
    cache_tokens: int | None = None
    """What its cache holds, of all sequences."""
    host_busy: float | None = None
    """Most that the host's processors were in use at a level: near 1, they were measured and not the chip."""

    @property
    def num_devices(self) -> int:
        """Devices that it takes."""
        return self.tp * self.pp

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return form_name(self.chip, self.tp, self.pp)


@dataclass(frozen=True)
class Handover:
    """A prompt that one instance reads and another goes on with, both having nothing else to do."""

    model: str
    reader: str
    """Name of the form that reads."""
    writer: str
    readings: tuple[Reading, ...]
    """The first token of who writes, since who reads has answered."""


@dataclass(frozen=True)
class ServeProfile:
    """Measured instances."""

    instances: tuple[Row, ...]
    engine: str = ""
    date: str = ""
    handovers: tuple[Handover, ...] = ()


@dataclass(frozen=True)
class Curve:
    """Seconds of a step: what its sequences take, and what it reads of prompts on top."""

    steps: tuple[tuple[int, float], ...]
    """By rising number of sequences; between them in proportion, beyond them on along the last ones."""
    prompt_token_s: float
    """Each token of prompts in a step."""
    overhead_s: float = 0.0
    """Of a first token, outside of steps."""
    step_tokens: int = DEFAULT_STEP_TOKENS
    """A step takes in so many tokens at most; longer prompts are read in several."""
    cache_tokens: int | None = None

    def step_s(self, sequences: int, prompt_tokens: int = 0) -> float:
        """Seconds of a step with so many sequences, those included whose prompts are read."""
        return self._decode_s(max(1, sequences)) + prompt_tokens * self.prompt_token_s

    def _decode_s(self, sequences: int) -> float:
        steps = self.steps
        if len(steps) == 1 or sequences <= steps[0][0]:
            return steps[0][1]
        place = min(bisect_left(steps, (sequences, -inf)), len(steps) - 1)
        (left, low), (right, high) = steps[place - 1], steps[place]
        return low + max(0.0, high - low) * (sequences - left) / (right - left)


def curve_of(row: Row) -> Curve:
    """The curve through what was measured: readings give the slope of prompts and what a first token costs besides."""
    steps = tuple((level.sequences, level.step_s) for level in row.levels)
    step_tokens = int(row.arguments.get("max_num_batched_tokens") or DEFAULT_STEP_TOKENS)
    points = [
        (each.tokens, each.first_token_s - ceil(each.tokens / step_tokens) * steps[0][1]) for each in row.readings
    ]
    slope, base = _line(points)
    return Curve(steps, slope, max(0.0, base), step_tokens, row.cache_tokens)


@dataclass(frozen=True)
class Passing:
    """From the answer of who reads a prompt to the step of who writes, in seconds."""

    base_s: float = 0.0
    token_s: float = 0.0
    """Each token of the prompt."""

    def seconds(self, tokens: int) -> float:
        """Of a prompt with so many tokens."""
        return self.base_s + tokens * self.token_s


def passing_of(profile: ServeProfile, model: str) -> Passing | None:
    """What handing over takes beside a step of who writes; None where it was not measured."""
    rows = {row.name: row for row in profile.instances if row.model == model}
    points = [
        (each.tokens, each.first_token_s - rows[found.writer].levels[0].step_s)
        for found in profile.handovers
        if found.model == model and found.writer in rows
        for each in found.readings
    ]
    if not points:
        return None
    slope, base = _line(points)
    return Passing(max(0.0, base), slope)


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Slope and base of the line through points, the slope not below 0."""
    mean_x, mean_y = (sum(each[i] for each in points) / len(points) for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in points) / spread) if spread else 0.0
    return slope, mean_y - slope * mean_x


# ---- files ----


def profile_to_json(profile: ServeProfile) -> dict[str, Any]:
    """As the file holds it."""
    return {"schema": SCHEMA, "kind": KIND, **asdict(profile)}


def read_serve_profile(path: Path) -> ServeProfile:
    """The profile of a file.

    :raises ConfigError: with all of its faults.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fix = "write one with action=profile"
        raise ConfigError(Fault(f"the profile cannot be read: {error.strerror}", str(path), fix)) from error
    except ValueError as error:
        raise ConfigError(Fault(f"this is no JSON: {error}", str(path))) from error
    if not isinstance(document, dict) or (document.get("schema"), document.get("kind")) != (SCHEMA, KIND):
        fix = "measure again with action=profile of the service"
        raise ConfigError(Fault(f"this is no profile of services of schema {SCHEMA}", str(path), fix))
    report = Report({})
    profile = read(ServeProfile, {k: v for k, v in document.items() if k not in ("schema", "kind")}, str(path), report)
    for i, row in enumerate(profile.instances if profile else ()):
        _check(row, f"{path}: instances[{i}]", report)
    report.raise_faults()
    assert profile is not None
    return profile


def _check(row: Row, where: str, report: Report) -> None:
    numbers = [level.sequences for level in row.levels]
    if not row.levels or not row.readings:
        report.fault(where, "it has no levels or no readings", "measure again with action=profile")
    elif numbers != sorted(set(numbers)):
        report.fault(f"{where}.levels", "sequences do not rise")
    times = [level.step_s for level in row.levels] + [reading.first_token_s for reading in row.readings]
    if any(value <= 0 for value in times):
        report.fault(where, "a time is not above 0", "measure again with action=profile")

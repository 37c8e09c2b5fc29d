"""The steps of an engine, from the tokens that its clients saw: when each ended, and what was in it.

A step gives a token to each sequence that the engine works on, so that tokens come in groups. It also reads prompts:
in the order of their coming, as many tokens as the others leave of what a step takes in, a long one in several steps.
The step in which the last of a prompt is read gives the first token of its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from flagvega.serve.traffic import Answered

Step = tuple[int, int]
"""Sequences in it, those included whose prompts are read; tokens of prompts."""
Gap = tuple[int, int, float]
"""Between two tokens of an answer: the steps that gave them, and the seconds."""
APART = 0.5
"""Tokens further apart than this share of a short step are not of one."""


@dataclass
class _Step:
    """One step under reconstruction."""

    at_s: float
    owners: list[int] = field(default_factory=list)
    """Answers that it gave a token."""
    num_going_on: int = 0
    """Of these, such as had one before: without any, nobody saw when it began."""
    num_reading: int = 0
    num_read: int = 0
    """Tokens of prompts."""


@dataclass(frozen=True)
class _Prompt:
    begun_s: float
    tokens: int
    last: int
    """Step that gave the first token of its answer."""


def read_steps(answers: Sequence[Answered], step_tokens: int, slots: int) -> tuple[list[Step], list[Gap]]:
    """The steps of one instance with such limits, and all gaps between tokens of its answers."""
    done = [answer for answer in answers if not answer.error]
    steps, places = _group(done)
    for place in places:
        for number in place[1:]:
            steps[number].num_going_on += 1
    prompts = sorted(
        (_Prompt(each.begun_s, each.input_tokens, place[0]) for each, place in zip(done, places, strict=True)),
        key=lambda prompt: (prompt.last, prompt.begun_s),
    )
    before = -1
    for prompt in prompts:
        _read(prompt, steps, before, step_tokens, slots)
        before = prompt.last
    gaps = [
        (first, last, gap)
        for each, place in zip(done, places, strict=True)
        for first, last, gap in zip(place, place[1:], each.gaps_s, strict=False)
        if gap > 0 and last > first
    ]
    return [(step.num_going_on + step.num_reading, step.num_read) for step in steps], gaps


def _group(done: Sequence[Answered]) -> tuple[list[_Step], list[list[int]]]:
    """Steps in order, and of each answer the numbers of those that gave its tokens."""
    lengths = sorted(gap for each in done for gap in each.gaps_s)
    apart_s = APART * lengths[len(lengths) // 4] if lengths else 0.0
    moments = sorted(
        (at_s, i)
        for i, each in enumerate(done)
        for at_s in accumulate((each.begun_s + each.first_token_s, *each.gaps_s))
    )
    steps: list[_Step] = []
    places: list[list[int]] = [[] for _ in done]
    for at_s, i in moments:
        if not steps or at_s - steps[-1].at_s > apart_s or i in steps[-1].owners:
            steps.append(_Step(at_s))
        steps[-1].owners.append(i)
        places[i].append(len(steps) - 1)
    return steps, places


def _read(prompt: _Prompt, steps: list[_Step], before: int, step_tokens: int, slots: int) -> None:
    """Put the tokens of a prompt into the steps that read it; the one before it was done in step ``before``."""
    first, last, left = prompt.last, prompt.last, prompt.tokens
    rooms = {last: _room(steps[last], step_tokens)}
    # As few steps as have room for it. What was read while nobody looked costs nothing that is known.
    while sum(rooms.values()) < left and first > before + 1 and steps[first].num_going_on:
        first -= 1
        rooms[first] = _room(steps[first], step_tokens)
    if not steps[first].num_going_on:
        rooms[first] = left
    elif before == first - 1 and before >= 0:
        # One that waited, or does not fit otherwise, begins in what the one before it left of its last step.
        missing, rest = left - sum(rooms.values()), _room(steps[before], step_tokens)
        waited = rest + sum(rooms.values()) - rooms[last] < left and _was_there(prompt, steps, before, slots)
        if missing > 0 or waited:
            first, rooms[before] = before, rest
    for number in range(first, last):
        taken = min(left - 1, rooms[number])
        left -= taken
        steps[number].num_read += taken
        steps[number].num_reading += taken > 0
    steps[last].num_read += left
    steps[last].num_reading += 1


def _room(step: _Step, step_tokens: int) -> int:
    """Tokens of prompts that it could still have read."""
    return max(0, step_tokens - step.num_going_on - step.num_read)


def _was_there(prompt: _Prompt, steps: list[_Step], number: int, slots: int) -> bool:
    """Whether a step could have begun a prompt: it had come, and there was a slot."""
    step = steps[number]
    began_s = steps[number - 1].at_s if number else 0.0
    return prompt.begun_s < began_s and step.num_going_on + step.num_reading < slots

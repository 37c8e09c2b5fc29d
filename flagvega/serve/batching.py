"""An engine with continuous batching, step by step.

A step gives each sequence that the engine works on a token and reads prompts of those that came, as many tokens as a
step takes in; the rest waits for a slot. Between two events steps are alike and are taken at once, so that minutes of
traffic take milliseconds.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from math import ceil, inf

from flagvega.config.spec import Role
from flagvega.serve.curve import Curve
from flagvega.serve.gateway.instance import OVERDUE, Forecast
from flagvega.serve.traffic import Request


@dataclass(frozen=True)
class Member:
    """An instance of a fleet."""

    curve: Curve
    slots: int
    """Sequences that it works on at once (vLLM: ``max_num_seqs``)."""
    role: Role = "both"


@dataclass(eq=False)
class Job:
    """A request inside an engine."""

    index: int
    at_s: float
    to_read: int
    to_give: int
    """Tokens of its answer that are still to come."""
    output_tokens: int
    """Of its answer in all."""
    handed: int = 0
    """Tokens of its prompt that come from elsewhere, as its work begins."""
    first_s: float = 0.0
    end_step: int = 0
    """Number of the step that gives its last token."""


class Engine:
    """One instance under way."""

    def __init__(self, member: Member) -> None:
        self.curve, self.slots, self.role = member.curve, member.slots, member.role
        self._steps_s = [member.curve.step_s(number) for number in range(member.slots + 1)]
        self.now_s = 0.0
        """When the next step can begin."""
        self.held_s = 0.0
        """Seconds of all sequences that it worked on, summed."""
        self.read_s = 0.0
        """Seconds that prompts took."""
        self.step_s = 0.0
        """Seconds of all steps."""
        self.num_steps = 0
        self.num_preempted = 0
        self.giving: list[tuple[int, int, Job]] = []
        """Heap by the step that ends them."""
        self.admitted: list[Job] = []
        """Those that give tokens, in the order of their coming; some may have ended."""
        self.reading: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.cached = 0
        """Tokens in its cache."""
        self.done: list[tuple[Job, float]] = []
        """With the time of the last token."""
        self.promised: dict[int, int] = {}
        """Tokens of the answers to requests that will come from who reads their prompts."""
        self.picked_at = 0.0
        self._sizes: dict[int, int] = {}

    @property
    def num_requests(self) -> int:
        """In the engine."""
        return len(self.giving) + len(self.reading) + len(self.waiting)

    def take(self, index: int, request: Request, handed: int = 0) -> None:
        """A request comes, with so many tokens of its prompt read; all steps that begin before it have been taken."""
        if not self.num_requests:
            self.now_s = max(self.now_s, request.at_s)
        wanted = request.output_tokens
        job = Job(index, request.at_s, request.input_tokens - handed, wanted, wanted, handed)
        self.waiting.append(job)
        self._sizes[index] = request.input_tokens + request.output_tokens

    def run(self, until_s: float) -> None:
        """Take all steps that begin before ``until_s``."""
        while self.now_s < until_s and (self.giving or self.reading or self.waiting):
            if self.reading or (self.waiting and self._fits(self.waiting[0])):
                self._read()
            elif self.giving:
                self._give(until_s)
            else:
                job = self.waiting.popleft()  # longer than the cache: the engine refuses it
                self.done.append((job, inf))

    def _fits(self, job: Job) -> bool:
        room = inf if self.curve.cache_tokens is None else self.curve.cache_tokens - self.cached
        return len(self.giving) + len(self.reading) < self.slots and job.to_read + job.handed <= room

    def _read(self) -> None:
        """One step in which prompts are read."""
        room = self.curve.step_tokens - len(self.giving)
        num_read = num_prompts = 0
        read: list[Job] = []
        queue = deque(self.reading)
        while room > 0:
            if not queue and self.waiting and self._fits(self.waiting[0]):
                job = self.waiting.popleft()
                self.cached += job.to_read + job.handed
                self.reading.append(job)
                queue.append(job)
            if not queue:
                break
            job = queue.popleft()
            taken = min(job.to_read, room)
            job.to_read, room, num_read, num_prompts = (
                job.to_read - taken,
                room - taken,
                num_read + taken,
                num_prompts + 1,
            )
            if not job.to_read:
                read.append(job)
        self.read_s += num_read * self.curve.prompt_token_s
        self._pass(1, self._steps_s[len(self.giving) + num_prompts] + num_read * self.curve.prompt_token_s)
        for job in read:
            self.reading.remove(job)
            job.first_s = job.first_s or self.now_s
            job.to_give -= 1
            if job.to_give:
                job.end_step = self.num_steps + job.to_give
                heapq.heappush(self.giving, (job.end_step, job.index, job))
                self.admitted.append(job)
            else:
                self._end(job)

    def _give(self, until_s: float) -> None:
        """Steps in which every sequence gets a token and nothing else happens, as many as are alike."""
        num = len(self.giving)
        if self.curve.cache_tokens is not None and self.cached + num > self.curve.cache_tokens and num > 1:
            self._preempt()
            return
        step_s = self._steps_s[num]
        times = self.giving[0][0] - self.num_steps
        if until_s < inf and num < self.slots:
            times = min(times, max(1, ceil((until_s - self.now_s) / step_s)))
        if self.curve.cache_tokens is not None and num > 1:
            times = max(1, min(times, (self.curve.cache_tokens - self.cached) // num))
        self._pass(times, step_s)

    def _pass(self, times: int, step_s: float) -> None:
        self.now_s += times * step_s
        self.step_s += times * step_s
        self.held_s += times * step_s * (len(self.giving) + len(self.reading))
        self.num_steps += times
        self.cached += times * len(self.giving)
        while self.giving and self.giving[0][0] <= self.num_steps:
            self._end(heapq.heappop(self.giving)[2])

    def _preempt(self) -> None:
        """The cache is full: the one that came last begins anew, its answer so far being part of its prompt."""
        job = self.admitted.pop()
        while job.end_step <= self.num_steps:
            job = self.admitted.pop()
        self.giving.remove((job.end_step, job.index, job))
        heapq.heapify(self.giving)
        job.to_give = job.end_step - self.num_steps
        job.to_read = self._sizes[job.index] - job.to_give
        self.cached -= job.to_read - 1  # its newest token is not in there yet
        job.end_step = job.handed = 0
        self.waiting.appendleft(job)
        self.num_preempted += 1

    def _end(self, job: Job) -> None:
        self.cached -= self._sizes[job.index] - 1  # the last token is in no cache
        self.done.append((job, self.now_s))

    def forecast(self, prompt_tokens: float, output_tokens: float, width: int, now: float) -> Forecast:
        """When a request that comes now would have its first token and its last, in seconds from now."""
        num = self.num_requests + len(self.promised) + width
        before = sum(job.to_read for job in (*self.reading, *self.waiting))
        begun_s = max(0.0, self.now_s - now) + self.curve.overhead_s
        first_s = begun_s + self._reading_s(before + prompt_tokens, min(num, self.slots))
        if num > self.slots:
            num = self.slots
            freed_s = begun_s + self._free_after() * self._usual_s(num)
            first_s = max(first_s, freed_s + self._reading_s(prompt_tokens, num))
        return Forecast(first_s, first_s + (output_tokens - 1) * self._usual_s(num))

    def _reading_s(self, tokens: float, sequences: int) -> float:
        """Seconds until so many tokens of prompts are read."""
        num_steps = ceil(tokens / max(1, self.curve.step_tokens - sequences))
        return num_steps * self._steps_s[sequences] + tokens * self.curve.prompt_token_s

    def next_step_s(self, width: int) -> float:
        """Seconds of a step with so many sequences more than it has."""
        return self._steps_s[min(self.slots, self.num_requests + len(self.promised) + width)]

    def _usual_s(self, sequences: int) -> float:
        """Seconds between two tokens, with what is usually read in between."""
        stretch = self.step_s / (self.step_s - self.read_s) if self.step_s else 1.0
        return self._steps_s[sequences] * stretch

    def _free_after(self) -> float:
        """Steps until a request that comes now is taken to get a slot: those before it take them as they get free."""
        steps, total = self.num_steps, self.num_requests + len(self.promised)
        if total < self.slots:
            return 0.0
        ends = [max(end - steps, OVERDUE * job.output_tokens) for end, _, job in self.giving]
        ends += [max(job.to_give, OVERDUE * job.output_tokens) for job in self.reading]
        if total == len(ends):
            return min(ends)
        heapq.heapify(ends)
        for to_give in (*(job.to_give for job in self.waiting), *self.promised.values()):
            if len(ends) < self.slots:
                heapq.heappush(ends, to_give)
            else:
                heapq.heapreplace(ends, ends[0] + to_give)
        return ends[0]

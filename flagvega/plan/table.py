"""The least time that a first micro-batch's round can take when no stage adds more than a cap to the rest of the step.

Dynamic programming from the last stage towards the first, because what a stage may hold in flight depends on its
distance from the end. State: micro-batches in flight, kind of chip of the stage, devices of it and kinds behind it
that may be used, layers placed. Devices of a kind are alike, so only counts matter.

With a round of R seconds, of which ``r`` are left from a stage of ``t`` seconds on with ``k`` in flight, a step of m
micro-batches takes at least ``R + (m - 1) t - (k - 1) forward`` and, where m > k, ``R + r + (m - 1 - k) t``: see
``lower_bound_s``. What stands beside R must keep the cap; so must what two loops of that bound have there, that to the
last stage, which takes ``r`` seconds, and that over the boundary behind a stage, with the shortest stage there is.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from math import gcd, inf

import numpy as np

from flagvega.plan.batch import Batch, Limits
from flagvega.plan.costs import Side
from flagvega.plan.rows import Seconds
from flagvega.plan.simulate import num_loops
from flagvega.plan.stages import Work

Step = tuple[int, int]
"""A kind of chip that may follow, and what is in flight there."""
Arrivals = dict[Step, tuple[list[int], Seconds]]
"""On other kinds of chips: the sets behind a stage that have the kind, and seconds by set and layers."""


class Table:
    """Every plan of a batch that keeps the cap and takes less than ``limit_s``, its round less than ``round_s``."""

    def __init__(self, batch: Batch, cap_s: float, limit_s: float, round_s: float, tick: Callable[[], None]) -> None:
        self.batch, self._tick = batch, tick
        self._problem, self._m, self._num_layers = batch.problem, batch.num_micro_batches, batch.num_layers
        self._cap_s, self._most_s = cap_s, round_s
        self.limits = Limits(limit_s / self._m, cap_s)
        self.groups = list(batch.options)
        loose = Limits(self.limits.time_s, inf)
        self._usable = {
            group: [side for side in options if group in self._problem.kept or len(batch.middle(side, 1, loose))]
            for group, options in batch.options.items()
        }
        self._alike = {group: _by_size(options) for group, options in batch.options.items()}
        self._least_rest_s = batch.least_sum_s * np.arange(self._num_layers, -1, -1) / self._num_layers
        self._unit = {group: self._unit_of(group) for group in self.groups}
        self._devices = {group: self._problem.devices(group) for group in self.groups}
        self._sets = {group: self._sets_without(group) for group in self.groups}
        self._entries = {(g, h): self._entry(g, h) for g in self.groups for h in self.groups if g != h}
        self._transfers: dict[tuple[Side, int], float] = {}
        self._nearest: dict[tuple[Side, int], float] = {}
        self._middle: dict[tuple[int, Side], Seconds] = {}
        self._shortest: dict[Step, float] = {}
        self._levels: list[dict[int, Seconds]] = [{}]
        self.least_s = inf
        """The least round of all, with what follows the first stage's last backward pass; infinite without a plan."""
        self._fill()

    @property
    def num_levels(self) -> int:
        """No stage has this many in flight."""
        return len(self._levels)

    @property
    def num_bytes(self) -> int:
        """Memory that the table takes."""
        return sum(its.nbytes for level in self._levels for its in level.values())

    @property
    def everything(self) -> int:
        """All kinds of chips, as a bit set."""
        return sum(1 << group for group in self.groups)

    def rest(self, level: int, group: int, behind: int, devices: int) -> Seconds:
        """By layers: the least round of stages up to the end, the first of them on ``group``, ``level`` in flight.

        They use at most so many ``devices`` of the group (just so many of a kept mesh), and of the kinds in the bit
        set ``behind``.
        """
        found: Seconds = self._levels[level][group][self._sets[group][behind], devices // self._unit[group]]
        return found

    def follow(self, level: int, side: Side, behind: int, devices: int) -> Seconds:
        """By layers: the least round from the boundary behind a stage on; with so many devices of its kind left."""
        best = np.full(self._num_layers + 1, inf)
        if level < 2:
            return best
        group = side.group
        if devices:
            best = self.rest(level - 1, group, behind, devices) + 2 * self._transfer_s(side, group)
        if not devices or group not in self._problem.kept:
            for other in self.followers(group, behind):
                ahead = [self.rest(before, other, behind & ~(1 << other), self._devices[other])
                         for before in self.steps(level)]  # fmt: skip
                best = np.minimum(best, np.min(ahead, axis=0) + 2 * self._transfer_s(side, other))
        return best

    def middle(self, level: int, side: Side) -> Seconds:
        """Times of stages within the limits: see :meth:`Batch.middle`."""
        if (level, side) not in self._middle:
            self._middle[level, side] = self.batch.middle(side, level, self.limits)
        return self._middle[level, side]

    def followers(self, group: int, behind: int) -> list[int]:
        """Kinds of chips out of a bit set that may come after one."""
        return [g for g in self.groups if behind >> g & 1 and self._problem.may_follow(group, g)]

    def steps(self, level: int) -> list[int]:
        """What may be in flight behind a boundary between unlike chips."""
        slow = self._problem.choices.slow_boundaries
        return [before for before in ((level - 1, level - 2) if slow else (level - 1,)) if before >= 1]

    def _unit_of(self, group: int) -> int:
        """What sizes of stages with layers are multiples of; those without take no units where they are smaller."""
        return gcd(*(side.degrees.size for side in self._usable[group])) or max(1, self._problem.devices(group))

    def _sets_without(self, group: int) -> dict[int, int]:
        others = [other for other in self.groups if other != group]
        return {sum(1 << g for i, g in enumerate(others) if bits >> i & 1): bits for bits in range(1 << len(others))}

    def _entry(self, group: int, other: int) -> tuple[list[int], list[int]]:
        """Sets behind ``group`` that have ``other``, and where what is left of them stands in the other's tables."""
        here = [(i, behind) for behind, i in self._sets[group].items() if behind >> other & 1]
        there = [self._sets[other][behind & ~(1 << other)] for _, behind in here]
        return [i for i, _ in here], there

    def _fill(self) -> None:
        kept = sum(1 << group for group in self._problem.kept)
        self._levels.append({group: self._last(group, kept) for group in self.groups})
        self._close_alone(kept)
        most_stages = self._problem.choices.num_stages or self._num_layers + 2
        for level in range(2, most_stages + len(self.groups)):
            self._tick()
            filled = {group: self._step(level, group) for group in self.groups}
            self._levels.append(filled)
            if not any(np.isfinite(its).any() for before in self._levels[-2:] for its in before.values()):
                break

    def _empty(self, group: int) -> Seconds:
        rows = self._devices[group] // self._unit[group] + 1
        return np.full((len(self._sets[group]), rows, self._num_layers + 1), inf)

    def _last(self, group: int, kept: int) -> Seconds:
        """Stages that end the pipeline; whatever is kept must have come before them."""
        found = self._empty(group)
        free = [i for behind, i in self._sets[group].items() if not behind & kept]
        for side in self.batch.options[group]:
            size = side.degrees.size // self._unit[group]
            rows = slice(size, size + 1 if group in self._problem.kept else None)
            for layers, time_s in enumerate(self.batch.last(side, self.limits)):
                if time_s <= self._most_s:
                    its = found[free, rows, layers]
                    found[free, rows, layers] = np.minimum(its, time_s)
        return found

    def _step(self, level: int, group: int) -> Seconds:
        """One more stage on a kind of chip, before all that may follow it."""
        found = self._empty(group)
        arrivals, loops = self._arrivals(level, group), self._loops(level, group)
        for alike in self._alike[group]:
            longest = {step: most_s - share * self._least_transfer_s(alike, step[0])
                       for step, (most_s, share) in loops.items()}  # fmt: skip
            self._close(level, alike, arrivals, longest)
            times = _least([self.middle(level, side) for side in alike if side in self._usable[group]])
            room_s = self._most_s - np.where(times < inf, times, 0.0)
            most_behind_s = self._most_behind(level, times, min(self.batch.backward_share(side) for side in alike))
            size = alike[0].degrees.size // self._unit[group]
            followers: list[Step] = []
            everything, tightest_s = list(longest), min(longest.values())
            rows = zip(times, times.min(axis=1), room_s, most_behind_s, most_behind_s.max(axis=1), strict=True)
            for layers, (time_s, shortest_s, most_s, capped_s, highest_s) in enumerate(rows, start=1):
                now = everything
                if shortest_s > tightest_s:
                    now = [step for step, longest_s in longest.items() if shortest_s <= longest_s]
                if now != followers:
                    followers, behind = now, self._behind(level, alike, arrivals, now)
                    least = float(behind.min())
                if followers and least <= highest_s:
                    width, height = self._num_layers + 1 - layers, behind.shape[1] - size
                    most_s = np.minimum(capped_s[:width], most_s[:width] - self._least_rest_s[layers:])
                    ahead, target = behind[:, :height, :width], found[:, size:, layers:]
                    np.minimum(target, ahead + time_s[:width], out=target, where=ahead <= most_s)
        return found

    def _most_behind(self, level: int, time_s: Seconds, share: float) -> Seconds:
        """How long the round may be behind a stage that keeps the cap; its backward pass has such a share at least."""
        is_there = time_s < inf
        time_s = np.where(is_there, time_s, 0.0)
        most_s = self._most_s - time_s
        if self._m > level:
            most_s = np.minimum(most_s, self._cap_s - (self._m - level) * time_s)
            loops = num_loops(self._m, level, level)
            most_s = np.minimum(most_s, (self._cap_s - (self._m - 1 - loops * level) * share * time_s) / loops - time_s)
        return np.where(is_there, most_s, -inf)

    def _loops(self, level: int, group: int) -> dict[Step, tuple[float, float]]:
        """What may follow a stage on a kind of chip, as the loop over their boundary keeps the cap.

        Two numbers each: how long the stage may be if the transfer takes no time, and the seconds less for each second
        of the transfer, one way.
        """
        share, found = min(self.batch.backward_share(side) for side in self.batch.options[group]), {}
        others = self.followers(group, self.everything & ~(1 << group))
        for other, before in [(group, level - 1), *((other, its) for other in others for its in self.steps(level))]:
            step = level - before + 1
            loops = num_loops(self._m, level, step)
            each = loops + (self._m - 1 - loops * step) * share
            most_s = (self._cap_s - loops * self._shortest_s(other, before)) / each if loops else inf
            found[other, before] = most_s, 2 * loops / each if loops else 0.0
        return found

    def _least_transfer_s(self, alike: list[Side], group: int) -> float:
        key = alike[0], group
        if key not in self._nearest:
            self._nearest[key] = min(self._transfer_s(side, group) for side in alike)
        return self._nearest[key]

    def _shortest_s(self, group: int, level: int) -> float:
        """The least time of a stage behind another."""
        key = group, level
        if key not in self._shortest:
            times = [self.batch.last(side, self.limits) if level == 1 else self.middle(level, side)
                     for side in self.batch.options[group]]  # fmt: skip
            self._shortest[key] = min((float(its.min()) for its in times if its.size), default=inf)
        return self._shortest[key]

    def _behind(self, level: int, alike: list[Side], arrivals: Arrivals, followers: list[Step]) -> Seconds:
        """What may follow a stage on sides of one size: by kinds behind, units of its own kind, layers."""
        group = alike[0].group
        behind: Seconds = self._levels[level - 1][group] + 2 * self._least_transfer_s(alike, group)
        if (group, level - 1) not in followers:
            behind[:] = inf
        rows = slice(0, 1 if group in self._problem.kept else None)
        for other, steps in groupby(followers, key=lambda step: step[0]):
            its = [arrivals[step] for step in steps if other != group]
            if its:
                here, ahead = its[0][0], np.min([ahead for _, ahead in its], axis=0)
                entered = (ahead + 2 * self._least_transfer_s(alike, other))[:, None, :]
                behind[here, rows] = np.minimum(behind[here, rows], entered)
        return behind

    def _arrivals(self, level: int, group: int) -> Arrivals:
        """What may follow on each other kind of chip."""
        found: Arrivals = {}
        for other in self.followers(group, self.everything & ~(1 << group)):
            here, there = self._entries[group, other]
            found |= {(other, before): (here, self._levels[before][other][there, -1]) for before in self.steps(level)}
        return found

    def _close(self, level: int, alike: list[Side], arrivals: Arrivals, longest: dict[Step, float]) -> None:
        """Make a stage on sides of one size the first."""
        group, row = alike[0].group, self._rows_before(alike[0])
        if row < 0 or not self._problem.may_stand(level, 1, len(self.groups) - 1):
            return
        behind = {(group, level - 1): self._levels[level - 1][group][-1, row]}
        if not row or group not in self._problem.kept:
            behind |= {step: ahead[-1] for step, (_, ahead) in arrivals.items()}
        ways = [(its + 2 * self._least_transfer_s(alike, step[0]), longest[step])
                for step, its in behind.items() if its.min() < inf]  # fmt: skip
        if not ways:
            return
        nearest = np.min([its for its, _ in ways], axis=0)
        for side in alike:
            is_worth = side in self._usable[group] or nearest[-1] < inf
            if is_worth and self._problem.may_begin(side, self.batch.samples):
                time_s = self.batch.first(side, level, self.limits)
                ahead_s = nearest[::-1][: len(time_s)]
                if max(time_s, default=0.0) > min(longest_s for _, longest_s in ways):
                    ahead_s = np.min([np.where(time_s <= longest_s, its[::-1][: len(time_s)], inf)
                                      for its, longest_s in ways], axis=0)  # fmt: skip
                self._begin(level, side, time_s, ahead_s)

    def _begin(self, level: int, side: Side, time_s: Seconds, ahead_s: Seconds) -> None:
        """Make a stage on a side the first, with every number of layers."""
        most_s = self._most_behind(level, time_s, self.batch.backward_share(side))
        round_s = np.where(ahead_s <= most_s, ahead_s + time_s, inf)
        for layers in np.argsort(round_s):
            if round_s[layers] >= self.least_s:
                break
            self._found(float(round_s[layers]), side, Work(0, int(layers), embedding=True, head=False), level)

    def _rows_before(self, side: Side) -> int:
        return (self._devices[side.group] - side.degrees.size) // self._unit[side.group]

    def _close_alone(self, kept: int) -> None:
        for group, options in self.batch.options.items():
            for side in options:
                alone = not kept & ~(1 << group) and self._rows_before(side) >= 0
                if alone and self._problem.may_begin(side, self.batch.samples):
                    time_s = self.batch.whole_s(side)
                    if time_s <= min(self.limits.time_s, self._most_s) and (self._m - 1) * time_s <= self._cap_s:
                        self._found(time_s, side, Work(0, self._num_layers, embedding=True, head=True), 1)

    def _found(self, round_s: float, side: Side, work: Work, level: int) -> None:
        if round_s < self.least_s:
            self.least_s = min(self.least_s, round_s + self.batch.after_s(side, work, level))

    def _transfer_s(self, side: Side, group: int) -> float:
        """The least time over the boundary from a side to a kind of chip."""
        key = side, group
        if key not in self._transfers:
            receivers = self.batch.options[group]
            self._transfers[key] = min(self.batch.costs.transfer_s(side, receiver) for receiver in receivers)
        return self._transfers[key]


def _by_size(options: list[Side]) -> list[list[Side]]:
    """Sides of each size: they use the same devices, so of every number of layers the fastest is enough."""
    found: dict[int, list[Side]] = {}
    for side in options:
        found.setdefault(side.degrees.size, []).append(side)
    return list(found.values())


def _least(times: list[Seconds]) -> Seconds:
    """The least of tables of times, rows that are missing taken as infinite."""
    if not times:
        return np.zeros((0, 1))
    found = max(times, key=len).copy()
    for other in times:
        np.minimum(found[: len(other)], other, out=found[: len(other)])
    return found

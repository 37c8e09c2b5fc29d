"""Tables of what is expected of a plan, and why it is the one."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flagvega.plan.compare import Gain, describe_degrees
from flagvega.plan.explain import Other, Outlook
from flagvega.plan.space import Problem
from flagvega.plan.stages import Work

_GIB = 2**30
MAX_GAINS = 5


def outlook_table(outlook: Outlook, problem: Problem, title: str) -> Table:
    """A row for each stage."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "layers", "chip", "devices", "degrees", "mbs", "in flight"):
        table.add_column(name)
    for name in ("forward", "backward", "idle", "memory of limit", "recompute", "next"):
        table.add_column(name, justify="right")
    for i, ((side, work), stage) in enumerate(zip(outlook.candidate.stages, outlook.stages, strict=True)):
        group = problem.machine.groups[side.group]
        slow = ", one more" if i in outlook.candidate.slow else ""
        is_last = i == len(outlook.stages) - 1
        table.add_row(
            str(i), layers_of(work), group.chip, str(side.degrees.size), describe_degrees(side.degrees),
            str(outlook.candidate.samples // side.degrees.dp), str(outlook.pipeline.in_flight[i]),
            seconds(stage.forward_s), seconds(stage.backward_s), f"{outlook.idle[i]:.0%}",
            f"{stage.memory.total / _GIB:.3g} of {group.memory_bytes / _GIB:.3g} GiB",
            f"{stage.recomputed} of {work.num_layers}" if stage.recomputed else "none",
            "" if is_last else f"{seconds(outlook.pipeline.transfer[i])}{slow}",
        )  # fmt: skip
    return table


def layers_of(work: Work) -> str:
    """``emb+3``: what a stage computes, its chunks one by one."""
    words = ["emb"] if work.embedding else []
    words += [str(layers) for chunk in work.chunks if (layers := chunk.num_layers)]
    return "+".join([*words, "head"] if work.has_head else words)


def memory_table(outlook: Outlook, problem: Problem) -> Table:
    """What holds the memory of a device of each stage, in GiB."""
    names = ("weights", "gradients", "optimizer", "activations", "workspace", "context", "total")
    table = Table("stage", *names, "limit", title="memory of a device in GiB", title_justify="left", box=SIMPLE_HEAD)
    for i, ((side, _), stage) in enumerate(zip(outlook.candidate.stages, outlook.stages, strict=True)):
        limit = problem.machine.groups[side.group].memory_bytes
        table.add_row(str(i), *(f"{getattr(stage.memory, name) / _GIB:.3g}" for name in names), f"{limit / _GIB:.3g}")
    return table


def others_table(others: Sequence[Other], total_s: float, title: str = "compared") -> Table:
    """What other layouts would do."""
    table = Table("instead", "step", "slower by", "why", title=title, title_justify="left", box=SIMPLE_HEAD)
    for other in others:
        fits = not isinf(other.total_s)
        slower = f"{other.total_s / total_s - 1:.1%}" if fits else "-"
        table.add_row(other.name, seconds(other.total_s) if fits else "none", slower, other.why)
    return table


def gains_table(gains: Sequence[Gain]) -> Table:
    """What changes to the cluster would gain, the first few."""
    table = Table("with", "step", "gain", title="another cluster", title_justify="left", box=SIMPLE_HEAD)
    for gain in gains[:MAX_GAINS]:
        table.add_row(gain.name, seconds(gain.total_s), f"{gain.share:.1%}")
    return table


def seconds(value: float) -> str:
    """``1.23 s``, or milliseconds below one."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"

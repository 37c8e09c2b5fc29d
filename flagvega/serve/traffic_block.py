"""The ``traffic`` block of a YAML as traffic and targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flagvega.config.blocks import TrafficBlock
from flagvega.config.fields import read
from flagvega.config.report import Report
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault
from flagvega.serve.traffic import Lengths, Targets, Traffic, fixed

_COUNT: Final = {"minimum": 1}


@dataclass(frozen=True)
class _Typical:
    median: int = field(metadata=_COUNT)
    p99: int = field(metadata=_COUNT)


@dataclass(frozen=True)
class _Several:
    values: tuple[int, ...] = field(metadata=_COUNT)
    weights: tuple[float, ...] = ()


def read_traffic(spec: Spec) -> tuple[Traffic, Targets]:
    """What the YAML says, with the defaults of the block.

    :raises ConfigError: with all that is wrong.
    """
    return traffic_of(given_traffic(spec), Report(spec.where))


def given_traffic(spec: Spec) -> Mapping[str, Any]:
    """The block; without it, what the ``profile`` of the services says; empty when there is neither.

    :raises ConfigError: when services differ.
    """
    if "traffic" in spec.blocks:
        return spec.blocks["traffic"]
    first, *others = [service.traffic for service in spec.services if service.traffic] or [{}]
    if any(other != first for other in others):
        what = "the profiles of the services differ"
        raise ConfigError(Fault(what, "serve", "write what all of them are to bear: traffic: {rate_per_s: 4, ...}"))
    return first


def traffic_of(value: Mapping[str, Any], report: Report) -> tuple[Traffic, Targets]:
    """The same of a block by itself."""
    block = read(TrafficBlock, value, "traffic", report)
    report.raise_faults()
    assert block is not None
    lengths = {
        name: _lengths(getattr(block, name), f"traffic.{name}", report) for name in ("input_tokens", "output_tokens")
    }
    if (block.rate_per_s is None) == (block.concurrency is None):
        fix = "write a rate of requests (traffic: {rate_per_s: 4, ...}), or a number in flight (concurrency)"
        many = "is not said" if block.rate_per_s is None else "is said twice: by a rate, and by a number in flight"
        report.fault("traffic", f"how much clients ask {many}", fix)
    given = {"rate_per_s": block.rate_per_s, "targets.first_token_s": block.targets.first_token_s,
             "targets.per_token_s": block.targets.per_token_s}  # fmt: skip
    for name, number in given.items():
        if number is not None and number <= 0:
            report.fault(f"traffic.{name}", f"{number:g} is too small", "more than 0")
    if not 0 < block.targets.share <= 1:
        report.fault("traffic.targets.share", f"{block.targets.share:g} is no share", "more than 0, at most 1")
    report.raise_faults()
    traffic = Traffic(**lengths, rate_per_s=block.rate_per_s, concurrency=block.concurrency,
                      num_requests=block.num_requests, seed=block.seed)  # fmt: skip
    targets = Targets(block.targets.first_token_s, block.targets.per_token_s, block.targets.share)
    return traffic, targets


def _lengths(value: Any, path: str, report: Report) -> Lengths:
    """A number of tokens, or a mapping that says how they are spread."""
    if isinstance(value, Mapping):
        return _spread(value, path, report)
    if _is_count(value):
        return fixed(value)
    fix = "a number of tokens, {from: 64, to: 256}, {median: 200, p99: 900}, or {values: [64, 512], weights: [3, 1]}"
    report.fault(path, f"{value!r} is no length", fix)
    return fixed(1)


def _spread(value: Mapping[str, Any], path: str, report: Report) -> Lengths:
    if "values" in value:
        several = read(_Several, value, path, report)
        if several and several.weights and not _fit(several):
            fix = "a weight for each value, none below 0 and not all 0"
            report.fault(f"{path}.weights", "weights and values do not fit", fix)
        return Lengths(values=several.values, weights=several.weights) if several else fixed(1)
    if "median" in value or "p99" in value:
        typical = read(_Typical, value, path, report)
        if typical and typical.p99 <= typical.median:
            report.fault(f"{path}.p99", f"{typical.p99} is not above the median, {typical.median}")
        return Lengths(median=typical.median, p99=typical.p99) if typical else fixed(1)
    ends: list[Any] = [value.get("from"), value.get("to")]
    if set(value) == {"from", "to"} and all(map(_is_count, ends)) and ends[0] <= ends[1]:
        return Lengths(least=ends[0], most=ends[1])
    report.fault(path, f"{dict(value)} is no range of lengths", "for example {from: 64, to: 256}")
    return fixed(1)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _fit(several: _Several) -> bool:
    return len(several.weights) == len(several.values) and min(several.weights) >= 0 and max(several.weights) > 0

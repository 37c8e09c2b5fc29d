"""What the gateway counts, in Prometheus' form and for its own records."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from flagvega.serve.gateway.fleet import Fleet
from flagvega.serve.gateway.instance import Instance

FIRST_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
TOKEN_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
MAX_SAMPLES: Final = 4096
"""Per instance and record."""
_GAUGES: Final = {
    "ready": "Whether the instance serves.",
    "requests_in_flight": "Requests that the instance works on or holds.",
    "requests_waiting": "Of these, sequences beyond its slots.",
    "prompt_tokens_in_flight": "Tokens of prompts that it is expected to read yet.",
    "output_tokens_in_flight": "Tokens that are expected to come from it yet.",
    "prefill_tokens_per_second": "Tokens of prompts that it reads, given or learned.",
    "decode_tokens_per_second": "Tokens that all of its slots give together, given or learned.",
}


@dataclass
class Window:
    """What an instance did since the last record."""

    num_requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    first_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    token_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))


class Metrics:
    """Counters and histograms of one gateway."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.registry = CollectorRegistry()
        self.registry.register(_Gauges(fleet))

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"flagvega_{name}", about, labels, registry=self.registry)

        def histogram(name: str, about: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"flagvega_{name}", about, ["instance"], registry=self.registry, buckets=buckets)

        self.requests = counter("requests", "Answers, by instance and HTTP status.", "instance", "status")
        self.refused = counter("refused", "Requests that went to no instance, by the reason's code.", "code")
        self.retries = counter("retries", "Requests that were given to another instance.", "instance")
        self.broken = counter("broken_streams", "Answers that ended after their first token.", "instance")
        self.left = counter("clients_left", "Clients that went before their answer was whole.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, as counted or estimated.", "instance")
        self.output_tokens = counter("output_tokens", "Tokens of answers.", "instance")
        self.ejected = counter("ejections", "Times that an instance was found not to serve.", "instance")
        self.first = histogram("time_to_first_token_seconds", "From the request to its first token.", FIRST_S)
        self.token = histogram("time_per_output_token_seconds", "Between tokens, after the first.", TOKEN_S)
        self.handed = counter("prompts_handed_over", "Prompts that one instance read for another.", "reader", "writer")
        self.reading = histogram("prompt_reading_seconds", "Reading a prompt for another instance.", FIRST_S)
        self._windows = {each.id: Window() for each in fleet.instances}
        self._since = time.monotonic()

    def answered(self, instance: Instance, status: int, prompt_tokens: int, output_tokens: int) -> None:
        """An answer went out whole."""
        name = str(instance.id)
        self.requests.labels(name, str(status)).inc()
        self.prompt_tokens.labels(name).inc(prompt_tokens)
        self.output_tokens.labels(name).inc(output_tokens)
        window = self._windows[instance.id]
        window.num_requests += 1
        window.prompt_tokens += prompt_tokens
        window.output_tokens += output_tokens

    def read(self, reader: Instance, writer: Instance, prompt_tokens: int, seconds: float) -> None:
        """An instance read a prompt for another one."""
        self.handed.labels(str(reader.id), str(writer.id)).inc()
        self.reading.labels(str(reader.id)).observe(seconds)
        self.prompt_tokens.labels(str(reader.id)).inc(prompt_tokens)
        self._windows[reader.id].prompt_tokens += prompt_tokens

    def timed(self, instance: Instance, first_s: float, token_s: float | None) -> None:
        """How fast a streamed answer was."""
        self.first.labels(str(instance.id)).observe(first_s)
        self._windows[instance.id].first_s.append(first_s)
        if token_s is not None:
            self.token.labels(str(instance.id)).observe(token_s)
            self._windows[instance.id].token_s.append(token_s)

    def text(self) -> bytes:
        """As ``/metrics`` shows them."""
        return generate_latest(self.registry)

    def record(self) -> dict[str, Any]:
        """What happened since the last record."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        windows, self._windows = self._windows, {each.id: Window() for each in self.fleet.instances}
        instances = [{**_facts(each, now), **_summary([windows[each.id]], seconds)} for each in self.fleet.instances]
        return {
            "time": time.time(),
            "seconds": round(seconds, 3),
            "in_flight": self.fleet.num_flights,
            **_summary(windows.values(), seconds),
            "refused": round(_total(self.refused)),
            "retries": round(_total(self.retries)),
            "instances": instances,
        }


class _Gauges(Collector):
    """The instances as they are now."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = time.monotonic()
        facts = [_facts(each, now) for each in self.fleet.instances]
        for name, about in _GAUGES.items():
            family = GaugeMetricFamily(f"flagvega_{name}", about, labels=["instance", "chip", "role"])
            for fact in facts:
                value = fact["state"] == "ready" if name == "ready" else fact[name]
                family.add_metric([str(fact["id"]), fact["chip"], fact["role"]], float(value))
            yield family


def _facts(instance: Instance, now: float) -> dict[str, Any]:
    return {
        "id": instance.id,
        "chip": instance.settings.chip,
        "role": instance.role,
        "state": instance.state,
        "trouble": instance.trouble,
        "requests_in_flight": len(instance.flights),
        "requests_waiting": max(0, instance.num_sequences - instance.capacity.slots),
        "prompt_tokens_in_flight": round(instance.waiting_tokens()),
        "output_tokens_in_flight": round(instance.output_tokens(now)),
        "prefill_tokens_per_second": round(instance.capacity.prefill_tokens_per_s, 1),
        "decode_tokens_per_second": round(instance.capacity.decode_tokens_per_s, 1),
    }


def _summary(windows: Iterable[Window], seconds: float) -> dict[str, Any]:
    windows = list(windows)
    firsts = sorted(value for window in windows for value in window.first_s)
    tokens = sorted(value for window in windows for value in window.token_s)
    return {
        "requests_per_s": round(sum(window.num_requests for window in windows) / seconds, 3),
        "prompt_tokens_per_s": round(sum(window.prompt_tokens for window in windows) / seconds, 1),
        "output_tokens_per_s": round(sum(window.output_tokens for window in windows) / seconds, 1),
        "first_token_s": _quantiles(firsts),
        "per_token_s": _quantiles(tokens),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Median and 99 % of sorted values; None when nothing was seen."""
    if not values:
        return None
    last = len(values) - 1
    return {name: round(values[round(share * last)], 5) for name, share in (("p50", 0.5), ("p99", 0.99))}


def _total(counter: Counter) -> float:
    samples = (sample for family in counter.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))

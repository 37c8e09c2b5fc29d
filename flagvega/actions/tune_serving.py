"""``action=auto_tune`` where the task is to serve: searches arguments of the engines under the traffic of the YAML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flagvega.actions import serve
from flagvega.actions.call import Answer, Call
from flagvega.actions.searching import REPORT, budget_of, document, make_order, search, settings_of
from flagvega.actions.serve_trials import Load, run_trial, trial_spec
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault, NoPlanError, PreflightError
from flagvega.layout.serving import Instance
from flagvega.records import write_text
from flagvega.serve.job import measured_forms
from flagvega.serve.load import Bench
from flagvega.serve.place import find_host, place
from flagvega.serve.traffic import Targets, Traffic
from flagvega.serve.traffic_block import given_traffic, read_traffic
from flagvega.serve.tuning.best import best_yaml
from flagvega.serve.tuning.model import Configuration, GuidedByTraffic, Knowledge, seats_of
from flagvega.serve.tuning.score import UNIT, least_s
from flagvega.serve.tuning.space import Space, read_space, with_settings
from flagvega.tune.candidates import Seen, Settings, read_settings
from flagvega.tune.folder import FOLDER
from flagvega.tune.pool import Pool
from flagvega.tune.search import NoHistory, listed
from flagvega.tune.study import Outcome, Study, Trial
from flagvega.tune.tuner import Progress, Run, Tuner, fingerprint
from flagvega.tune.view import summary_lines, tune_page

BENCH_LOG = "bench.log"


@dataclass(frozen=True)
class Question:
    """All that may be tried."""

    spec: Spec
    space: Space
    traffic: Traffic
    targets: Targets
    candidates: tuple[Configuration, ...]
    num_combinations: int
    refused: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Reason -> (how many combinations, an example)."""

    def chosen(self, settings: Settings) -> Spec:
        """The spec of one of them."""
        found: Spec = next(each.part for each in self.candidates if each.settings == settings)
        return found


def act(call: Call) -> Answer:
    """Tune in ``<exp_dir>/auto_tuner``, and serve with the best at the end where that is asked for."""
    spec = call.spec
    if spec.generate:
        fix = "write task.type: serve, and a traffic like the batch's"
        raise ConfigError(Fault("a batch is not tuned, a service is", "experiment.task", fix))
    question = ask(call)
    if faults := call.server.check_host():
        raise PreflightError(faults)
    with ExitStack() as stack:
        root = spec.exp_dir / FOLDER
        bench = Benches(call, root / BENCH_LOG, stack)
        tuner, best = search(
            call,
            lambda study: _tuner(call, question, study, bench.get),
            lambda tuner: _opening(question, tuner),
            lambda tuner: tune_page(spec.name, tuner, _counts(question), _yaml(question, tuner.best)),
        )
    paths = {"yaml": root / "best" / "experiment.yaml", "report": spec.exp_dir / REPORT}
    paths["yaml"].parent.mkdir(exist_ok=True)
    write_text(paths["yaml"], _yaml(question, best))
    answer, lines = document(tuner, best, paths), summary_lines(tuner, best, paths)
    if not settings_of(spec)["control"]["run_best"]:
        return Answer(answer, lines)
    for line in lines:
        call.say(line)
    ran = serve.run(call, question.chosen(read_settings(best.point)))
    return Answer(answer | {"run": ran.document}, ran.shown, ran.exit_code)


class Benches:
    """The benchmark, started when the first trial needs it and ended with the search."""

    def __init__(self, call: Call, log: Path, stack: ExitStack) -> None:
        self._call, self._log, self._stack = call, log, stack
        self._bench: Bench | None = None

    def get(self) -> Bench:
        """It, running; a new one when it has died."""
        if self._bench is None or not self._bench.is_running:
            self._bench = self._stack.enter_context(Bench(self._call.server.bench(), self._log))
            self._bench.wait()  # before an engine is there, for both need processors to begin
        return self._bench


def ask(call: Call) -> Question:
    """Read the space and write it out.

    :raises ConfigError: when it cannot be read.
    :raises NoPlanError: when nothing of it can be served.
    """
    spec, server = call.spec, call.server
    traffic, targets = read_traffic(spec)
    if faults := list(server.check(spec)):
        raise ConfigError(faults)
    (host,) = find_host(spec).nodes
    _, plan = place(spec)
    if faults := list(server.check_files(spec, plan.instances)):
        raise ConfigError(faults)
    for warning in server.warnings(spec, plan.instances):
        call.say(f"warning: {warning}")
    room = max(host.devices.count(chip) for chip in {each.chip for each in plan.instances})
    space = read_space(spec, server.keys(), room)
    knowledge = Knowledge(traffic, targets, measured_forms(spec))
    placed = Placed(call)
    candidates, refused = [], Counter[str]()
    examples: dict[str, str] = {}
    combinations = space.combinations()
    for settings in combinations:
        chosen = with_settings(spec, settings, room if space.fills else None)
        try:
            instances = placed.instances(chosen)
        except ConfigError as error:
            what = error.faults[0].what
            refused[what] += 1
            examples.setdefault(what, ", ".join(f"{name} {value}" for name, value in settings))
            continue
        arguments = {service.name: service.arguments for service in chosen.services}
        candidates.append(Configuration(settings, seats_of(instances, arguments), knowledge, chosen))
    if not candidates:
        faults = [Fault(f"{count} x {what}") for what, count in refused.most_common(3)]
        raise NoPlanError([Fault("nothing of the space can be served", "experiment.auto_tuner.space"), *faults])
    reasons = {what: (count, examples[what]) for what, count in refused.most_common()}
    return Question(spec, space, traffic, targets, tuple(candidates), len(combinations), reasons)


class Placed:
    """Where the instances of a candidate would be; each kind of placing is worked out once."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._known: dict[Any, tuple[Instance, ...] | ConfigError] = {}

    def instances(self, spec: Spec) -> tuple[Instance, ...]:
        """The instances.

        :raises ConfigError: when there is no room, or an engine or a chip refuses them.
        """
        server = self._call.server
        if faults := list(server.check(spec)):
            raise ConfigError(faults)
        key = tuple((each.name, each.chip, each.tp, each.pp, each.num_replicas) for each in spec.services)
        if key not in self._known:
            try:
                self._known[key] = place(spec)[1].instances
            except ConfigError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, ConfigError):
            raise found
        if faults := list(server.check_plan(spec, found)):
            raise ConfigError(faults)
        return found


def _tuner(call: Call, question: Question, study: Study, bench: Callable[[], Bench]) -> Tuner:
    settings, pool = settings_of(call.spec), Pool(list(question.candidates))
    order = make_order(
        settings, pool, study, call.spec.name,
        lambda pool: GuidedByTraffic(pool, NoHistory(), least_s=least_s(question.traffic)),
        lambda pool, _: listed(pool),
    )  # fmt: skip
    progress = Progress(study, pool, order, budget_of(settings))
    limit_s: float = settings["control"]["max_time_per_task"]
    reasons = [what for what, (count, _) in question.refused.items() for _ in range(count)]
    return Tuner(progress, _base_key(question), lambda seen: _make(call, seen, question, bench, limit_s), UNIT, reasons)


def _make(call: Call, seen: Seen, question: Question, bench: Callable[[], Bench], limit_s: float) -> Run:
    def run(folder: Path, _best_s: float | None) -> Outcome:
        load = Load(bench(), question.traffic, question.targets, limit_s)
        return run_trial(call, trial_spec(seen.part, folder), load)

    return run


def _base_key(question: Question) -> str:
    """Changes with the services, the traffic and the devices, and not with what candidates choose themselves."""
    spec = question.spec
    first = question.candidates[0]
    blank = with_settings(spec, tuple((name, None) for name, _ in first.settings))
    services = [
        {"name": each.name, "engine": each.engine, "chip": each.chip, "replicas": each.num_replicas,
         "arguments": {name: value for name, value in each.arguments.items() if value is not None}}
        for each in blank.services
    ]  # fmt: skip
    envs = {name: value for name, value in spec.envs.items() if f"env.{name}" not in dict(first.settings)}
    asked = {name: spec.blocks.get(name) for name in ("cluster", "gateway")}
    return fingerprint({"services": services, "envs": envs, **asked, "traffic": given_traffic(spec)})


def _opening(question: Question, tuner: Tuner) -> list[str]:
    """How many candidates there are, and what is put on them."""
    lines = [f"{question.num_combinations:,} combinations in the space"]
    for what, (count, example) in question.refused.items():
        lines.append(f"  {count:,} fewer: {what} ({example})")
    lines.append(f"{len(question.candidates):,} candidates")
    lines.append(f"each gets {describe_traffic(question.traffic, question.targets)}")
    num_done = len(tuner.trials)
    return lines + ([f"{num_done} trials of a former search count"] if num_done else [])


def describe_traffic(traffic: Traffic, targets: Targets) -> str:
    """In words."""
    arrives = f"{traffic.rate_per_s:g} a second" if traffic.rate_per_s else f"{traffic.concurrency} in flight"
    limits = []
    if targets.first_token_s is not None:
        limits.append(f"a first token within {targets.first_token_s:g} s")
    if targets.per_token_s is not None:
        limits.append(f"{targets.per_token_s * 1e3:g} ms a token")
    good = f"; good ones have {' and '.join(limits)}" if limits else ""
    sizes = f"about {traffic.input_tokens.mean:.0f} tokens read and {traffic.output_tokens.mean:.0f} written"
    return f"{traffic.num_requests} requests, {arrives}, {sizes}{good}"


def _counts(question: Question) -> list[tuple[str, str, str]]:
    """(rule, how many candidates are left after it, an example of what went)."""
    left = question.num_combinations
    rows = [("none: all combinations", f"{left:,}", "")]
    for what, (count, example) in question.refused.items():
        left -= count
        rows.append((what, f"{left:,}", example))
    return rows


def _yaml(question: Question, best: Trial | None) -> str:
    if best is None:
        return ""
    settings = read_settings(best.point)
    return best_yaml(question.spec, question.chosen(settings), question.spec.exp_dir / FOLDER / "best")

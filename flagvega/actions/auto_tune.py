"""``action=auto_tune``: try the most promising configurations, learn from each, keep the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flagvega.actions import run as run_action
from flagvega.actions import tune_serving
from flagvega.actions.call import Answer, Call
from flagvega.actions.decide import decide
from flagvega.actions.searching import REPORT, budget_of, document, make_order, search, settings_of
from flagvega.actions.trials import run_trial, trial_spec, write_plan
from flagvega.actions.tune_hosts import find_host, follow
from flagvega.config.spec import Spec
from flagvega.layout.codec import plan_to_json
from flagvega.plan.tables import profile_to_json
from flagvega.records import write_json, write_text
from flagvega.tune.best import best_yaml
from flagvega.tune.candidates import Seen, read_settings
from flagvega.tune.families import Layouts, pool_of
from flagvega.tune.folder import FOLDER
from flagvega.tune.history import guided
from flagvega.tune.measure import Limits
from flagvega.tune.priority import grid
from flagvega.tune.profile import learned_profile
from flagvega.tune.question import Part, Question, ask
from flagvega.tune.search import Guided
from flagvega.tune.shape import read_point
from flagvega.tune.study import Outcome, Study, Trial
from flagvega.tune.tuner import Progress, Run, Tuner, fingerprint
from flagvega.tune.turns import Leader
from flagvega.tune.view import summary_lines, tune_page


def act(call: Call) -> Answer:
    """Tune in ``<exp_dir>/auto_tuner``, and run the best at the end where that is asked for."""
    if call.serves:
        return tune_serving.act(call)
    question = ask(call.spec, call.engine)
    host = find_host(call, question)
    if host.num_nodes == 1:
        return _lead(call, question, None)
    if host.node:
        return _follow(call, question)
    (call.spec.exp_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    with Leader(call.spec.exp_dir / FOLDER) as leader:
        return _lead(call, question, leader)


def _lead(call: Call, question: Question, leader: Leader | None) -> Answer:
    """Search; other hosts are told by the leader."""
    spec = call.spec
    tuner, best = search(
        call,
        lambda study: _tuner(call, question, study, leader),
        lambda tuner: _opening(question, tuner),
        lambda tuner: _page(spec, question, tuner),
    )
    paths = _write_best(call, question, tuner, best)
    answer, lines = document(tuner, best, paths), summary_lines(tuner, best, paths)
    if leader is not None:
        leader.reason = tuner.progress.ended
    if not settings_of(spec)["control"]["run_best"]:
        return Answer(answer, lines)
    for line in lines:
        call.say(line)
    if leader is not None:
        leader.best(best.point)
    ran = run_action.start(call, decide(call, _best_spec(spec, question, best.point)))
    return Answer(answer | {"run": ran.document}, ran.shown, ran.exit_code)


def _follow(call: Call, question: Question) -> Answer:
    """Run this host's part of what host 0 chooses."""

    def run_here(point: Mapping[str, Any], folder: Path, limits: Limits, is_wanted: Callable[[], bool]) -> None:
        part = question.by_settings[read_settings(point)]
        run_trial(call, _spec_of(part, point, folder, limits), folder, limits, is_wanted=is_wanted)

    def run_best(point: Mapping[str, Any]) -> Answer:
        return run_action.start(call, decide(call, _best_spec(call.spec, question, point)))

    return follow(call, run_here, run_best)


def _tuner(call: Call, question: Question, study: Study, leader: Leader | None) -> Tuner:
    settings, pool = settings_of(call.spec), pool_of(question)
    order = make_order(settings, pool, study, call.spec.name, guided, grid)
    progress = Progress(study, pool, order, budget_of(settings))
    return Tuner(
        progress, _base_key(call.spec, question), lambda seen: _make(call, seen, settings["control"], leader),
        refused=[why for _, why in question.refused],
    )  # fmt: skip


def _make(call: Call, seen: Seen, control: Mapping[str, Any], leader: Leader | None) -> Run:
    """A trial of a candidate; ConfigError when the engine refuses its plan."""
    part: Part = seen.part
    plan, limit_bytes = None, list[float]()
    if isinstance(seen.family, Layouts):
        plan = part.plan(seen.point, call.engine)
        limit_bytes = [seen.family.forecast.limit_bytes(mesh) for mesh in seen.family.shape.stage_meshes]

    def run(folder: Path, best_s: float | None) -> Outcome:
        limits = Limits(
            control["warmup_iters"], control["train_iters"], max(control["max_iters"], control["train_iters"]),
            control["confidence"], control["max_time_per_task"], best_s / part.scale if best_s else None,
        )  # fmt: skip
        if plan is not None:
            write_plan(folder, plan)
        record = seen.point.record
        if leader is not None:
            leader.trial(folder, record, limits)
        outcome = run_trial(call, _spec_of(part, record, folder, limits), folder, limits, limit_bytes)
        if outcome.time_s is None or outcome.half_width_s is None:
            return outcome
        return replace(
            outcome, time_s=outcome.time_s * part.scale, half_width_s=outcome.half_width_s * part.scale
        )  # fmt: skip

    return run


def _spec_of(part: Part, record: Mapping[str, Any], folder: Path, limits: Limits) -> Spec:
    """What a trial of a candidate runs."""
    return trial_spec(part.spec, folder, bool(record.get("shape")), limits.warmup_iters + limits.max_iters + 1)


def _base_key(spec: Spec, question: Question) -> str:
    """Changes with the model, the data and the devices, and not with what candidates choose themselves."""
    chosen = {name for name, _ in question.space.settings}
    part = question.parts[0].spec if question.parts else spec
    return fingerprint({
        "backend": spec.task.backend,
        "arguments": {name: value for name, value in part.arguments.items() if name not in chosen},
        "envs": {name: value for name, value in spec.envs.items() if f"env.{name}" not in chosen},
        "cluster": spec.blocks.get("cluster"),
        "plan": part.blocks.get("plan", {}).get("file"),
        "bridge": {k: v for k, v in spec.blocks.get("bridge", {}).items() if f"bridge.{k}" not in chosen},
    })  # fmt: skip


def _opening(question: Question, tuner: Tuner) -> list[str]:
    """How many candidates there are, rule by rule."""
    lines = []
    if question.tally.total:
        lines.append(f"{question.tally.total:,} layouts in the space, before layers are split")
        left = question.tally.total
        for rule, now, example in question.tally.by_rule():
            if now != left:
                lines.append(f"  {rule}: {left - now:,} fewer, {now:,} left" + (f" ({example})" if example else ""))
            left = now
    lines += [f"  not taken: {dict(settings)}: {why}" for settings, why in question.refused[:5]]
    pool, num_done = tuner.progress.pool, len(tuner.trials)
    too_large = pool.num_legal - pool.num_fitting
    lines.append(f"{pool.num_legal:,} candidates with their layers and settings")
    lines += [f"  memory: {too_large:,} fewer, predicted not to fit"] if too_large else []
    lines += [f"{num_done} trials of a former search count"] if num_done else []
    return lines


def _page(spec: Spec, question: Question, tuner: Tuner) -> str:
    best, text = tuner.best, ""
    if best is not None:
        settings = read_settings(best.point)
        plan = tuner.progress.study.root / "best" / "plan.json" if best.point.get("shape") else None
        text = best_yaml(spec, question.by_settings[settings].spec, settings, plan)
    return tune_page(spec.name, tuner, _counts(question, tuner.progress), text)


def _counts(question: Question, progress: Progress) -> list[tuple[str, str, str]]:
    """(rule, how many are left after it, an example of what went)."""
    steps = question.tally.by_rule()
    rows = [("none: layouts before layers are split", f"{question.tally.total:,}", "")] if steps else []
    rows += [(rule, f"{left:,}", example) for rule, left, example in steps]
    rows.append(("with their layers and settings", f"{progress.pool.num_legal:,}", ""))
    rows.append(("memory, predicted", f"{progress.pool.num_fitting:,}", ""))
    return rows


def _best_spec(spec: Spec, question: Question, point: Mapping[str, Any]) -> Spec:
    """The experiment with the choices of a record."""
    part = question.by_settings[read_settings(point)]
    blocks = dict(part.spec.blocks)
    if point.get("shape"):
        blocks["plan"] = {"file": str(spec.exp_dir / FOLDER / "best" / "plan.json")}
    return replace(part.spec, exp_dir=spec.exp_dir, blocks=blocks)


def _write_best(call: Call, question: Question, tuner: Tuner, best: Trial) -> dict[str, Path]:
    """``best/plan.json`` and ``best/experiment.yaml``, and what the trials taught."""
    root, order = tuner.progress.study.root, tuner.progress.order
    folder = root / "best"
    folder.mkdir(exist_ok=True)
    settings = read_settings(best.point)
    part = question.by_settings[settings]
    found = {"yaml": folder / "experiment.yaml", "report": call.spec.exp_dir / REPORT}
    if best.point.get("shape"):
        found["plan"] = folder / "plan.json"
        write_json(found["plan"], plan_to_json(part.plan(read_point(best.point), call.engine)))
    if isinstance(order, Guided) and part.forecast is not None:
        good = [read_point(trial.point) for trial in tuner.trials if trial.is_good]
        found["profile"] = root / "profile.json"
        write_json(found["profile"], profile_to_json(learned_profile(order.model, part.forecast, good)))
    write_text(found["yaml"], best_yaml(call.spec, part.spec, settings, found.get("plan")))
    return found

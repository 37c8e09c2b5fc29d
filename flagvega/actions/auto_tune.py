"""``action=auto_tune``: try the most promising configurations, learn from each, keep the best."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flagvega.actions import run as run_action
from flagvega.actions import tune_serving
from flagvega.actions.call import Answer, Call
from flagvega.actions.decide import decide
from flagvega.actions.searching import REPORT, budget_of, document, make_folder, make_order, search, settings_of
from flagvega.actions.trials import run_trial, trial_spec, write_plan
from flagvega.actions.tune_hosts import Groups, Place, find_place, follow
from flagvega.actions.tune_hosts import Trial as TrialHere
from flagvega.config.spec import Spec
from flagvega.layout.codec import plan_to_json
from flagvega.plan.tables import profile_to_json
from flagvega.records import write_json, write_text
from flagvega.tune.candidates import Seen, read_settings
from flagvega.tune.folder import FOLDER
from flagvega.tune.measure import Limits
from flagvega.tune.search import Guided
from flagvega.tune.study import Outcome, Study, Trial
from flagvega.tune.training.best import best_yaml
from flagvega.tune.training.families import Layouts, pool_of
from flagvega.tune.training.history import guided
from flagvega.tune.training.priority import grid
from flagvega.tune.training.profile import learned_profile
from flagvega.tune.training.question import Part, Question, ask
from flagvega.tune.training.shape import read_point
from flagvega.tune.tuner import Progress, Run, Tuner, fingerprint
from flagvega.tune.view import summary_lines, tune_page


def act(call: Call) -> Answer:
    """Tune in ``<exp_dir>/auto_tuner``, and run the best at the end where that is asked for."""
    if call.serves:
        return tune_serving.act(call)
    place, spec = find_place(call, settings_of(call.spec)["control"]["parallel"])
    call.__dict__["spec"] = spec
    question = ask(spec, call.engine)
    if not place.leads:
        return _follow(call, place, question)
    root = spec.exp_dir / FOLDER
    make_folder(root)
    with Groups(root, place) as groups:
        return _lead(call, question, groups, place.num_groups)


def _lead(call: Call, question: Question, groups: Groups, num_groups: int) -> Answer:
    """Search, and have all hosts run what is tried."""
    spec = call.spec
    tuner, best = search(
        call,
        lambda study: _tuner(call, question, study, groups, num_groups),
        lambda tuner: _opening(question, tuner),
        lambda tuner: _page(spec, question, tuner),
    )
    groups.end(tuner.progress.ended)
    paths = _write_best(call, question, tuner, best)
    answer, lines = document(tuner, best, paths), summary_lines(tuner, best, paths)
    if not settings_of(spec)["control"]["run_best"]:
        return Answer(answer, lines)
    for line in lines:
        call.say(line)
    groups.best(best.point)
    ran = run_action.start(call, decide(call, _best_spec(spec, question, best.point)))
    return Answer(answer | {"run": ran.document}, ran.shown, ran.exit_code)


def _follow(call: Call, place: Place, question: Question) -> Answer:
    """Run this host's part of what host 0 chooses."""
    best = lambda point: run_action.start(call, decide(call, _best_spec(call.spec, question, point)))  # noqa: E731
    return follow(call, place, _runner(call, question), best)


def _runner(call: Call, question: Question) -> TrialHere:
    """How this host runs its part of a trial."""

    def run(point: Mapping[str, Any], folder: Path, limits: Limits, is_wanted: Callable[[], bool]) -> Outcome:
        part, limit_bytes = question.by_settings[read_settings(point)], list[float]()
        if point.get("shape") and part.forecast is not None:
            candidate = read_point(point)
            write_plan(folder, part.plan(candidate, call.engine))
            limit_bytes = [part.forecast.limit_bytes(mesh) for mesh in candidate.shape.stage_meshes]
        num_steps = limits.warmup_iters + limits.max_iters + 1
        spec = trial_spec(part.spec, folder, bool(point.get("shape")), num_steps)
        return run_trial(call, spec, folder, limits, limit_bytes, is_wanted)

    return run


def _tuner(call: Call, question: Question, study: Study, groups: Groups, num_groups: int) -> Tuner:
    settings, pool = settings_of(call.spec), pool_of(question)
    control, here, cancelled = settings["control"], _runner(call, question), threading.Event()
    order = make_order(settings, pool, study, call.spec.name, guided, grid)
    progress = Progress(study, pool, order, budget_of(settings))

    def make(seen: Seen) -> Run:
        """A trial of a candidate; ConfigError when the engine refuses its plan."""
        part: Part = seen.part
        if isinstance(seen.family, Layouts):
            part.plan(seen.point, call.engine)

        def run(folder: Path, best_s: float | None) -> Outcome:
            limits = Limits(
                control["warmup_iters"], control["train_iters"], max(control["max_iters"], control["train_iters"]),
                control["confidence"], control["max_time_per_task"], best_s / part.scale if best_s else None,
            )  # fmt: skip
            outcome = groups.run(seen.point.record, folder, limits, here, lambda: not cancelled.is_set())
            if outcome.time_s is None or outcome.half_width_s is None:
                return outcome
            time_s, half_width_s = outcome.time_s * part.scale, outcome.half_width_s * part.scale
            return replace(outcome, time_s=time_s, half_width_s=half_width_s)

        return run

    return Tuner(
        progress, _base_key(call.spec, question), make, refused=[why for _, why in question.refused],
        num_parallel=num_groups, cancelled=cancelled,
    )  # fmt: skip


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

"""``action=auto_tune``: try the most promising configurations, learn from each, keep the best."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from flagvega.actions import run as run_action
from flagvega.actions.call import Answer, Call
from flagvega.actions.decide import decide
from flagvega.actions.follow import environment, ready
from flagvega.config.blocks import AutoTuner
from flagvega.config.spec import Spec
from flagvega.errors import ExitCode, Fault, PreflightError
from flagvega.layout.codec import plan_to_json
from flagvega.layout.plan import Plan
from flagvega.plan.tables import profile_to_json
from flagvega.records import Lock, write_json, write_text
from flagvega.run.directory import RunDirectory
from flagvega.run.processes import kill_processes
from flagvega.tune.best import best_yaml
from flagvega.tune.measure import Limits
from flagvega.tune.pool import Pool
from flagvega.tune.profile import learned_profile
from flagvega.tune.question import Part, Question, ask
from flagvega.tune.search import Guided, Order, grid, shuffled
from flagvega.tune.study import Study, Trial, decode
from flagvega.tune.trial import Outcome, read_outcome, start, stop
from flagvega.tune.tuner import Budget, Progress, Tuner, fingerprint
from flagvega.tune.view import View, summary_lines, tune_page

FOLDER = "auto_tuner"
REPORT = "report/tune.html"
POLL_S = 0.05
SHORT: Mapping[str, Any] = {"log_interval": 1, "save_interval": None, "eval_interval": None}
"""Arguments of every trial: it reports each step, saves nothing and evaluates nothing."""


def act(call: Call) -> Answer:
    """Tune in ``<exp_dir>/auto_tuner``; what was measured there before counts and is not repeated."""
    spec = call.spec
    if spec.runner.nnodes > 1:
        fix = "tune on one host, or give the chips of all hosts to action=plan"
        raise PreflightError(Fault("trials over several hosts are not run yet", "experiment.runner.nnodes", fix))
    settings = spec.blocks.get("auto_tuner") or _defaults()
    root = spec.exp_dir / FOLDER
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreflightError(Fault(f"cannot be written: {error.strerror}", str(root))) from error
    question = ask(spec, call.engine)
    signal.signal(signal.SIGTERM, _terminate)
    # Whoever starts the tuner in the background may have told it to ignore this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Lock(root / "lock"):
        study = Study.open(root)
        _clear_interrupted(study)
        tuner = _tuner(call, question, study, settings)
        for line in _opening(question, tuner.progress, len(tuner.trials)):
            call.say(line)
        with View(call.console, tuner) as view:
            tuner.watch = view.update
            try:
                best = tuner.search()
            finally:
                _write_report(spec, question, tuner)
    paths = _write_best(spec, call, tuner, best)
    document = _document(tuner, best, paths)
    lines = summary_lines(tuner, best, paths)
    if not settings["control"]["run_best"]:
        return Answer(document, lines)
    for line in lines:
        call.say(str(line))
    answer = run_action.start(call, decide(call, best_spec(spec, call, tuner, best)))
    return Answer(document | {"run": answer.document}, answer.shown, answer.exit_code)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(int(ExitCode.TERMINATED))


def _defaults() -> Mapping[str, Any]:
    return asdict(AutoTuner())


def _tuner(call: Call, question: Question, study: Study, settings: Mapping[str, Any]) -> Tuner:
    control, algo = settings["control"], settings["algo"]
    pool = Pool(question)
    order: Order
    if algo["name"] == "guided":
        order = Guided(pool)
    elif algo["name"] == "grid":
        order = grid(pool, algo["priority"])
    elif algo["name"] == "random":
        order = shuffled(pool, algo["seed"])
    else:
        from flagvega.tune.sampler import Sampled

        order = Sampled.open(pool, study.root, call.spec.name, algo["seed"])
    patience = None if algo["name"] == "grid" else control["patience"]
    budget = Budget(control["max_trials"], control["max_time"], patience, control["min_trials"])

    def limits(best_s: float | None) -> Limits:
        return Limits(
            control["warmup_iters"], control["train_iters"], max(control["max_iters"], control["train_iters"]),
            control["confidence"], control["max_time_per_task"], best_s,
        )  # fmt: skip

    def run(folder: Path, part: Part, plan: Plan | None, its: Limits) -> Outcome:
        num_steps = its.warmup_iters + its.max_iters + 1
        return run_trial(call, trial_spec(part.spec, folder, plan, num_steps), folder, its)

    progress = Progress(study, pool, order, budget)
    return Tuner(question, call.spec, call.engine, progress, _base_key(call.spec, question), run, limits)


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


def trial_spec(spec: Spec, folder: Path, plan: Plan | None, num_steps: int = 0) -> Spec:
    """What a trial runs: the candidate in its own folder, for at least so many steps."""
    blocks = {name: block for name, block in spec.blocks.items() if name != "auto_tuner"}
    if plan is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(folder / "plan.json", plan_to_json(plan))
        blocks["plan"] = {"file": str(folder / "plan.json")}
    arguments = {**spec.arguments, **SHORT}
    if (given := arguments.get("train_iters")) is not None:
        arguments["train_iters"] = max(given, num_steps)
    return replace(spec, exp_dir=folder, arguments=arguments, blocks=blocks)


def run_trial(call: Call, spec: Spec, folder: Path, limits: Limits) -> Outcome:
    """Run one trial to its end, whatever that is; nothing of it is left running."""
    quiet = replace(call, console=_silence())
    quiet.__dict__["engine"] = call.engine
    decision = decide(quiet, spec)
    directory = ready(quiet, decision)
    began = time.monotonic()
    process = start(directory, environment(decision), limits)
    try:
        while process.poll() is None:
            time.sleep(POLL_S)
    except BaseException:
        stop(directory, process)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    run = directory.read()
    if run is not None:
        kill_processes(run.token)
    outcome = read_outcome(directory, limits, time.monotonic() - began)
    for name in ("cache", "checkpoints", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return outcome


def _silence() -> Console:
    return Console(stderr=True, quiet=True)


def _clear_interrupted(study: Study) -> None:
    """Trials that a dead tuner left behind: end their processes, and forget them."""
    done = {trial.number for trial in study.trials}
    for folder in sorted((study.root / "trials").glob("[0-9]*")):
        if int(folder.name) not in done:
            run = RunDirectory(folder).read()
            if run is not None:
                kill_processes(run.token)
            shutil.rmtree(folder, ignore_errors=True)


def _opening(question: Question, progress: Progress, num_done: int) -> list[str]:
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
    pool = progress.pool
    too_large = pool.num_legal - pool.num_fitting
    lines.append(f"{pool.num_legal:,} candidates with their layers and settings")
    lines += [f"  memory: {too_large:,} fewer, predicted not to fit"] if too_large else []
    lines += [f"{num_done} trials of a former search count"] if num_done else []
    return lines


def _write_report(spec: Spec, question: Question, tuner: Tuner) -> None:
    path = spec.exp_dir / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, tune_page(spec.name, question, tuner))


def best_spec(spec: Spec, call: Call, tuner: Tuner, best: Trial) -> Spec:
    """The experiment with the best candidate's choices."""
    point = decode(best.point)
    part = tuner.question.by_settings[point.settings]
    blocks = dict(part.spec.blocks)
    if point.shape is not None:
        blocks["plan"] = {"file": str(spec.exp_dir / FOLDER / "best" / "plan.json")}
    return replace(part.spec, exp_dir=spec.exp_dir, blocks=blocks)


def _write_best(spec: Spec, call: Call, tuner: Tuner, best: Trial) -> dict[str, Path]:
    """``best/plan.json`` and ``best/experiment.yaml``."""
    folder = tuner.progress.study.root / "best"
    folder.mkdir(exist_ok=True)
    point = decode(best.point)
    part = tuner.question.by_settings[point.settings]
    found = {"yaml": folder / "experiment.yaml", "report": spec.exp_dir / REPORT}
    if point.shape is not None:
        found["plan"] = folder / "plan.json"
        write_json(found["plan"], plan_to_json(part.plan(point, call.engine)))
    if isinstance(tuner.progress.order, Guided) and part.forecast is not None:
        good = [decode(trial.point) for trial in tuner.trials if trial.is_good]
        found["profile"] = tuner.progress.study.root / "profile.json"
        learned = learned_profile(tuner.progress.order.model, part.forecast, good)
        write_json(found["profile"], profile_to_json(learned))
    write_text(found["yaml"], best_yaml(spec, part.spec, point, found.get("plan")))
    return found


def _document(tuner: Tuner, best: Trial, paths: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "ended": tuner.progress.ended,
        "num_candidates": tuner.progress.pool.num_legal,
        "num_trials": len(tuner.trials),
        "best": {"trial": best.number, "time_s": best.time_s, "tokens_per_s": best.tokens_per_s,
                 "values": dict(best.values)},
        "files": {name: str(path) for name, path in paths.items()},
    }  # fmt: skip

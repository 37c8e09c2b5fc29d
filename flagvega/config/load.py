"""From a command line to a spec, in two steps: what is written, then what it means to the engine it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flagvega.config.arguments import argument_homes, read_arguments
from flagvega.config.blocks import Experiment
from flagvega.config.command import Command, unknown_action
from flagvega.config.compose import compose_files
from flagvega.config.draft import Draft, make_draft
from flagvega.config.experiment import check_top_level, exp_dir, homes, read_blocks, read_experiment_block
from flagvega.config.files import find_folder
from flagvega.config.flagscale import drop_unused
from flagvega.config.inference import read_inference
from flagvega.config.keys import Key
from flagvega.config.report import Report
from flagvega.config.roles import put_port, split_roles
from flagvega.config.serving import read_services
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault


def read_experiment(command: Command) -> Draft:
    """Compose the YAML files and the command line's changes.

    :raises ConfigError: when a file is missing, is not YAML, or holds what is never read.
    """
    config, places = compose_files(command)
    return replace(make_draft(config, Report(places)), folder=find_folder(command.config_path))


def build_spec(draft: Draft, keys: Mapping[str, Key]) -> Spec:
    """Judge every key of a draft; ``keys`` are the arguments of the engine that it names.

    :raises ConfigError: with all faults.
    """
    report = _start(draft, homes() | argument_homes(keys, draft.values))
    values, dropped = drop_unused(draft.values, report)
    check_top_level(values, report)
    experiment = read_experiment_block(values, dropped, report)
    blocks = read_blocks(values, report)
    if values.get("serve"):
        report.fault("serve", "'serve' means nothing where the task is to train", "write task.type: serve")
    arguments, paths = read_arguments(values, keys, report)
    report.raise_faults()
    assert experiment is not None
    return replace(_spec(draft, experiment, blocks, report, paths), arguments=arguments)


def judge_services(draft: Draft, keys_of: Callable[[str], Mapping[str, Key]]) -> Spec:
    """Judge every key of a draft that serves; ``keys_of`` gives the arguments of an engine by its name.

    :raises ConfigError: with all faults.
    """
    report = _start(draft, homes())
    values, dropped = drop_unused(draft.values, report)
    check_top_level(values, report)
    if values.get("train") is not None:
        fix = "delete it, or write task.type: train"
        report.fault("train", "'train' means nothing where the task is to serve", fix)
    experiment = read_experiment_block(values, dropped, report)
    blocks = read_blocks(values, report)
    generate: dict[str, Any] = {}
    if draft.infers:
        engine = draft.given_backend
        services, paths, generate = read_inference(values.get("inference"), engine, keys_of, report)
    else:
        services, paths = read_services(values.get("serve"), keys_of, report)
        if experiment is not None:
            services, paths = split_roles(services, paths, experiment, report)
            services = put_port(services, blocks, experiment, report)
    report.raise_faults()
    assert experiment is not None
    return replace(_spec(draft, experiment, blocks, report, paths), services=services, generate=generate)


def judge(draft: Draft, keys_of: Callable[[str], Mapping[str, Key]]) -> Spec:
    """:func:`build_spec` for the engine that the draft names; ``keys_of`` gives its arguments by its name.

    :raises ConfigError: with all faults; when there is no such engine, with those of everything but its arguments.
    """
    try:
        keys = keys_of(draft.backend)
    except ConfigError as error:
        report = _start(draft, homes())
        place = report.place("experiment.task.backend")
        report.faults += [Fault(fault.what, fault.where or place, fault.fix) for fault in error.faults]
        values, dropped = drop_unused(draft.values, report)
        read_experiment_block(values, dropped, report)
        read_blocks(values, report)
        raise ConfigError(report.faults) from error
    return build_spec(draft, keys)


def load_spec(command: Command, keys_of: Callable[[str], Mapping[str, Key]]) -> Spec:
    """Read and judge in one go.

    :raises ConfigError: with all faults.
    """
    return judge(read_experiment(command), keys_of)


def choose_action(command: Command, draft: Draft, actions: Mapping[str, str]) -> str:
    """The action of the command line, else the YAML's, else ``run``.

    :raises ConfigError: when the YAML names one that there is not.
    """
    action = command.action or draft.action or "run"
    if action not in actions:
        raise ConfigError(unknown_action(action, actions, Report(draft.places).place("action")))
    return action


def find_exp_dir(draft: Draft) -> Path:
    """Where the run of a draft is; asks for nothing but that, so that a run can be stopped whatever else is wrong.

    :raises ConfigError: when the experiment itself cannot be read.
    """
    report = _start(draft, homes())
    needed = {report.place("experiment.exp_name"), report.place("experiment.exp_dir")}
    report.faults = [fault for fault in report.faults if fault.where in needed]
    values, dropped = drop_unused(draft.values, Report(draft.places))
    experiment = read_experiment_block(values, dropped, report)
    report.raise_faults()
    assert experiment is not None
    return exp_dir(experiment)


def _start(draft: Draft, words: Mapping[str, str]) -> Report:
    return Report(draft.places, words, draft.variables, list(draft.faults), list(draft.warnings))


def _spec(
    draft: Draft,
    experiment: Experiment,
    blocks: Mapping[str, Mapping[str, Any]],
    report: Report,
    paths: Mapping[str, str],
) -> Spec:
    """What every spec has; ``paths`` are those of arguments, by their names."""
    tuner = {"auto_tuner": asdict(experiment.auto_tuner)} if experiment.auto_tuner is not None else {}
    return Spec(
        name=experiment.exp_name,
        exp_dir=exp_dir(experiment),
        task=experiment.task,
        runner=experiment.runner,
        envs=experiment.envs,
        cmds=experiment.cmds,
        arguments={},
        blocks={**blocks, **tuner},
        where=dict(draft.places) | report.included | {name: report.place(path) for name, path in paths.items()},
        composed=draft.composed,
        warnings=tuple(report.warnings),
        folder=draft.folder,
    )

"""FlagScale's YAML of services, as its examples have it, becomes the same service here."""

from __future__ import annotations

import csv
import json
import re
from typing import Any

import pytest

from backends.vllm.arguments import GONE, arguments
from flagvega.cli import main
from flagvega.errors import ExitCode
from tests.unit.serve.conftest import EXPERIMENT, Dryrun, whats

ONE = {"serve_id": "vllm_model", "engine": "vllm", "engine_args": {"model": "model"}}
TWO = {**ONE, "resources": {"num_replicas": 2}}


def experiment(**given: Any) -> dict[str, Any]:
    return {**EXPERIMENT["experiment"], **given}


def service(**given: Any) -> dict[str, Any]:
    return {**ONE, "engine_args": {"model": "model", **given}}


@pytest.mark.parametrize("place", ["runner.deploy", "deploy"])
def test_the_port_of_deploy_is_where_clients_ask(place: str, dryrun: Dryrun) -> None:
    deploy = {"port": 6701, "use_fs_serve": False}
    given = experiment(**({"runner": {"deploy": deploy}} if place == "runner.deploy" else {"deploy": deploy}))
    alone = dryrun([ONE], experiment=given)
    assert "--port=6701" in alone["commands"][0]["argv"]
    several = dryrun([TWO], experiment=given)
    assert several["endpoints"][0] == {"service": "", "url": "http://127.0.0.1:6701/v1"}
    assert json.loads(several["files"]["job/gateway.json"])["port"] == 6701
    assert [each["port"] for each in several["plan"]["decisions"]["instances"]] == [8000, 8001]


def test_the_port_of_deploy_wins_over_an_instances_and_keeps_it_off(dryrun: Dryrun) -> None:
    given = experiment(runner={"deploy": {"port": 8000}})
    document = dryrun([service(port=9010)], experiment=given)
    assert "--port=8000" in document["commands"][0]["argv"]
    assert "used in place of 9010" in " ".join(document["warnings"])
    several = dryrun([TWO], experiment=given)
    assert [each["port"] for each in several["plan"]["decisions"]["instances"]] == [8001, 8002]
    faults = whats(dryrun([ONE], ExitCode.CONFIG, experiment=given, gateway={"port": 8080}))
    assert "gateway.port: it is 8080, and experiment.runner.deploy.port 8000" in faults


def test_two_places_of_deploy_must_agree(dryrun: Dryrun) -> None:
    alike = experiment(runner={"deploy": {"port": 6701}}, deploy={"port": 6701})
    assert "--port=6701" in dryrun([ONE], experiment=alike)["commands"][0]["argv"]
    unlike = experiment(runner={"deploy": {"port": 6701}}, deploy={"port": 6702})
    faults = whats(dryrun([ONE], ExitCode.CONFIG, experiment=unlike))
    assert "experiment.deploy: it differs from experiment.runner.deploy" in faults


def test_what_deploy_does_not_have_is_told(dryrun: Dryrun) -> None:
    faults = whats(dryrun([ONE], ExitCode.CONFIG, experiment=experiment(runner={"deploy": {"prefil_num": 2}})))
    assert "did you mean 'prefill_num'" in faults


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"no_enable_prefix_caching": True}, "--no-enable-prefix-caching"),
        ({"no-enable-prefix-caching": False}, "--enable-prefix-caching"),
        ({"limit_mm_per_prompt.image": 8}, '--limit-mm-per-prompt={"image": 8}'),
        ({"limit-mm-per-prompt": "image=18, video=1"}, '--limit-mm-per-prompt={"image": 18, "video": 1}'),
        ({"compilation_config": '{"level": 0}'}, '--compilation-config={"level": 0}'),
    ],
)
def test_arguments_may_have_the_forms_of_a_command_line(given: dict[str, Any], word: str, dryrun: Dryrun) -> None:
    assert word in dryrun([service(**given)])["commands"][0]["argv"]


def test_truth_values_of_the_environment_are_exported_as_flagscale_does(dryrun: Dryrun) -> None:
    given = experiment(envs={"USE_FLAGGEMS": False, "USE_FLAGCX": "true", "VLLM_USE_V1": 1})
    document = dryrun([ONE], experiment=given)
    script = document["files"]["job/node-0.sh"]
    assert {"export USE_FLAGGEMS=False", "export USE_FLAGCX=true", "export VLLM_USE_V1=1"} <= set(script.splitlines())
    assert "experiment.envs.USE_FLAGGEMS: becomes False" in " ".join(document["warnings"])


def test_what_another_machinery_needed_is_left_aside_with_a_word(dryrun: Dryrun) -> None:
    runner = {"docker": "box", "ssh_port": 22, "device_type": "gpu"}
    auto = {**ONE, "resources": {"num_replicas": "auto"}}
    document = dryrun([auto], experiment=experiment(runner=runner))
    told = " ".join(document["warnings"])
    assert "start it inside the container" in told
    assert "auto is one instance" in told
    assert len(document["commands"]) == 1


@pytest.mark.parametrize("key", ["serve[0].engine_args", "serve.0.engine_args"])
def test_a_service_is_changed_on_the_command_line(key: str, dryrun: Dryrun) -> None:
    argv = dryrun([ONE, {**ONE, "serve_id": "n"}], words=[f"{key}.port=9000"])["commands"][0]["argv"]
    assert "--port=9000" in argv
    faults = whats(dryrun([ONE], ExitCode.CONFIG, words=[f"{key}.max_num_seq=9", "serve[0].chip=h2000"]))
    assert "command line: serve[0].engine_args.max_num_seq: unknown key" in faults
    assert "command line: serve[0].chip: unknown chip 'h2000'" in faults


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("serve[3].chip=cpu", "'serve' is a list of 1: it has no '3' | entries of a list have numbers from 0"),
        ("serve.vllm_model.chip=cpu", "it has no 'vllm_model'"),
        ("serve.chip=cpu", "it has no 'chip'"),
        ("~serve[0]", "'serve[0]' is an entry of a list | write the list anew"),
        ("~serve[0].engine_args.modl", "did you mean"),
        ("serve[a].chip=cpu", "is not a key"),
    ],
)
def test_a_service_that_is_not_there_is_told(word: str, says: str, dryrun: Dryrun) -> None:
    assert says in whats(dryrun([ONE], ExitCode.CONFIG, words=[word]))


def test_an_argument_of_a_service_is_removed_on_the_command_line(dryrun: Dryrun) -> None:
    document = dryrun([service(port=9000)], words=["~serve[0].engine_args.port"])
    assert "--port=8000" in document["commands"][0]["argv"]


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"guided_decoding_backend": "xgrammar"}, "write structured_outputs_config"),
        ({"swap-space": 4}, "kv_offloading_size"),
        ({"task": "embed"}, "write runner"),
    ],
)
def test_arguments_of_older_vllms_are_told_with_what_to_write_today(
    given: dict[str, Any], instead: str, dryrun: Dryrun
) -> None:
    assert instead in whats(dryrun([service(**given)], ExitCode.CONFIG))


def test_what_is_told_to_write_today_is_there() -> None:
    names = set().union(*(re.findall(r"[a-z]+(?:_[a-z]+)+", row["note"].partition("{")[0]) for row in gone()))
    assert names - {"engine_args"} <= arguments().keys()
    assert not {row["key"] for row in gone()} & arguments().keys()


def gone() -> list[dict[str, str]]:
    with GONE.open(newline="") as file:
        return list(csv.DictReader(file))


def test_commands_are_shown_as_a_shell_takes_them(dryrun: Dryrun, capsys: pytest.CaptureFixture[str]) -> None:
    dryrun([service(**{"limit_mm_per_prompt.image": 8})])
    assert main(["--config-path", ".", "--config-name", "exp", "action=dryrun"]) == 0
    assert """'--limit-mm-per-prompt={"image": 8}'""" in capsys.readouterr().out

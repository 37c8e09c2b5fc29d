"""Services in YAML: read, judged with all their faults, placed on devices, and turned into vLLM's command lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.vllm.arguments import TABLE, VLLM, arguments, words
from flagvega.cli import main
from flagvega.errors import ExitCode
from flagvega.serve.place import check_reached
from tests.unit.serve.conftest import EXPERIMENT, Dryrun, whats


def service(name: str = "m", chip: str | None = None, replicas: int = 1, **given: Any) -> dict[str, Any]:
    found = {"serve_id": name, "engine_args": {"model": "model", **given}, "resources": {"num_replicas": replicas}}
    return found | ({"chip": chip} if chip else {})


def test_a_service_becomes_vllms_own_command(dryrun: Dryrun) -> None:
    document = dryrun([service(max_model_len=256, enforce_eager=True, enable_prefix_caching=False,
                               compilation_config={"level": 0})])  # fmt: skip
    (command,) = document["commands"]
    argv = command["argv"]
    assert argv[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert {"--host=127.0.0.1", "--port=8000", "--max-model-len=256", "--enforce-eager"} <= set(argv)
    assert {"--no-enable-prefix-caching", '--compilation-config={"level": 0}'} <= set(argv)
    assert argv[argv.index("--served-model-name") + 1] == "m"
    assert command["env"]["VLLM_TARGET_DEVICE"] == "cpu"
    assert command["env"]["HF_HUB_OFFLINE"] == "1"
    assert document["plan"]["kind"] == "serve"


def test_replicas_have_ports_and_devices_of_their_own(dryrun: Dryrun) -> None:
    chips = {"nodes": [{"chip": "a800", "devices": 5}]}
    document = dryrun([service("a", replicas=2, port=9000, tensor_parallel_size=2), service("b", port=9000)],
                      cluster=chips)  # fmt: skip
    placed = document["plan"]["decisions"]["instances"]
    assert [each["port"] for each in placed] == [9000, 9001, 9002]
    assert [each["devices"] for each in placed] == [[0, 1], [2, 3], [4]]
    assert [each["env"]["CUDA_VISIBLE_DEVICES"] for each in document["commands"]] == ["0,1", "2,3", "4"]
    assert "untested on hardware" in " ".join(document["warnings"])


def test_a_chip_misspelt_and_a_model_left_out_are_told_with_their_places(dryrun: Dryrun) -> None:
    faults = whats(dryrun([service(), service("b", chip="emu-ll")], ExitCode.CONFIG))
    assert "serve[1].chip: unknown chip 'emu-ll' | did you mean emu-l" in faults
    faults = whats(dryrun([{"serve_id": "m", "engine_args": {"port": 8000}}], ExitCode.CONFIG))
    assert "serve[0]: service 'm' has no model" in faults


def test_more_instances_than_devices_are_refused(dryrun: Dryrun) -> None:
    chips = {"nodes": [{"chip": "a800", "devices": 2}]}
    faults = whats(dryrun([service(replicas=3)], ExitCode.CONFIG, cluster=chips))
    assert "no 1 free for instance 2 of 'm': the host has 2 x" in faults


def test_several_instances_have_a_gateway_in_front_and_one_has_where_it_is_asked_for(dryrun: Dryrun) -> None:
    document = dryrun([service(chip="cpu", replicas=2, max_num_seqs=8)], gateway={"port": 9999})
    settings = json.loads(document["files"]["job/gateway.json"])
    assert settings["port"] == 9999
    assert [each["url"] for each in settings["instances"]] == ["http://127.0.0.1:8000", "http://127.0.0.1:8001"]
    assert [each["slots"] for each in settings["instances"]] == [8, 8]
    assert "job/gateway.json" not in dryrun([service(chip="cpu")])["files"]
    assert "job/gateway.json" in dryrun([service(chip="cpu")], gateway={"port": 9999})["files"]


def test_what_is_said_of_a_services_capacity_the_gateway_begins_with(dryrun: Dryrun) -> None:
    fast = {**service("a", chip="cpu"), "capacity": {"decode_tokens_per_s": 440, "step_s": 0.04}}
    settings = json.loads(dryrun([fast, service("b", chip="cpu")])["files"]["job/gateway.json"])
    known, unknown = settings["instances"]
    assert (known["decode_tokens_per_s"], known["step_s"]) == (440, 0.04)
    assert "decode_tokens_per_s" not in unknown
    wrong = {**service(chip="cpu"), "capacity": {"decode_tokens_per_s": 0, "tokens": 3}}
    faults = whats(dryrun([wrong], ExitCode.CONFIG))
    assert "serve[0].capacity.tokens" in faults
    assert "serve[0].capacity.decode_tokens_per_s" in faults


def test_mistakes_in_the_gateways_block_are_named(dryrun: Dryrun) -> None:
    faults = whats(dryrun([service(chip="cpu")], ExitCode.CONFIG, gateway={"limits": {"body_byte": 5}}))
    assert "exp.yaml:" in faults
    assert "body_bytes" in faults
    faults = whats(dryrun([service(chip="cpu")], ExitCode.CONFIG, gateway={"api_key_env": "NOT_SET_ANYWHERE"}))
    assert "the environment has no NOT_SET_ANYWHERE" in faults


TWO_HOSTS = {"nodes": [{"chip": "a800", "host": "10.0.0.1", "devices": 2}, {"chip": "a800", "host": "10.0.0.2"}]}


def test_instances_are_placed_on_all_hosts_and_those_away_from_the_gateway_listen_at_their_hosts_address(
    dryrun: Dryrun,
) -> None:
    document = dryrun([service(replicas=3)], cluster=TWO_HOSTS)
    placed = document["plan"]["decisions"]["instances"]
    assert [(each["node"], each["place"], each["devices"], each["host"], each["port"]) for each in placed] == [
        (0, 0, [0], "127.0.0.1", 8000), (0, 1, [1], "127.0.0.1", 8001), (1, 0, [0], "10.0.0.2", 8002),
    ]  # fmt: skip
    settings = json.loads(document["files"]["job/gateway.json"])
    assert settings["instances"][2]["url"] == "http://10.0.0.2:8002"
    assert settings["instance_key_env"] == "VLLM_API_KEY"
    assert "--host=10.0.0.2" in document["commands"][2]["argv"]
    guarded = ["--middleware=flagvega_guard.Guard" in each["argv"] for each in document["commands"]]
    assert guarded == [False, False, True]
    (plugin, *_) = document["commands"][2]["env"]["PYTHONPATH"].split(":")
    assert (Path(plugin) / "flagvega_guard" / "__init__.py").is_file()
    assert [each["host"] for each in document["keepers"]] == ["10.0.0.1", "10.0.0.2"]
    assert document["ports"] == [
        "10.0.0.1:29500  by the other hosts, once, at the start",
        "10.0.0.2:8002  by 10.0.0.1: instance 2",
        "127.0.0.1:8080  by clients, on 10.0.0.1",
    ]
    assert document["type"][1].startswith("10.0.0.2: ")
    assert document["type"][1].endswith("experiment.runner.nnodes=2 experiment.runner.node_rank=1")
    away = dryrun([service(host="0.0.0.0", replicas=3)], cluster=TWO_HOSTS)
    assert json.loads(away["files"]["job/gateway.json"])["instances"][2]["url"] == "http://10.0.0.2:8002"


def test_what_needs_most_of_a_host_is_placed_first(dryrun: Dryrun) -> None:
    document = dryrun([service("a"), service("b", tensor_parallel_size=2)], cluster=TWO_HOSTS)
    placed = document["plan"]["decisions"]["instances"]
    assert [(each["service"], each["node"], each["port"]) for each in placed] == [("a", 1, 8000), ("b", 0, 8001)]
    assert [json.loads(text)["instances"][0]["service"] for name, text in document["files"].items()
            if name.startswith("job/serve")] == ["b", "a"]  # fmt: skip


def test_what_hosts_cannot_do_together_is_refused(dryrun: Dryrun) -> None:
    wide = whats(dryrun([service(tensor_parallel_size=3)], ExitCode.CONFIG, cluster=TWO_HOSTS))
    assert "no 3 free for instance 0 of 'm': 10.0.0.1 has 2 x a800-sxm-80g; 10.0.0.2 has 1 x a800-sxm-80g" in wide
    assert "an instance stays within a host" in wide
    one = whats(dryrun([service(host="10.0.0.1", replicas=3)], ExitCode.CONFIG, cluster=TWO_HOSTS))
    assert "'host' is 10.0.0.1, and instance 2 of 'm' is on 10.0.0.2" in one
    runner = {**EXPERIMENT["experiment"], "runner": {"nnodes": 2}}
    unknown = whats(dryrun([service(chip="cpu", replicas=2)], ExitCode.CONFIG, experiment=runner))
    assert "the other hosts of a service need addresses" in unknown


def test_an_address_that_is_a_hosts_own_alone_is_no_place_to_be_reached_at() -> None:
    (fault,) = check_reached({"localhost", "10.0.0.2"}, "10.0.0.1")
    assert fault.where == "localhost"
    assert not check_reached({"127.0.0.3"}, "127.0.0.2")  # all hosts are one machine


def test_all_mistakes_are_named_with_their_places(dryrun: Dryrun) -> None:
    wrong = service(max_model_length=5, dtype="float17", port="eighty", api_key="secret", hf_token="hf_secret")
    faults = whats(dryrun([wrong, {"serve_id": "m", "engine": "sglung"}, {"serve_id": "x", "module": "a.py"}],
                          ExitCode.CONFIG))  # fmt: skip
    for words_ in (
        "exp.yaml:", "serve[0].engine_args.max_model_length", "did you mean", "'dtype' cannot be", "float16",
        "'port': expected an integer", "export VLLM_API_KEY", "nothing is downloaded", "serve[1].engine", "known: vllm",
        "not a Python module",
    ):  # fmt: skip
        assert words_ in faults, words_
    assert "secret" not in faults


def test_flagscales_replicas_and_devices_are_read(dryrun: Dryrun) -> None:
    entry = service(tensor_parallel_size=2, trust_remote_code=True)
    entry["resources"] = {"num_replicas": 4, "num_gpus": 2}
    runner = {"hostfile": None, "nnodes": 1, "deploy": {"port": 6701, "use_fs_serve": True}}
    experiment = {**EXPERIMENT["experiment"], "runner": runner}
    blocks = {"cluster": {"nodes": [{"chip": "a800", "devices": 8}]}, "experiment": experiment}
    document = dryrun([entry], **blocks)
    assert len(document["commands"]) == 4
    assert any("Python in the model's folder" in warning for warning in document["warnings"])
    entry["resources"]["num_gpus"] = 4
    assert "num_gpus is 4" in whats(dryrun([entry], ExitCode.CONFIG, **blocks))


def test_arguments_by_engine_come_on_top_of_the_general_ones(dryrun: Dryrun) -> None:
    entry = {**service(), "engine_args_specific": {"vllm": {"max_num_seqs": 4}, "sglang": {"page_size": 1}}}
    assert "--max-num-seqs=4" in dryrun([entry])["commands"][0]["argv"]


def test_what_a_chip_is_known_to_refuse_is_refused_with_the_engines_reason(dryrun: Dryrun) -> None:
    given = service(chip="cpu", quantization="fp8")
    assert "vLLM on cpu refuses quantization: fp8 | its reason:" in whats(dryrun([given], ExitCode.CONFIG))
    given = service(chip="cpu", pipeline_parallel_size=2, enforce_eager=True)
    assert "self.intermediate_tensors" in whats(dryrun([given], ExitCode.CONFIG))
    dryrun([service(chip="cpu", pipeline_parallel_size=2)])
    given = service(chip="emu-l", pipeline_parallel_size=2)
    assert "an emulated chip paces whole steps" in whats(dryrun([given], ExitCode.CONFIG))
    faults = whats(dryrun([service(chip="bi-v150")], ExitCode.CONFIG))
    assert "no vLLM is known for chip 'bi-v150'" in faults


def test_serving_and_training_do_not_mix(dryrun: Dryrun) -> None:
    document = dryrun([service()], ExitCode.CONFIG, train={"model": {"num_layers": 2}})
    assert "'train' means nothing" in whats(document)
    task = {"experiment": {"exp_name": "s", "task": {"type": "train"}}, "train": {"model": {}}}
    assert "'serve' means nothing" in whats(dryrun([service()], ExitCode.CONFIG, **task))


def test_a_model_that_is_not_here_or_not_computed_is_found_before_anything_starts(
    dryrun: Dryrun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dryrun([service(chip="cpu", port=8765)])
    run = ["--config-path", ".", "--config-name", "exp", "action=run"]
    assert main(run) == ExitCode.CONFIG
    assert "no model in model" in capsys.readouterr().err
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"hidden_size": 160, "num_attention_heads": 4}))
    assert main(run) == ExitCode.CONFIG
    assert "does not compute attention heads of width 40" in capsys.readouterr().err


def test_training_actions_refuse_services(dryrun: Dryrun, capsys: pytest.CaptureFixture[str]) -> None:
    dryrun([service()])
    assert main(["--config-path", ".", "--config-name", "exp", "action=estimate"]) == ExitCode.CONFIG
    assert "the task is to serve" in capsys.readouterr().err


def test_the_table_is_of_the_version_that_it_says() -> None:
    assert TABLE.read_text().startswith(f"# vLLM {VLLM};")
    assert len(arguments()) > 250


def test_values_become_words_that_no_shell_and_no_parser_mistakes() -> None:
    given = {"served_model_name": ["a", "b c"], "chat_template": "-x; $(y)", "seed": 0, "enforce_eager": False}
    assert list(words(given)) == [
        *("--served-model-name", "a", "b c"), "--chat-template=-x; $(y)", "--seed=0", "--no-enforce-eager",
    ]  # fmt: skip

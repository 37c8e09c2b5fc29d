"""Instances that read prompts and instances that write answers: their YAML, and the commands that become of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flagvega.errors import ExitCode
from tests.unit.serve.conftest import EXPERIMENT, Dryrun, whats


def deploying(**deploy: Any) -> dict[str, Any]:
    """FlagScale's form of roles, as the experiment has it."""
    return EXPERIMENT["experiment"] | {"runner": {"deploy": {"prefill_decode_disaggregation": True, **deploy}}}


def service(name: str, role: str = "both", chip: str = "cpu", replicas: int = 1, **given: Any) -> dict[str, Any]:
    arguments = {"model": "model", "served_model_name": "m", **given}
    resources = {"num_replicas": replicas}
    return {"serve_id": name, "role": role, "chip": chip, "engine_args": arguments, "resources": resources}


def transfer(command: dict[str, Any]) -> dict[str, Any] | None:
    """What an instance is told about handing over."""
    prefix = "--kv-transfer-config="
    (found,) = [word.removeprefix(prefix) for word in command["argv"] if word.startswith(prefix)] or [None]
    return found and dict(json.loads(found))


def test_roles_become_connectors_that_meet_in_a_folder_of_the_run(dryrun: Dryrun) -> None:
    other = service("other", served_model_name="another")
    document = dryrun([service("r", "prefill"), service("w", "decode", replicas=2), service("b"), other])
    told = [transfer(each) for each in document["commands"]]
    assert [each and each["kv_role"] for each in told] == ["kv_producer", *["kv_consumer"] * 2, "kv_both", None]
    assert {each["kv_load_failure_policy"] for each in told if each} == {"recompute"}
    (folder,) = {each["kv_connector_extra_config"]["folder"] for each in told if each}
    assert folder == f"{document['run_dir']}/serve/handover"
    assert json.loads(document["files"]["job/serve.json"])["scratch"] == ["serve/handover"]
    settings = json.loads(document["files"]["job/gateway.json"])
    assert [each["role"] for each in settings["instances"]] == ["prefill", "decode", "decode", "both", "both"]
    plugin = Path(document["commands"][0]["env"]["PYTHONPATH"].partition(":")[0])
    assert (plugin / told[0]["kv_connector_module_path"].replace(".", "/")).with_suffix(".py").is_file()
    assert "PYTHONPATH" not in document["commands"][4]["env"]


def test_emulated_chips_have_both_plug_ins(dryrun: Dryrun) -> None:
    chips = {"nodes": [{"chip": "emu-l"}, {"chip": "emu-s"}]}
    document = dryrun([service("r", "prefill", "emu-l"), service("w", "decode", "emu-s")], cluster=chips)
    paths = [each["env"]["PYTHONPATH"].split(":") for each in document["commands"]]
    assert all(any("handover" in str(child) for child in Path(each[0]).iterdir()) and len(each) >= 2 for each in paths)


def test_flagscales_form_splits_its_service(dryrun: Dryrun) -> None:
    experiment = deploying(prefill_num=2, decode_num=1, prefill_address="auto")
    given = {"serve_id": "m", "engine_args": {"model": "model", "port": 9000}}
    document = dryrun([given], experiment=experiment, cluster={"nodes": [{"chip": "a800", "devices": 4}]})
    placed = document["plan"]["decisions"]["instances"]
    assert [(each["service"], each["role"], each["port"]) for each in placed] == [
        ("m-prefill", "prefill", 9000), ("m-prefill", "prefill", 9001), ("m-decode", "decode", 9002),
    ]  # fmt: skip
    commands = document["commands"]
    assert {each["argv"][each["argv"].index("--served-model-name") + 1] for each in commands} == {"m"}
    assert {transfer(each)["kv_connector"] for each in commands} == {"NixlConnector"}  # type: ignore[index]
    assert len({each["env"]["VLLM_NIXL_SIDE_CHANNEL_PORT"] for each in commands}) == 3
    assert "untested on hardware" in " ".join(document["warnings"])


def test_flagscales_replicas_that_follow_the_load_are_read(dryrun: Dryrun) -> None:
    given = service("m", replicas=2)
    given["resources"] |= {"min_replicas": 1, "max_replicas": 4}
    assert len(dryrun([given])["commands"]) == 2


def test_mistakes_with_roles_are_named(dryrun: Dryrun) -> None:
    reader, writer = service("r", "prefill"), service("w", "decode")
    assert "no service writes answers after 'r'" in whats(dryrun([reader], ExitCode.CONFIG))
    alone = service("w", "decode", served_model_name="n")
    faults = whats(dryrun([reader, alone], ExitCode.CONFIG))
    assert "no service writes answers after 'r'" in faults
    assert "no service reads prompts for 'w'" in faults
    assert "'prefil'" in whats(dryrun([service("r", "prefil"), writer], ExitCode.CONFIG))
    faults = whats(dryrun([service("r", "prefill", dtype="float32"), writer], ExitCode.CONFIG))
    assert "'dtype' is float32 in 'r' and None in 'w', which share requests" in faults
    own = service("r", "prefill", kv_transfer_config={"kv_role": "kv_both"})
    faults = whats(dryrun([own, writer], ExitCode.CONFIG))
    assert "its kv_transfer_config is then written for it" in faults
    chips = {"nodes": [{"chip": "a800"}, {"chip": "cpu"}]}
    faults = whats(dryrun([service("r", "prefill", "a800"), writer], ExitCode.CONFIG, cluster=chips))
    assert "hands over by nixl, and cpu by files" in faults
    chips = {"nodes": [{"chip": "ascend-910b4", "devices": 2}]}
    pair = [service("r", "prefill", "ascend-910b4"), service("w", "decode", "ascend-910b4")]
    assert "no connector is known for vLLM on" in whats(dryrun(pair, ExitCode.CONFIG, cluster=chips))


def test_mistakes_in_flagscales_form_are_named(dryrun: Dryrun) -> None:
    faults = whats(dryrun([service("a"), service("b")], ExitCode.CONFIG, experiment=deploying()))
    assert "how one service is split, and there are 2" in faults
    wrong = deploying(prefill_num=0, decode_num=True)
    faults = whats(dryrun([service("a", replicas=2)], ExitCode.CONFIG, experiment=wrong))
    assert "prefill_num: 0 is too small" in faults
    assert "decode_num: expected an integer" in faults
    wrong = deploying(decode_address="10.0.0.1")
    faults = whats(dryrun([service("a", replicas=2)], ExitCode.CONFIG, experiment=wrong))
    assert "hosts come from the cluster" in faults
    assert "says itself how many instances" in faults

"""The control side of vLLM: pure functions of the spec; vLLM itself is never imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from backends.vllm.arguments import keys, words
from backends.vllm.check import check_files, check_instances, check_services, find_serving, warnings_of
from backends.vllm.handover import check_pairs, check_roles, pair_arguments, pair_env, partners
from backends.vllm.host import check_host, find_python, plugin_env
from flagvega.config.keys import Key
from flagvega.config.spec import Service, Spec
from flagvega.errors import Fault
from flagvega.layout.serving import Instance
from flagvega.platform import find_chip, platforms
from flagvega.server import Command

PROGRAM: Final = "vllm.entrypoints.openai.api_server"
GUARD: Final = "flagvega_guard.Guard"
"""What stands before an instance that only the gateway shall reach."""
BENCH: Final = Path(__file__).with_name("bench.py")
QUIET: Final[Mapping[str, str]] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Nothing is downloaded and nothing is reported."""
METRICS: Final[Mapping[str, str]] = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_share": "vllm:kv_cache_usage_perc",
    "requests": "vllm:request_success_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "output_tokens": "vllm:generation_tokens_total",
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
    "first_token_s": "vllm:time_to_first_token_seconds",
    "per_token_s": "vllm:request_time_per_output_token_seconds",
    "cache_tokens": "kv_cache_size_tokens",
}


class VllmServer:
    """Serves with an unchanged vLLM: its own OpenAI-compatible server, a process per instance."""

    name = "vllm"

    def keys(self) -> Mapping[str, Key]:
        """Every argument of vLLM's server."""
        return keys()

    def check(self, spec: Spec) -> Sequence[Fault]:
        """Faults of the services' arguments."""
        return [*check_services(spec), *check_roles(spec)]

    def check_host(self) -> Sequence[Fault]:
        """Whether vLLM is here."""
        return check_host()

    def check_plan(self, spec: Spec, instances: Sequence[Instance]) -> Sequence[Fault]:
        """What the instances' chips cannot do."""
        return [*check_instances(spec, instances), *check_pairs(spec, instances)]

    def check_files(self, spec: Spec, instances: Sequence[Instance]) -> Sequence[Fault]:
        """Models that are not on this host, or that the instances' chips cannot compute."""
        return check_files(spec, instances)

    def warnings(self, spec: Spec, instances: Sequence[Instance]) -> Sequence[str]:
        """What a user should know."""
        return warnings_of(spec, instances)

    def shares(self, service: Service, services: Sequence[Service]) -> bool:
        """Whether others read prompts for it, or write answers after it."""
        return bool(partners(service, services))

    def command(self, service: Service, instance: Instance, num_on_host: int, handover: Path | None = None) -> Command:
        """vLLM's server for one instance."""
        given = dict(service.arguments) | (pair_arguments(instance, handover) if handover else {})
        names = given.pop("served_model_name", None) or [service.name]
        model = str(Path(str(given.pop("model"))).expanduser().absolute())
        ours = {"model": model, "served_model_name": names, "host": instance.host, "port": instance.port}
        serving = find_serving(instance.chip)
        others = {**(serving.arguments if serving else {}), **given}
        argv = [str(find_python()), "-m", PROGRAM, *words(ours | {k: v for k, v in others.items() if k not in ours})]
        env = self._env(instance, num_on_host)
        if handover:
            env = pair_env(instance, env)
        if instance.is_away:
            argv.append(f"--middleware={GUARD}")
            env = plugin_env(env)
        return Command(tuple(argv), env, names[0], metrics=METRICS)

    def bench(self) -> Command:
        """vLLM's benchmark for servers."""
        # Which chips serve does not matter to what asks; without this it would look for some.
        return Command((str(find_python()), str(BENCH)), {**QUIET, "VLLM_TARGET_DEVICE": "cpu"})

    def _env(self, instance: Instance, num_on_host: int) -> Mapping[str, str]:
        platform = platforms.get(find_chip(instance.chip).vendor)
        serving = find_serving(instance.chip)
        workers = instance.tp * instance.pp
        chip = platform.serving_env(instance.chip, instance.devices, workers, instance.place, num_on_host)
        return {**QUIET, **(serving.env if serving else {}), **chip}


server = VllmServer()

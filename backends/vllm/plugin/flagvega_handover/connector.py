"""vLLM's connector: saves the cache of a prompt that another engine goes on with, and loads it there.

What passes between the engines through the client is what vLLM's other connectors use: a request with
``kv_transfer_params: {do_remote_decode: true}`` is answered with the parameters of the request that goes on,
``{do_remote_prefill: true, file: <name>}``. A cache that is not there, or is of something else, is computed anew.

vLLM's own connector for files (``ExampleConnector``) finds a cache by its prompt alone and ends the engine when a file
is not whole; a prompt that is read in several steps is saved after the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, KVConnectorRole
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.logger import init_logger
from vllm.v1.request import RequestStatus

from .files import Facts, Folder, HandoverError, hash_tokens, is_name

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger("vllm.flagvega_handover")

KEEP_S = 300.0
"""A cache that nobody came for is kept so long."""


@dataclass
class Saving:
    """A prompt that is being read for another engine."""

    name: str
    facts: Facts
    block_ids: list[int] = field(default_factory=list)
    done: bool = False


@dataclass(frozen=True)
class Save:
    """Order to the workers: save these blocks."""

    name: str
    facts: Facts
    block_ids: tuple[int, ...]


@dataclass(frozen=True)
class Load:
    """Order to the workers: load blocks, from the ``first`` of the file on, into these."""

    name: str
    first: int
    block_ids: tuple[int, ...]
    num_tokens: int


@dataclass
class Orders(KVConnectorMetadata):
    """What the workers do in a step."""

    saves: list[Save] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)


class FileConnector(KVConnectorBase_V1):
    """One for the scheduler of an engine, and one for each of its workers."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._folder = Folder(Path(self._kv_transfer_config.get_from_extra_config("folder", None)), KEEP_S)
        self._block_size = vllm_config.cache_config.block_size
        self._num_blocks = kv_cache_config.num_blocks
        parallel = vllm_config.parallel_config
        self._num_ranks = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
        self._model = str(vllm_config.model_config.model)
        # Of the scheduler:
        self._saving: dict[str, Saving] = {}
        self._found: dict[str, int] = {}
        self._orders = Orders()
        # Of a worker:
        self._caches: dict[str, torch.Tensor] = {}
        self._failed: set[int] = set()

    # ---- the scheduler's side ----

    def on_new_request(self, request: Request) -> None:
        """A request came; its prompt may be for another engine."""
        if (request.kv_transfer_params or {}).get("do_remote_decode") and request.prompt_token_ids:
            facts = self._facts(request, request.num_prompt_tokens)
            self._saving[request.request_id] = Saving(self._folder.new_name(), facts)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens of the prompt that are there, beyond those that the engine has itself."""
        params = request.kv_transfer_params or {}
        name = params.get("file")
        if not params.get("do_remote_prefill") or not is_name(name) or not request.prompt_token_ids:
            return 0, False
        if not self._folder.find(name, self._facts(request, request.num_prompt_tokens)):
            logger.warning("No cache for request %s: its prompt is read here", request.request_id)
            return 0, False
        # The last token is computed: its logits are the first answer.
        self._found[request.request_id] = request.num_prompt_tokens - 1
        return max(0, request.num_prompt_tokens - 1 - num_computed_tokens), False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Blocks were given to a request, and it runs in this step."""
        num_tokens = self._found.pop(request.request_id, None)
        if num_tokens is None:
            return
        name = request.kv_transfer_params["file"]
        if num_external_tokens:
            first = (num_tokens - num_external_tokens) // self._block_size
            last = -(-num_tokens // self._block_size)
            ids = tuple(blocks.get_block_ids()[0][first:last])
            self._orders.loads.append(Load(name, first, ids, num_external_tokens))
        else:
            self._folder.remove(name, range(self._num_ranks))  # the engine has all of it itself

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Orders:
        """The orders of a step: a prompt is saved in the step that reads the last of it."""
        scheduled = scheduler_output.num_scheduled_tokens
        for new in scheduler_output.scheduled_new_reqs:
            if saving := self._saving.get(new.req_id):
                saving.block_ids = list(new.block_ids[0])
                self._save(saving, new.num_computed_tokens + scheduled[new.req_id])
        cached = scheduler_output.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            saving = self._saving.get(request_id)
            if saving is None or saving.done:
                continue
            more = list(cached.new_block_ids[i][0]) if cached.new_block_ids[i] else []
            saving.block_ids = more if request_id in cached.resumed_req_ids else saving.block_ids + more
            self._save(saving, cached.num_computed_tokens[i] + scheduled[request_id])
        orders, self._orders = self._orders, Orders()
        return orders

    def _save(self, saving: Saving, num_computed: int) -> None:
        if num_computed >= saving.facts.num_tokens:
            num_blocks = -(-saving.facts.num_tokens // self._block_size)
            self._orders.saves.append(Save(saving.name, saving.facts, tuple(saving.block_ids[:num_blocks])))
            saving.done = True

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """What the client needs in order to go on elsewhere."""
        self._found.pop(request.request_id, None)
        self._folder.sweep()
        saving = self._saving.pop(request.request_id, None)
        if saving is None or not saving.done:
            return False, None
        if request.status not in (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED):
            self._folder.remove(saving.name, range(self._num_ranks))
            return False, None
        return False, {"do_remote_prefill": True, "do_remote_decode": False, "file": saving.name}

    def _facts(self, request: Request, num_tokens: int) -> Facts:
        others = [feature.identifier for feature in request.mm_features]
        if request.lora_request:
            others.append(request.lora_request.lora_name)
        tokens = hash_tokens(request.prompt_token_ids, others)
        return Facts(self._model, tokens, num_tokens, self._block_size, self._num_ranks)

    # ---- a worker's side ----

    @property
    def _rank(self) -> int:
        tp = get_tp_group()
        return int(get_pp_group().rank_in_group * tp.world_size + tp.rank_in_group)

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """The worker's caches, ``[blocks, ...]`` a layer."""
        for layer, cache in kv_caches.items():
            if cache.shape[0] != self._num_blocks:
                raise ValueError(f"{layer}: {self._num_blocks} blocks were expected, its cache is {tuple(cache.shape)}")
        self._caches = kv_caches

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Load what the step needs; what cannot be loaded is told, and computed instead."""
        for load in self._step().loads:
            try:
                self._folder.load(load.name, self._rank, self._caches, load.first, load.block_ids)
                self._folder.remove(load.name, [self._rank])
                logger.info("Took the cache of %d tokens", load.num_tokens)
            except HandoverError as error:
                logger.warning("A cache of %d tokens cannot be loaded: %s", load.num_tokens, error)
                self._failed |= set(load.block_ids)

    def wait_for_save(self) -> None:
        """Save the prompts that were read to their end."""
        for save in self._step().saves:
            try:
                self._folder.save(save.name, self._rank, self._taken(save.block_ids), save.facts)
                logger.info("Gave the cache of %d tokens", save.facts.num_tokens)
            except HandoverError as error:
                logger.warning("A cache cannot be saved: %s", error)

    def _taken(self, block_ids: Sequence[int]) -> dict[str, torch.Tensor]:
        return {layer: cache[list(block_ids)].cpu().contiguous() for layer, cache in self._caches.items()}

    def _step(self) -> Orders:
        orders = self._get_connector_metadata()
        assert isinstance(orders, Orders)
        return orders

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that hold nothing of use."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All is loaded before a step begins."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """All is saved at the end of a step."""

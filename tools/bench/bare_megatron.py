"""The rival of train_overhead.py: a bare megatron-core training loop on one CPU process.

Same model, attention, layer spec, data, optimizer, thread count and log interval as flagvega's run; no
plan, no launcher, no supervisor, no metrics file: what is written here is all there is.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from backends.megatron import construct, facade, repairs
from backends.megatron.attention import CoreAttention
from backends.megatron.data import build_datasets
from backends.megatron.norm import Norm
from backends.megatron.vocabulary import read_vocabulary
from hardware.cpu.device import device


def compute_loss(mask: torch.Tensor, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summed loss, its tokens, and what is logged."""
    total, count = (losses.float() * mask).sum(), mask.sum()
    return total, count.int(), torch.stack([total.detach(), count])


def forward_step(batches: Any, model: Any) -> Any:
    """One micro-batch through the model."""
    batch = next(batches)
    output = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return output, partial(compute_loss, batch["loss_mask"])


def train(arguments: dict[str, Any], num_steps: int) -> None:
    """Build and train; prints a line a step."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1234)
    config = construct.transformer_config(arguments, fused=False, calculate_per_token_loss=True)
    spec = get_gpt_layer_local_spec(normalization=config.normalization)
    spec.submodules.self_attention.submodules.core_attention = CoreAttention
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = Norm
    vocabulary = read_vocabulary(arguments)
    gpt = GPTModel(
        config,
        TransformerBlockSubmodules(layer_specs=[spec] * config.num_layers, layer_norm=Norm),
        vocab_size=arguments["padded_vocab_size"],
        max_sequence_length=arguments["seq_length"],
        position_embedding_type="rope",
    )
    model = DistributedDataParallel(config, construct.ddp_config(arguments), gpt)
    optimizer = get_megatron_optimizer(construct.optimizer_config(arguments), [model])
    config.finalize_model_grads_func, config.grad_scale_func = finalize_model_grads, optimizer.scale_loss
    size, batch = arguments["micro_batch_size"], arguments["global_batch_size"]
    dataset, _, _ = build_datasets(
        arguments,
        vocabulary,
        (num_steps * batch, 0, 0),
        cache=Path(sys.argv[1]).parent,
        owner=True,
        barrier=lambda: None,
    )
    run_schedule = get_forward_backward_func()
    for step in range(num_steps):
        samples = [dataset[step * batch + i] for i in range(batch)]  # type: ignore[index]
        groups = [samples[i : i + size] for i in range(0, batch, size)]
        batches = ({name: torch.stack([one[name] for one in group]) for name in group[0]} for group in groups)
        model.zero_grad_buffer()
        optimizer.zero_grad()
        reports = run_schedule(
            forward_step_func=forward_step,
            data_iterator=batches,
            model=model,
            num_microbatches=batch // size,
            seq_length=arguments["seq_length"],
            micro_batch_size=size,
            forward_only=False,
        )
        _, grad_norm, _ = optimizer.step()
        total, count = torch.stack(reports).sum(0).tolist()
        print(f"step {step + 1} loss {total / count:.4f} grad norm {grad_norm:.3f}", flush=True)


def main() -> None:
    """``bare_megatron.py ARGUMENTS.json NUM_STEPS``."""
    with open(sys.argv[1]) as file:
        arguments = json.load(file)
    torch.set_num_threads(1)
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[3])
    dist.init_process_group("gloo")
    facade.install(device.open("cpu", 0), device.namespace)
    repairs.mend()
    train(arguments, int(sys.argv[2]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

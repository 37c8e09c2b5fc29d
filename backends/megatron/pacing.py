"""Tells the device what each piece of the model costs; real chips do not listen, emulated ones wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from backends.megatron.shape import shape_from_arguments
from flagvega.layout.ranks import Place
from flagvega.model.work import Work, backward, embedding_work, head_work, layer_work
from flagvega.platform import Device


def is_paced(device: Device) -> bool:
    """Whether the device wants to know; hooks cost time on those that do not."""
    return type(device).duration_s is not Device.duration_s


def pace_model(device: Device, chunks: list[Any], config: Any, arguments: Mapping[str, Any], me: Place) -> None:
    """Hook the embedding, every layer and the head of the rank's chunks."""
    if not is_paced(device):
        return
    shape = shape_from_arguments(arguments)
    samples, seq = me.stage.replicas[0].micro_batch_size, arguments["seq_length"]
    size = config.params_dtype.itemsize
    degrees = {"tp": me.mesh.tp, "cp": me.mesh.cp, "element_bytes": size}
    activation_bytes = size * samples * seq // me.mesh.cp * config.hidden_size
    collective_bytes = 2 * activation_bytes if me.mesh.tp > 1 else 0
    for chunk in chunks:
        if chunk.pre_process:
            work = embedding_work(shape, seq, samples, cp=me.mesh.cp, element_bytes=size)
            _hook(device, chunk.embedding, chunk.embedding, "embedding", work, me.mesh.tp, 0)
        for layer in chunk.decoder.layers:
            work = layer_work(shape, layer.layer_number - 1, seq, samples, ep=me.mesh.ep, **degrees)
            _hook(device, layer, layer, "layer", work, me.mesh.tp, collective_bytes)
        if chunk.post_process:
            # The head ends with the loss, which the chunk computes after its output layer.
            _hook(device, chunk.output_layer, chunk, "head", head_work(shape, seq, samples, **degrees), me.mesh.tp, 0)


def pace_optimizer(device: Device, num_parameters: int) -> None:
    """Adam reads and writes weight, gradient and two moments: about 28 bytes and 12 FLOPs a parameter."""
    device.pace("optimizer", 12.0 * num_parameters, 28.0 * num_parameters)


def _hook(device: Device, first: Any, last: Any, kind: str, work: Work, tp: int, collective_bytes: int) -> None:
    """Pace the work between the input of module ``first`` and the output of module ``last``."""
    back = backward(work)

    def pace(suffix: str, amount: Work) -> None:
        device.pace(f"{kind}_{suffix}", amount.flops, amount.num_bytes, tp)
        if collective_bytes:
            device.pace("collective", 0.0, collective_bytes, tp)

    def watch_input(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The gradient of a module's input is there: its backward pass is done."""
        entering = kwargs.get("hidden_states", args[0] if args else None)
        if torch.is_grad_enabled() and isinstance(entering, torch.Tensor) and entering.requires_grad:
            entering.register_hook(lambda _: pace("bwd", back))

    # Module.register_full_backward_hook would make the output a view, which the schedule refuses.
    first.register_forward_pre_hook(watch_input, with_kwargs=True)
    last.register_forward_hook(lambda *_: pace("fwd", work))

"""When each part of a model's passes is done: by the host's clock, or by the device's own events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Stopwatch:
    """Names points in time; on a device that works behind the host's back they are events in its stream."""

    def __init__(self, device: torch.device, namespace: Any) -> None:
        self._device, self._namespace = device, namespace
        self._points: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """Something is done now."""
        if self._device.type == "cpu":
            self._points.append((name, time.perf_counter()))
            return
        event = self._namespace.Event(enable_timing=True)
        event.record()
        self._points.append((name, event))

    def take(self) -> list[tuple[str, float]]:
        """(name, seconds since the mark before) of all marks but the first; they are forgotten."""
        points, self._points = self._points, []
        if self._device.type == "cpu":
            return [(name, end - begin) for (_, begin), (name, end) in zip(points, points[1:], strict=False)]
        self._namespace.synchronize()
        return [
            (name, begin.elapsed_time(end) / 1e3) for (_, begin), (name, end) in zip(points, points[1:], strict=False)
        ]


def watch_model(chunk: Any, mark: Callable[[str], None]) -> None:
    """Mark the end of every part's passes: ``fwd <part>`` and ``bwd <part>``; the end of all is the caller's.

    A part's backward pass is done when the gradient of its input is there. Hook after whatever else hooks it.
    """
    parts = [("embedding", chunk.embedding)]
    parts += [(f"layer {i}", layer) for i, layer in enumerate(chunk.decoder.layers)]
    for name, module in parts:
        module.register_forward_hook(lambda *_, name=name: mark(f"fwd {name}"))
    for name, module in [*parts[1:], ("head", chunk.output_layer)]:
        module.register_forward_pre_hook(_watch_input(name, mark), with_kwargs=True)


def _watch_input(name: str, mark: Callable[[str], None]) -> Callable[..., None]:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering = kwargs.get("hidden_states", args[0] if args else None)
        if isinstance(entering, Tensor) and entering.requires_grad:
            entering.register_hook(lambda _: mark(f"bwd {name}"))

    return hook


class SavedBytes:
    """Bytes that passes save for the backward pass, by part; parameters and what a part before saved count once."""

    def __init__(self, chunk: Any) -> None:
        self.by_part: dict[str, int] = {}
        self._known = {parameter.untyped_storage().data_ptr() for parameter in chunk.parameters()}
        self._part = "embedding"
        self._hooks = [
            module.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
            for name, module in _parts_in_order(chunk)
        ]

    def _enter(self, name: str) -> None:
        self._part = name

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is saved in the block."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            yield
        for hook in self._hooks:
            hook.remove()

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.by_part[self._part] = self.by_part.get(self._part, 0) + storage.nbytes()
        return tensor


def _parts_in_order(chunk: Any) -> list[tuple[str, Any]]:
    parts = [("embedding", chunk.embedding)]
    parts += [(f"layer {i}", layer) for i, layer in enumerate(chunk.decoder.layers)]
    final_norm = chunk.decoder.final_layernorm
    return [*parts, ("head", final_norm)] if final_norm is not None else [*parts, ("head", chunk.output_layer)]

"""Runs megatron-core on a device that is not CUDA, without touching torch for anybody else.

megatron-core writes ``torch.cuda.current_device()`` and ``device="cuda"``. Every ``megatron.core``
module gets a stand-in for its global name ``torch``: factories put tensors on the rank's device and
``.cuda`` is the device's own namespace; all else is torch itself. ``Tensor.cuda`` and ``Tensor.type``
are adapted too, and only for callers inside megatron-core. On CUDA nothing is installed.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch

FACTORIES = """
    tensor zeros ones empty full arange rand randn randint eye linspace as_tensor zeros_like ones_like empty_like
    full_like rand_like randn_like tril_indices triu_indices
""".split()  # noqa: SIM905
PACKAGE = "megatron.core"


def install(device: torch.device, namespace: Any) -> None:
    """Make megatron-core, loaded or not, use ``device``; ``namespace`` answers for ``torch.cuda``."""
    facade = TorchFacade(device, namespace)
    for name, module in list(sys.modules.items()):
        if name.startswith(PACKAGE):
            _adapt(module, facade)
    sys.meta_path.insert(0, _Finder(facade))
    _adapt_tensor(device)
    _adapt_random(namespace)


class TorchFacade(types.ModuleType):
    """``torch`` as megatron-core should see it."""

    def __init__(self, device: torch.device, namespace: Any) -> None:
        super().__init__("torch")
        self.cuda = namespace
        for name in FACTORIES:
            setattr(self, name, _redirect(getattr(torch, name), device))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _redirect(factory: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> Any:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = device
        if device.type == "cpu":
            kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return make


def _is_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) or getattr(device, "type", None) == "cuda"


def _adapt(module: types.ModuleType, facade: TorchFacade) -> None:
    if vars(module).get("torch") is torch:
        vars(module)["torch"] = facade


class _Loader(importlib.abc.Loader):
    """The ordinary loader, and the stand-in put in place once the module has run."""

    def __init__(self, loader: Any, facade: TorchFacade) -> None:
        self._loader, self._facade = loader, facade

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        module: types.ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        self._loader.exec_module(module)
        _adapt(module, self._facade)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, facade: TorchFacade) -> None:
        self._facade = facade

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(PACKAGE):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec and spec.loader and not isinstance(spec.loader, importlib.machinery.ExtensionFileLoader):
            spec.loader = _Loader(spec.loader, self._facade)
        return spec


def _adapt_tensor(device: torch.device) -> None:
    to_cuda, type_of = torch.Tensor.cuda, torch.Tensor.type

    def cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.to(device) if _called_by_megatron() else to_cuda(self, *args, **kwargs)

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = type_of(self, *args, **kwargs)
        if isinstance(answer, str) and "cuda" not in answer and _called_by_megatron():
            # megatron-core compares with 'torch.cuda.FloatTensor' and its kin.
            return "torch.cuda." + answer.rsplit(".", 1)[1]
        return answer

    torch.Tensor.cuda, torch.Tensor.type = cuda, type_  # type: ignore[method-assign, assignment]


def _called_by_megatron() -> bool:
    return str(sys._getframe(2).f_globals.get("__name__", "")).startswith(PACKAGE)


def _adapt_random(namespace: Any) -> None:
    """megatron-core's tracker of random states reads ``torch.cuda.default_generators`` through two helpers."""
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda device=None, clone=False, graph_safe=False: namespace.get_rng_state()
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: namespace.set_rng_state(state)

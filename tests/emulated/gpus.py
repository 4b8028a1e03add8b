"""The context within which torch sees GPUs, and what it counts."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from emulated.rules import COPIES, flops_of, line, refuse_mixture, traits_of, wait_of
from emulated.surroundings import patches
from emulated.tensors import CPU, Memory, Moved, OnGpu
from emulated.trees import first, leaves, mapped


class EmulatedGpus:
    """Is a context within which there are `count` GPUs of the given name and memory."""

    def __init__(self, count: int = 1, name: str = "Emulated GPU", memory: int = 80 * 2**30) -> None:
        self.name, self.current, self.initialised, self.running = name, 0, False, False
        self.memories = [Memory(memory) for _ in range(count)]
        self.launches, self.flops = 0, 0.0
        self.waits: Counter[tuple[str, str]] = Counter()
        self.float64_flops: defaultdict[str, float] = defaultdict(float)
        self.calls: list[int | None] = []  # the GPU of whose tensors each call of torch is, or None

    def __enter__(self) -> EmulatedGpus:
        self._stack, self.running = contextlib.ExitStack(), True
        for context in (*patches(self), _Function(self), _Dispatch(self)):
            self._stack.enter_context(context)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        self.running = False

    def wait(self, what: str) -> None:
        """Count that the host waits for the GPU."""
        self.waits[what, line()] += 1

    def report(self, most: int = 12) -> str:
        """Return launches, waits and peaks, and the lines at which the host waits the most often."""
        share = sum(self.float64_flops.values()) / max(1.0, self.flops)
        peaks = ", ".join(f"{memory.peak:,}" for memory in self.memories)
        head = f"launches {self.launches:,}; waits {sum(self.waits.values()):,}; peaks {peaks} bytes"
        lines = [f"{head}; {share:.0%} of the FLOPs of products in float64"]
        lines += [f"  {times:7,} x {what:26} {where}" for (what, where), times in self.waits.most_common(most)]
        return "\n".join(lines)

    def device(self, asked: Any) -> Any:
        """Return the device that is asked for, with its number where it is a GPU."""
        if asked is None:
            return None
        device = torch.device("cuda", asked) if isinstance(asked, int) else torch.device(asked)
        if device.type != "cuda":
            return device
        index = self.current if device.index is None else device.index
        if index >= len(self.memories):
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device("cuda", index)

    def moved(self, x: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return x on another device; its gradient finds the way back."""
        if x.numel():
            kinds = {"cpu": "the CPU", "cuda": "the GPU"}
            pageable = ", pageable" if x.device.type == "cpu" else ""
            between = x.device.type == device.type
            self.wait("copy between GPUs" if between else f"copy to {kinds[device.type]}{pageable}")
        if x.requires_grad and torch.is_grad_enabled():
            return Moved.apply(x, self, device)
        return self.copied(x, device)

    def copied(self, x: torch.Tensor, device: torch.device) -> torch.Tensor:
        inner = (x.inner if isinstance(x, OnGpu) else x).detach().clone()
        return OnGpu(inner, self, device.index) if device.type == "cuda" else inner

    def to(self, func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """Do `Tensor.to`, `.cuda` and `.cpu`."""
        x, rest = args[0], list(args[1:])
        device = kwargs.pop("device", None)
        if func is torch.Tensor.cuda:
            device, rest = "cuda", []
        elif func is torch.Tensor.cpu:
            device, rest = CPU, []
        elif rest and isinstance(rest[0], torch.Tensor):
            other = rest.pop(0)
            device, rest = other.device, [other.dtype, *rest]
        elif rest and isinstance(rest[0], str | torch.device | int) and not isinstance(rest[0], bool):
            device = rest.pop(0)
        device = self.device(device)
        if device is not None and device.type not in ("cuda", "cpu"):
            real = x.inner if isinstance(x, OnGpu) else x
            return func(real, device, *rest, **kwargs)  # such as meta, which takes no memory
        kwargs.pop("non_blocking", None)
        if device is not None and device != x.device:
            x = self.moved(x, device)
        self.calls.append(getattr(x, "index", None))
        try:
            return torch.Tensor.to(x, *rest, **kwargs) if rest or kwargs else x
        finally:
            self.calls.pop()

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one operation of torch on what the tensors of GPUs really are."""
        tensors = [one for one in leaves([*args, *kwargs.values()]) if isinstance(one, torch.Tensor)]
        mine = [one for one in tensors if isinstance(one, OnGpu)]
        index = mine[0].index if mine else self.calls[-1] if self.calls and not tensors else None
        if index is None:
            return func(*args, **kwargs)
        others = [one for one in tensors if not isinstance(one, OnGpu) or one.index != index]
        if mine and others and refuse_mixture(func, args, tensors, others):
            self.wait("indices copied to the GPU")
        self._count(func, args, tensors, mine)
        out = traits_of(func).on_cpu(*mapped(args, _real), **mapped(kwargs, _real))
        if func in COPIES and not isinstance(args[0], OnGpu):
            return args[0]
        known = {id(one.inner): one for one in mine}  # what is changed in place stays what it is
        if isinstance(out, torch.Tensor):
            return known[id(out)] if id(out) in known else OnGpu(out, self, index)
        return mapped(out, lambda one: known[id(one)] if id(one) in known else self._wrapped(one, index))

    def _wrapped(self, found: Any, index: int) -> Any:
        return OnGpu(found, self, index) if isinstance(found, torch.Tensor) else found

    def _count(self, func: Any, args: Any, tensors: list[torch.Tensor], mine: list[OnGpu]) -> None:
        traits = traits_of(func)
        self.launches += traits.launches
        if traits.may_wait and (what := wait_of(func, args)):
            self.wait(what)
        if traits.computes and (flops := flops_of(func, tensors)):
            self.flops += flops
            if mine and mine[0].dtype == torch.float64:
                self.float64_flops[line()] += flops


def _real(one: Any) -> Any:
    return one.inner if isinstance(one, OnGpu) else one


class _Dispatch(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to say so for each operation takes time

    def __init__(self, gpus: EmulatedGpus) -> None:
        super().__init__()
        self.gpus = gpus

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpus.run(func, args, kwargs or {})


class _Function(TorchFunctionMode):
    """Takes care of `device`, which C++ must not see, and notes whether a call is one on tensors of a GPU."""

    def __init__(self, gpus: EmulatedGpus) -> None:
        super().__init__()
        self.gpus = gpus

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return torch.device("cuda", args[0]) if args and isinstance(args[0], int) else func(*args, **kwargs)
        if args and isinstance(args[0], torch.Tensor):
            if func in (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu):
                return self.gpus.to(func, args, kwargs)
            if isinstance(args[0], OnGpu):
                if func in (torch.Tensor.numpy, torch.Tensor.tolist):
                    return getattr(args[0], func.__name__)()
                if func is torch.Tensor.new_tensor and kwargs.get("device") is None:
                    made = torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype)
                    return self.gpus.moved(made, args[0].device)
        return self._call(func, args, kwargs)

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        found = first((args, kwargs), OnGpu)
        mine = None if found is None else found.index
        device = self.gpus.device(kwargs.pop("device", None))
        if device is not None and device.type not in ("cuda", "cpu"):
            return func(*mapped(args, _real), **mapped(kwargs, _real), device=device)  # such as meta
        if device is not None and device.type == "cuda":
            draw = kwargs.get("generator")
            if draw is not None and draw.device.type == "cpu":
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        kwargs.pop("pin_memory", None)  # which safetensors asks for on the way to a GPU
        if device is not None and mine is None:
            kwargs["device"] = CPU  # as C++ sees the GPU
        self.gpus.calls.append(mine)
        try:
            found = func(*args, **kwargs)
        finally:
            self.gpus.calls.pop()
        if device is None or not isinstance(found, torch.Tensor):
            return found
        if device.type == "cuda" and not isinstance(found, OnGpu):  # made there, so that nothing is copied
            return OnGpu(found.detach(), self.gpus, device.index).requires_grad_(found.requires_grad)
        return found if found.device == device else self.gpus.moved(found, device)

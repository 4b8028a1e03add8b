"""Checks a GPU's limits and neighbours: running out of memory, copies, and a second GPU. A CPU has none of these."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.doctor import answers, machine, pruning
from bench.doctor.finding import Finding, judged
from bench.system import failures
from bench.system.memory import give_back

SPREAD = "slicegpt"  # that a model is pruned with whose layers lie on both
TOO_MUCH = 16  # times the whole memory of the card
COPIED = 2**24  # numbers
SECOND = ("shortgpt", "flap", "slicegpt", "llm-pruner")  # methods that a second GPU is tried with


def memory(device: torch.device) -> Iterator[Finding]:
    """Ask a GPU for more memory than it has: it must be recognised, and leave the GPU as it was."""
    what = "out of memory"
    if device.type != "cuda":
        reason = "a CPU's memory is not exhausted on purpose, since the system may kill any process then"
        yield Finding("not here", what, reason)
        return
    asked = TOO_MUCH * torch.cuda.get_device_properties(device).total_memory
    wrong = list[str]()
    try:
        torch.empty(asked, dtype=torch.uint8, device=device)
        wrong.append(f"the GPU gave {asked / 2**30:,.0f} GiB, {TOO_MUCH} times what it has")
    except Exception as error:
        if not failures.is_out_of_memory(error):
            wrong.append(f"not recognised: {failures.reason(error)}")
    give_back([device])
    after = machine.product(device, torch.float32)
    if after.status != "ok":
        wrong.append(f"products afterwards: {after.figure}")
    yield judged(what, wrong, f"recognised at {asked / 2**30:,.0f} GiB, and the GPU works on")


def copies(device: torch.device) -> Iterator[Finding]:
    """Copy numbers to the GPU and back, and look at a second GPU where there is one."""
    if device.type != "cuda":
        yield Finding("not here", "copies", "a CPU copies nothing to another device")
        yield Finding("not here", "second GPU", "looked at the CPU")
        return
    yield copied("copies", torch.device("cpu"), device)
    others = [number for number in range(torch.cuda.device_count()) if number != (device.index or 0)]
    if not others:
        yield Finding("not here", "second GPU", "torch sees one")
        return
    second = torch.device("cuda", others[0])
    yield copied("copies between GPUs", device, second)
    stored = answers.read()
    for name in SECOND:
        found = pruning.one(name, second, stored[name])
        yield Finding(found.status, f"{name} on {second}", found.figure, found.found, found.where)
    both = [torch.device("cuda", device.index or 0), second]
    found = pruning.one(SPREAD, both, stored[SPREAD])
    yield Finding(found.status, f"{SPREAD} over both GPUs", found.figure, found.found, found.where)


def copied(what: str, here: torch.device, there: torch.device) -> Finding:
    """Copy numbers from one device to another and back: not a bit may change."""
    numbers = torch.arange(COPIED, dtype=torch.int32)
    first = numbers.to(here)
    second = first.to(there)
    back = second.to(here)
    steps = {f"to {here}": first, f"to {there}": second, f"back to {here}": back}
    wrong = [f"changed on the way {step}" for step, tensor in steps.items() if not torch.equal(tensor.cpu(), numbers)]
    return judged(what, wrong, f"{COPIED * 4 / 2**20:.0f} MiB from {here} to {there} and back, every bit the same")

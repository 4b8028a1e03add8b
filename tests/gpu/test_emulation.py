"""The emulated GPU itself: it refuses what CUDA refuses and takes what CUDA takes, and counts what it says."""

from __future__ import annotations

import pytest
import torch
from emulated import DeviceMismatch, EmulatedGpus

REFUSED = {
    "sum": lambda here, there: here + there,
    "product": lambda here, there: here @ there,
    "index_select": lambda here, there: here.index_select(0, there[0].long()),
    "cat": lambda here, there: torch.cat([here, there]),
    "embedding": lambda here, there: torch.nn.functional.embedding(there.long(), here),
    "index of the CPU by the GPU": lambda here, there: there[here > 0],
    "into the CPU": lambda here, there: there.add_(here),
    "numpy": lambda here, there: here.numpy(),
    "draw": lambda here, there: torch.rand(3, generator=torch.Generator(), device="cuda"),
    "two GPUs": lambda here, there: here + there.to("cuda:1"),
    "index of another GPU": lambda here, there: here[there[0].long().to("cuda:1")],
    "data": lambda here, there: setattr(here, "data", there),
    "a GPU that is not there": lambda here, there: there.to("cuda:2"),
}
TAKEN = {
    "number": lambda here, there: here + 1.0,
    "scalar tensor": lambda here, there: here * there.sum(),
    "index": lambda here, there: here[there[0].long()],
    "mask": lambda here, there: here[there > 0],
    "copy": lambda here, there: here.copy_(there),
    "back": lambda here, there: here.cpu() + there,
    "between GPUs": lambda here, there: here + there.to("cuda:1").to("cuda:0"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses(what):
    with EmulatedGpus(count=2), pytest.raises((DeviceMismatch, RuntimeError, TypeError)):
        REFUSED[what](torch.zeros(2, 2, device="cuda"), torch.zeros(2, 2))


@pytest.mark.parametrize("what", TAKEN)
def test_what_cuda_takes(what):
    """And gives what the CPU gives where nothing has to be on another device."""
    ones = torch.ones(2, 2)
    with EmulatedGpus(count=2):
        found = TAKEN[what](torch.ones(2, 2, device="cuda"), ones.clone()).cpu()
    expected = {"number": 2.0, "scalar tensor": 4.0, "index": 1.0, "mask": 1.0, "copy": 1.0, "back": 2.0}
    assert torch.equal(found, torch.full_like(found, expected.get(what, 2.0)))
    assert found.numel() == 4


def test_waits_launches_and_work_in_float64_are_counted():
    with EmulatedGpus() as gpus:
        x = torch.ones(4, 4, device="cuda")
        gpus.launches = 0
        y = (x @ x).t()
        assert (gpus.launches, sum(gpus.waits.values()), gpus.flops) == (1, 0, 2 * 4**3)
        assert float(y.sum()) == 64
        assert [what for what, _ in gpus.waits] == ["item"]
        assert not gpus.float64_flops
        x.double() @ x.double()
        assert list(gpus.float64_flops.values()) == [2 * 4**3]


def test_memory_is_of_the_storages_that_are_alive():
    with EmulatedGpus(count=2, memory=1000) as gpus:
        x = torch.zeros(100, device="cuda:1")
        view = x[:10]
        assert [memory.now for memory in gpus.memories] == [0, 400]
        del x
        assert torch.cuda.memory_allocated("cuda:1") == 400  # of which the view is a part
        del view
        assert torch.cuda.memory_allocated(1) == 0
        assert torch.cuda.max_memory_allocated(1) == 400
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(251, device="cuda")


def test_a_shape_without_values_takes_no_memory():
    with EmulatedGpus() as gpus:
        x = torch.ones(8, 4, device="cuda")
        before = gpus.memories[0].now
        for shape in (torch.empty_like(x, device="meta"), x.to("meta"), torch.empty(8, 4, device="meta")):
            assert (shape.device.type, gpus.memories[0].now) == ("meta", before)
            assert shape.index_select(0, torch.arange(2, device="meta")).shape == (2, 4)
        assert gpus.memories[0].peak == before


def test_a_gradient_finds_its_way_back_between_devices():
    with EmulatedGpus(count=2):
        x = torch.ones(3, device="cuda:0", requires_grad=True)
        torch.autograd.backward((2 * x).to("cuda:1").sum())
        assert x.grad.device == torch.device("cuda:0")
        assert x.grad.tolist() == [2, 2, 2]


def test_nothing_is_left_of_it():
    with EmulatedGpus():
        x = torch.zeros(1, device="cuda")
    assert not torch.cuda.is_available()
    with pytest.raises(RuntimeError, match="outside"):
        x + 1


def test_tensors_in_a_list_are_on_the_gpu_as_others_are():
    rows = [torch.arange(2.0), torch.arange(3.0)]
    with EmulatedGpus():
        there = [row.cuda() for row in rows]
        for join in (torch.cat, torch.nn.utils.rnn.pad_sequence):  # the second makes a tensor of its own first
            joined = join(there)
            assert joined.device.type == "cuda"
            assert joined.cpu().equal(join(rows))

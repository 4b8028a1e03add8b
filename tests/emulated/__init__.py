"""Emulates GPUs for a torch that knows the CPU alone: tensors say `cuda:0` and refuse what CUDA refuses.

    with EmulatedGpus() as gpus:                 # everything inside sees one GPU
        model.to("cuda")                         # parameters that are tied stay so
        decisions = methods.make("laco", {}).prune(Decoder(model), calibration, 0.3)
    assert decisions == decisions_on_the_cpu     # the arithmetic is the CPU's, so that all bits agree
    print(gpus.report())                         # where the host waits, float64 work, peaks

Emulated are

    devices       a tensor made with device="cuda", or moved there, is an `OnGpu`: .device is cuda:0, .is_cuda is true
                  and .numpy() raises. EmulatedGpus(count=2) has cuda:0 and cuda:1.
    mixing        an operation on tensors of several devices raises DeviceMismatch, unless CUDA takes it: CPU scalars
                  (no dimension) in pointwise operations, CPU indices of x[i], copies.
    generators    one of the CPU, for random numbers on a GPU, raises.
    waits         gpus.waits {(what, file:line): times}: what makes the host wait for the GPU, or copies pageable
                  memory: item, float(), bool(), nonzero, masks as indices, copies from and to the CPU, factorisations.
    launches      gpus.launches: operations that would start one kernel at least.
    float64       gpus.float64_flops {file:line: FLOPs} of products and factorisations; gpus.flops of all dtypes.
    memory        gpus.memories[i].now and .peak: bytes of storages that are alive, also through torch.cuda; more than
                  EmulatedGpus(memory=...) raises torch.OutOfMemoryError.
    torch.cuda    what the project asks of it. As with the real one, a peak of a device by number cannot be reset before
                  anything has initialised CUDA.

Not emulated are kernels (their speed, their rounding, and for which dtypes they exist), streams, the blocks of the
caching allocator, autocast for CUDA (training of a bfloat16 model runs in float32), torch.compile, graphs, other
threads and other processes. A test that fails here fails on a GPU as well; one that passes can still fail there.

To C++ the tensors are wrappers that lie on the CPU, so that indexing and autograd need no CUDA, and `device` is a
property in Python. Tensors that C++ makes for itself in the middle of a call on GPU tensors count as on the GPU.
"""

from emulated.gpus import EmulatedGpus
from emulated.rules import DeviceMismatch
from emulated.tensors import OnGpu

__all__ = ["DeviceMismatch", "EmulatedGpus", "OnGpu"]

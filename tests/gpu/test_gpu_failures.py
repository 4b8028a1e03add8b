"""What goes wrong on a GPU alone: devices by number, lack of memory by other names, errors that take the GPU away."""

from __future__ import annotations

from contextlib import nullcontext

import engine_jobs
import pytest
import torch
from conftest import padded
from emulated import EmulatedGpus
from places import model_of

import methods
from bench.cli.main import main
from bench.engines.local import InThisProcess, LocalSession
from bench.plan.run_spec import RunSpec
from bench.records.run_folder import load_run
from bench.runs import measure, runner
from bench.system import failures, memory
from methods.checkpoint import transformers_compat
from methods.checkpoint.pruned_config import Uneven
from methods.model.decoder import Decoder

CALIBRATION = padded(torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(2)).tolist())


def test_a_gpu_by_its_number_is_used_before_anything_else_is_there():
    """Torch initialises CUDA for the peak of the current device, and for that of a number it does not."""
    second = torch.device("cuda", 1)
    with EmulatedGpus(count=2):
        memory.reset_peaks([second])
        assert memory.peaks_of_devices([second])["allocated_bytes"] == 0
    with EmulatedGpus(count=2):
        memory.set_gpu(second)
        assert torch.zeros(1, device="cuda").device == second


def test_a_device_that_fails_at_once_is_the_outcome_of_the_cell(base, tmp_path, monkeypatch):
    def fail(devices):
        raise RuntimeError("Invalid device argument")

    monkeypatch.setattr(memory, "reset_peaks", fail)
    assert main([*base, "--methods", "drop-tail", "--ratio", "0.3"]) == 3
    assert {record.status for record in load_run(tmp_path / "run")} == {"error"}


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnDsyevd(...)`",
        "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    ],
)
@pytest.mark.parametrize("kind", [RuntimeError, engine_jobs.AcceleratorError])
def test_lack_of_memory_has_many_names(said, kind):
    assert failures.status_of_error(kind(said)) == "out_of_memory"
    assert failures.reason_of_error(kind(said)).startswith("out of memory (")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), "crashed"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "crashed"),
        (engine_jobs.AcceleratorError("CUDA error: unspecified launch failure"), "crashed"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`"), "error"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "error"),
        (MemoryError(), "out_of_memory"),
    ],
)
def test_what_takes_the_gpu_away_is_told_from_other_errors(error, status):
    assert failures.status_of_error(error) == status


def test_the_next_cell_of_a_lost_gpu_gets_a_process_of_its_own():
    found = {}
    with LocalSession(engine_jobs.loses_its_gpu, [{}], fresh=False) as session:
        for key in ("first", "second", "dead", "third"):
            session.submit(engine_jobs.job(key))
            found[key] = session.next_result().outcome
    assert found["dead"]["status"] == "crashed"
    assert "illegal memory access" in found["dead"]["error"]
    assert found["first"]["pid"] == found["second"]["pid"] != found["third"]["pid"]


def test_a_cell_that_loses_the_gpu_has_crashed_and_says_how(base, tmp_path, monkeypatch, capsys):
    """In a process that the user wants for all cells none can follow it, and no record says that it failed."""

    def fail(*_):
        raise engine_jobs.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(measure, "_prune", fail)
    assert main([*base, "--methods", "drop-tail,magnitude", "--ratio", "0.3", "--no-isolate"]) == 2
    assert "without --no-isolate" in capsys.readouterr().err.splitlines()[-1]
    (record,) = load_run(tmp_path / "run")
    assert (record.status, record.cell.method) == ("crashed", "dense")
    assert "device-side assert" in record.error


@pytest.mark.parametrize(
    ("options", "beside"),
    [
        ({"device": "cuda"}, LocalSession),
        ({"device": "cuda", "isolate": False}, InThisProcess),
        ({"device": "cpu"}, InThisProcess),
    ],
)
def test_cells_of_a_gpu_are_measured_in_a_process_beside_the_run(options, beside, base, tmp_path, monkeypatch):
    sessions = []

    def measured(loop):
        sessions.append(type(loop.session))
        return []

    monkeypatch.setattr(runner.CellLoop, "measure_all", measured)
    model, text = base[2], base[4]
    few = {"window": 32, "windows": 2, "calibration_sequences": 4, "calibration_length": 24, "speed_rounds": 0}
    with EmulatedGpus():
        protocol = {"tasks": (), "texts": (text,), "calibration": text, **few}
        runner.run_spec(
            RunSpec("drop-tail", model, [0.3], profile="smoke", out=tmp_path / "run", protocol=protocol, **options)
        )
    assert sessions == [beside]


def test_a_stage_lasts_until_the_gpu_has_done_its_work(monkeypatch):
    clock, queued = [0.0], [0.0]

    def wait():
        clock[0] += queued[0]
        queued[0] = 0.0

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measure.benchmark, "wait_for_devices", lambda devices: wait())
    of_cell = measure.CellProgress(*[lambda told: None] * 3, nullcontext)
    queued[0] = 7.0  # of nobody's
    with of_cell.stage("prune"):
        queued[0] = 2.0
    with of_cell.stage("perplexity"):
        clock[0] += 1.0
    assert of_cell.measured.seconds == {"prune": 2.0, "perplexity": 1.0}


@pytest.mark.parametrize(
    ("dtype", "share", "sound"),
    [
        (torch.float32, 0.9e-5, True),
        (torch.float32, 1e-4, False),
        (torch.bfloat16, 2**-6, True),  # some steps of the largest logit, as another order of sums makes them
        (torch.bfloat16, 0.1, False),
        (torch.float16, 2**-9, True),
        (torch.float16, 0.02, False),
    ],
)
def test_padded_models_may_differ_by_rounding_in_their_dtype(dtype, share, sound, monkeypatch):
    """On a GPU another width takes another kernel, whose sums have another order; here one logit is off."""
    model = Decoder(model_of("llama", dtype))
    methods.make("flap").prune(model, CALIBRATION, 0.3)
    plain = transformers_compat.compute_logits

    def off(one, ids):
        found = plain(one, ids)
        found[0, 0, 0] += 0.0 if one is model else share * plain(model, ids).abs().max()
        return found

    monkeypatch.setattr(transformers_compat, "compute_logits", off)
    if sound:
        transformers_compat.pad_layers(model, CALIBRATION.ids[:1])
    else:
        with pytest.raises(Uneven, match=r"logits differ|differs from layer to layer"):
            transformers_compat.pad_layers(model, CALIBRATION.ids[:1])

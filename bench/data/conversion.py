"""Turns what a wheel holds into what is read here: GGUF into safetensors, requests of a task into its documents."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.system.console import say

if TYPE_CHECKING:
    import torch

MEDMCQA = "medmcqa/none/validation/data-00000-of-00001.arrow"


def dequantise(folder: Path) -> None:
    """Replace the one GGUF file of `folder` by float32 safetensors with configuration and tokenizer."""
    _write(folder, tied=False)


def dequantise_tied(folder: Path) -> None:
    """Replace a GGUF file whose output matrix is the embedding matrix, kept twice, by a model that has it once.

    Of the two copies the finer one is the output's, and is kept.
    """
    _write(folder, tied=True)


def _write(folder: Path, tied: bool) -> None:
    import torch

    gguf = next(folder.glob("*.gguf"))
    say(f"converting {gguf.name} to float32 safetensors, once")
    model, tokenizer = from_gguf(gguf, torch.float32)
    if tied:
        model.get_input_embeddings().weight = model.get_output_embeddings().weight
        model.config.tie_word_embeddings = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf.unlink()


def keep_documents(folder: Path) -> None:
    """Turn MedMCQA's requests, four to a question, into its documents; drop the data sets that no task reads."""
    import pyarrow

    requests = folder / "medmcqa/mc_5shot/requests.jsonl.gz"
    with gzip.open(requests, "rt", encoding="utf-8") as lines:
        documents = {request["doc_id"]: request["doc"] for request in map(json.loads, lines)}
    columns = ("id", "question", "opa", "opb", "opc", "opd", "cop", "subject_name")
    table = pyarrow.table({column: [document[column] for document in documents.values()] for column in columns})
    file = folder / MEDMCQA
    file.parent.mkdir(parents=True)
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for unread in (requests.parent, folder / "allenai", folder / "trivia_qa"):
        shutil.rmtree(unread)


def from_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Read a GGUF file as (model, tokenizer) with plain weights of `dtype`, not packed ones.

    Raises ValueError for a file that lacks weights.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from methods.checkpoint.transformers_compat import with_all_weights

    plain = GgufConfig(dequantize=True)
    here: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}  # whatever lies beside it
    options = here | {"dtype": dtype, "quantization_config": plain}
    model = with_all_weights(AutoModelForCausalLM, path.parent, left_over=True, **options)
    return model, AutoTokenizer.from_pretrained(path.parent, **here)

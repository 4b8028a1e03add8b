"""Turns what a wheel holds into what is read here: GGUF into safetensors, requests of a task into its documents."""

from __future__ import annotations

import gzip
import json
import shutil
from operator import itemgetter
from pathlib import Path

from methods.console import say

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
    gguf = next(folder.glob("*.gguf"))
    say(f"converting {gguf.name} to float32 safetensors, once")
    write_folder(gguf, folder, tied=tied)
    gguf.unlink()


def write_folder(gguf: Path, folder: Path, *, tied: bool = False) -> None:
    """Write what a GGUF file holds into a folder: float32 safetensors, configuration and tokenizer.

    tied  keeps the output's matrix alone, of a file that holds the embedding twice

    Raises CheckpointError for a file that holds no model.
    """
    import torch

    from bench.data.gguf import DECI, architecture_of_file, load, read_config, save_tokenizer

    model, tokenizer = load(gguf, torch.float32)
    if tied:
        model.get_input_embeddings().weight = model.get_output_embeddings().weight
        model.config.tie_word_embeddings = True
    model.save_pretrained(folder)
    if architecture_of_file(gguf) == DECI:  # whose model names the configuration of its class alone
        described = read_config(gguf)
        described.dtype = torch.float32
        (folder / "config.json").write_text(described.to_json_string(), encoding="utf-8")
    save_tokenizer(tokenizer, folder, gguf)


def keep_documents(folder: Path) -> None:
    """Turn MedMCQA's requests, four to a question, into its documents; drop the data sets that no task reads."""
    import pyarrow

    requests = folder / "medmcqa/mc_5shot/requests.jsonl.gz"
    with gzip.open(requests, "rt", encoding="utf-8") as lines:
        documents = {request["doc_id"]: request["doc"] for request in map(json.loads, lines)}
    columns = ("id", "question", "opa", "opb", "opc", "opd", "cop", "subject_name")
    values = map(itemgetter(*columns), documents.values())
    table = pyarrow.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in values])
    file = folder / MEDMCQA
    file.parent.mkdir(parents=True)
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for unread in (requests.parent, folder / "allenai", folder / "trivia_qa"):
        shutil.rmtree(unread)

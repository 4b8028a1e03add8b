"""Turns what a wheel holds into what is read here: GGUF into safetensors, requests of tasks into their documents."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from bench.data import programs
from bench.data.skills import COPYCOLORS, SOURCES, TRIVIA, WRITTEN_TASKS
from methods.console import say
from methods.errors import UserError

MEDMCQA = "medmcqa/none/validation/data-00000-of-00001.arrow"
DOCUMENTS = "documents-1"  # the folder of the tasks by skill; another conversion takes another number
REQUEST_FILES = ("config.json", "requests.jsonl.gz")
UNCONDITIONAL = 1_000_000  # the first number of requests that score an answer without its question
PARAGRAPH = "\n\n"
CHOICE = re.compile(r"^ ([A-Z])\. (.*)\n", re.MULTILINE)  # of a question that lists its choices
LETTER = re.compile(r"(?<=Answer: )[A-Z]$")
TRIVIA_FILE = "data-00000-of-00001.arrow"
EXAMPLES = 5  # documents of a data set without requests that stand in front of the others


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


def file_of_task(name: str) -> str:
    """Return the path of the documents of a task by skill, in the folder of its asset."""
    return f"{DOCUMENTS}/{name}.parquet"


def keep_requests(folder: Path) -> None:
    """Turn the requests of each task by skill into a file of its documents, and drop the requests.

    Every document has these columns. One of a task in form bpb has `reference` too, one in form gen `answers`, all that
    are right, and one of another task `choices` and `right`, the position of the right one. Where the choices differ in
    front of the answer, as in WinoGrande, they are `questions` with one `ending`.

        id        of the data set, as text
        preface   what stands in front of the question: instructions, examples
        examples  their number
        question  with the words that lead to the answer

    Raises UserError for a document without a reference or a right choice.
    """
    say(f"converting the requests of {len(SOURCES)} tasks, once")
    (folder / DOCUMENTS).mkdir()
    for name, source in SOURCES.items():
        if name == f"{TRIVIA}_gen":
            rows = read_trivia(folder / source / TRIVIA_FILE)
        else:
            config = json.loads((folder / source / "config.json").read_text(encoding="utf-8"))["task_config"]
            documents = list(_read_documents(folder / source / "requests.jsonl.gz", name in WRITTEN_TASKS))
            rows = [document | {"examples": config["num_shots"]} for document in divide_prefaces(documents)]
        _write_documents(rows, folder / file_of_task(name))
    for source in {Path(source).parts[0] for source in SOURCES.values()}:
        shutil.rmtree(folder / source)


def keep_programs(folder: Path) -> None:
    """Turn the requests of each task of programs into a file of its documents (bench.data.programs), and drop them."""
    (folder / DOCUMENTS).mkdir()
    for name, source in programs.SOURCES.items():
        with gzip.open(folder / source / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [programs.document_of_request(json.loads(line)) for line in lines]
        _write_documents(rows, folder / file_of_task(name))
        shutil.rmtree(folder / Path(source).parts[0])


def _write_documents(rows: Sequence[dict[str, Any]], file: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, compression="zstd", compression_level=12)


def read_trivia(file: Path) -> list[dict[str, Any]]:
    """Return the documents of TriviaQA's data set, with its first ones in front of the others as examples."""
    import pyarrow

    with pyarrow.OSFile(str(file)) as stream:
        table = pyarrow.ipc.open_stream(stream).read_all().select(["question_id", "question", "answer"])
    documents = [
        {
            "id": row["question_id"],
            "question": f"Question: {row['question']}\nAnswer:",
            "answers": list(dict.fromkeys([row["answer"]["value"], *row["answer"]["aliases"]])),
        }
        for row in table.to_pylist()
    ]
    examples = "".join(f"{row['question']} {row['answers'][0]}{PARAGRAPH}" for row in documents[:EXAMPLES])
    return [row | {"preface": examples, "examples": EXAMPLES} for row in documents[EXAMPLES:]]


def _read_documents(requests: Path, is_written: bool) -> Iterator[dict[str, Any]]:
    """Yield the documents of a file of requests. A question has all that stands in front of the answer.

    is_written  whether the documents are those of form gen
    """
    make_document = written_document_of_requests if is_written else document_of_requests
    with gzip.open(requests, "rt", encoding="utf-8") as lines:
        conditional = (line for line in map(json.loads, lines) if line["doc_id"] < UNCONDITIONAL)
        for number, group in groupby(conditional, key=itemgetter("doc_id")):
            try:
                yield make_document(list(group))
            except ValueError as error:
                raise UserError(f"{'/'.join(requests.parts[-3:-1])}: document {number} {error}") from None


def document_of_requests(requests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the document that requests were made of, one for each choice.

    Raises ValueError, with words that follow a name, where none of them is said to be right.
    """
    contexts = [request["request"]["context"] for request in requests]
    answers = [request["request"].get("continuation") for request in requests]
    native, right = requests[0]["native_id"], requests[0]["label"]
    identity = {"id": str(requests[0]["doc_id"] if native is None else native)}
    if not all(answers):
        raise ValueError("has no reference")
    if len(requests) == 1:
        return identity | {"question": contexts[0], "reference": answers[0]}
    if not (isinstance(right, int) and 0 <= right < len(requests)):
        raise ValueError(f"has the right choice {right!r}, of {len(requests)} choices")
    if not all(answer.startswith(" ") for answer in answers):
        raise ValueError("has a choice without a space in front of it")
    choices = [answer.removeprefix(" ") for answer in answers]
    if len(set(contexts)) == 1:
        return identity | {"question": contexts[0], "choices": choices, "right": right}
    return identity | {"questions": contexts, "ending": choices[0], "right": right}


def written_document_of_requests(requests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the document in form gen that requests were made of, with all texts that their label says are right.

    Where letters were scored, the choices go from the question, and the examples have their answers written out.

    Raises ValueError as `document_of_requests` does.
    """
    document, label = document_of_requests(requests), requests[0]["label"]
    question = document["question"]
    if isinstance(label, int):
        answers = [document["choices"][label]]
    else:
        answers = list(dict.fromkeys([label] if isinstance(label, str) else label))
    if requests[0]["task_name"].startswith(COPYCOLORS):
        answers = [dict(CHOICE.findall(question.rpartition(PARAGRAPH)[2]))[answers[0]]]
        question = PARAGRAPH.join(map(write_out_letter, question.split(PARAGRAPH)))
    return {"id": document["id"], "question": question, "answers": answers}


def write_out_letter(paragraph: str) -> str:
    """Return a question without its choices, and with the text of one in place of its letter behind "Answer:"."""
    texts = dict(CHOICE.findall(paragraph))
    return LETTER.sub(lambda letter: texts[letter[0]], CHOICE.sub("", paragraph))


def divide_prefaces(documents: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the documents, and take what stands in front of nine questions of ten as their preface.

    The rest have an empty one. They are, in most tasks, documents that are examples of the others.
    """
    key = "questions" if "questions" in documents[0] else "question"
    texts_of_each = [document[key] if key == "questions" else [document[key]] for document in documents]
    preface = find_shared_paragraphs([texts[0] for texts in texts_of_each])
    for document, texts in zip(documents, texts_of_each, strict=True):
        own = preface if all(text.startswith(preface) for text in texts) else ""
        questions = [text.removeprefix(own) for text in texts]
        yield document | {"preface": own, key: questions if key == "questions" else questions[0]}


def find_shared_paragraphs(texts: Sequence[str]) -> str:
    """Return the paragraphs with which nine texts of ten begin alike, each with the blank line behind it."""
    shared, remaining = "", list(texts)
    while True:
        paragraphs = Counter(text.partition(PARAGRAPH)[0] for text in remaining if PARAGRAPH in text)
        paragraph, count = paragraphs.most_common(1)[0] if paragraphs else ("", 0)
        if count < 0.9 * len(texts):
            return shared
        begin = paragraph + PARAGRAPH
        shared, remaining = shared + begin, [text.removeprefix(begin) for text in remaining if text.startswith(begin)]

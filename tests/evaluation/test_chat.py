"""Prompts as turns of a chat, against lm-eval's own evaluator on a tiny model; what is refused; what a record says."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from byte_tokens import byte_tokenizer
from conftest import refused, tiny
from datasets import Dataset
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import hash_string

from bench.cli.main import main
from bench.data import chat, task_loading
from bench.data.chat import Chat, check_template
from bench.evaluation import tasks
from bench.evaluation.scoring import Scorer, make_stock_scorer
from bench.plan.run_spec import RunSpec
from bench.records import comparability, run_folder
from methods.errors import UserError

TEMPLATE = (
    "{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
DROPPING = TEMPLATE.replace(
    "{{ turn['content'] }}", "{% if turn['role'] != 'system' %}{{ turn['content'] }}{% endif %}"
)
SYSTEM = "Answer briefly."
ROWS = [{"q": f"{n} + {n} =", "a": f"{2 * n}", "wrong": f"{n}{n}"} for n in range(6)]
EXAMPLES = [{"q": f"{n} + 1 =", "a": f"{n + 1}", "wrong": f"{n - 1}"} for n in range(3)]
ACCURACY = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
FORMS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "doc_to_choice": "{{[a, wrong]}}",
        "doc_to_target": 0,
        "description": "Sums.\n\n",
        "metric_list": ACCURACY,
    },
    "choices_in_the_question": {
        "output_type": "multiple_choice",
        "doc_to_text": lambda doc: 0,
        "doc_to_choice": lambda doc: [f"{doc['q']} {doc[name]}" for name in ("a", "wrong")],
        "doc_to_target": lambda doc: "is right.",
        "metric_list": ACCURACY,
    },
    "one_reference": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": " {{a}}.",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


def rendering(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def loaded():
    """A tiny model and a byte tokenizer with a chat template."""
    tokenizer = rendering(TEMPLATE)
    tokenizer.eos_token = "<s>"
    return tiny("llama", vocab_size=260, max_position_embeddings=1024), tokenizer


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The documents and the examples, as lm-eval's loader of JSON reads them."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seven seconds of other programs
    for name, rows in {"test": ROWS, "train": EXAMPLES}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("test", "train")}


CASES = (("choices", 2, ""), ("choices", 2, SYSTEM), ("choices_in_the_question", 2, SYSTEM), ("one_reference", 0, ""))


@pytest.mark.parametrize(("form", "fewshot", "system"), [*CASES, ("written", 2, SYSTEM)])
def test_prompts_and_answers_are_those_of_lm_evals_evaluator(loaded, files, form, fewshot, system):
    definition = {"task": form, "dataset_path": "json", "test_split": "test", "num_fewshot": fewshot} | FORMS[form]
    stock = make_stock_scorer(*loaded)
    stock.logits_cache = False  # which reads a wrong position where an answer of one token meets a longer one
    theirs = simple_evaluate(
        stock,
        tasks=[
            definition | {"dataset_kwargs": {"data_files": files}, "fewshot_split": "train", "training_split": "train"}
        ],
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=True,
        system_instruction=system or None,
        bootstrap_iters=0,
    )["samples"][form]
    task = task_loading.make_task(definition, Dataset.from_list(ROWS), Dataset.from_list(EXAMPLES))
    _, samples = tasks.evaluate(Scorer(*loaded), {form: task}, {form: list(range(6))}, Chat(system))
    wanted = {sample["doc_id"]: sample for sample in theirs}
    requests = {}
    for instance in task.instances:
        requests.setdefault(instance.doc_id, []).append(instance.args)
    assert requests == {number: sample["arguments"] for number, sample in wanted.items()}
    context = requests[3][0][0]
    assert context.count("<user>") == fewshot + 1
    assert context.count("<assistant>") == fewshot + 1
    assert ("<system>" + system in context) == bool(system or "description" in definition)
    column = "responses" if form == "written" else "loglikelihoods"
    for number, got in enumerate(samples[form][column]):
        answers = [response[0] for response in wanted[number]["resps"]]
        if form == "written":
            assert got == answers
        else:
            assert np.abs(np.array(got) - [likelihood for likelihood, _ in answers]).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "row", "question", "answers"),
    [
        ("gsm8k_bpb", {"question": "1 + 2 =", "reference": " 3"}, ["1 + 2 ="], [" 3"]),
        ("sciq_rc", {"question": "Up?", "choices": ["a", "b"], "right": 0}, ["Up?"] * 2, ["a", "b"]),
        ("winogrande_rc", {"questions": ["A", "B"], "ending": "won.", "right": 1}, ["A", "B"], ["won."] * 2),
    ],
)
def test_the_examples_of_a_task_by_skill_and_its_question_are_one_turn(loaded, name, row, question, answers):
    rows = [row | {"preface": "Q: 1?\nA: 1\n\n", "examples": 1}] * 2
    task = task_loading.make_task(task_loading.make_definition(name), Dataset.from_list(rows), None)
    tasks.evaluate(Scorer(*loaded), {name: task}, {name: [0, 1]}, Chat(SYSTEM))
    before = f"<system>{SYSTEM}\n<user>Q: 1?\nA: 1\n\n"
    wanted = [(f"{before}{text}\n<assistant>\n", answer) for text, answer in zip(question, answers, strict=True)]
    assert [instance.args for instance in task.instances if instance.doc_id == 1] == wanted


@pytest.mark.parametrize(
    ("template", "system", "words"),
    [
        (None, "", "--apply-chat-template: the tokenizer of m has no chat template"),
        ({"tools": TEMPLATE}, "", "--apply-chat-template: the tokenizer of m has no chat template"),
        ("{{ raise_exception('never') }}", "", "chat template of m refuses a chat .never.; leave the flag out"),
        ("{{ 1 / 0 }}", "", "chat template of m refuses a chat .division by zero"),
        (REFUSING, SYSTEM, "--system: the chat template of m refuses a system turn .no system role."),
        (DROPPING, SYSTEM, "--system: the chat template of m leaves a system turn out"),
    ],
)
def test_a_template_that_cannot_make_the_chat_is_one_line(template, system, words):
    with pytest.raises(UserError, match=words) as caught:
        check_template(rendering(template), "m", Chat(system))
    assert "\n" not in str(caught.value)


def test_a_template_without_a_system_role_serves_a_chat_without_one():
    for template in (TEMPLATE, REFUSING, DROPPING, {"default": TEMPLATE, "tools": REFUSING}):
        check_template(rendering(template), "m", Chat())
    check_template(rendering(TEMPLATE), "m", Chat(SYSTEM))


def test_the_hash_of_a_template_is_another_one_on_another_day():
    dated = SimpleNamespace(get_chat_template=lambda: "now", apply_chat_template=lambda *_, **__: "Monday")
    before = chat.sha256_of_template(dated)
    assert before == chat.sha256_of_template(dated)
    dated.apply_chat_template = lambda *_, **__: "Tuesday"
    assert chat.sha256_of_template(dated) != before
    assert chat.sha256_of_template(rendering(TEMPLATE)) != chat.sha256_of_template(rendering(REFUSING))


def test_command_line_spec_file_and_python_say_the_same(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"description: a chat\nmethods: dense\napply-chat-template: true\nsystem: {SYSTEM}\n"
    )
    from bench.plan import run_spec

    specs = [
        RunSpec("dense", apply_chat_template=True, system=SYSTEM),
        run_spec.load_spec(str(tmp_path / "mine.yaml"), {}),
        run_spec.spec_from_flags({"methods": "dense", "apply-chat-template": True, "system": SYSTEM}),
    ]
    assert [spec.protocols()[0][0].chat for spec in specs] == [Chat(SYSTEM)] * 3
    with pytest.raises(
        UserError, match="--system is a turn of a chat, and prompts are none; add --apply-chat-template"
    ):
        RunSpec("dense", system=SYSTEM)


@pytest.fixture
def words(base, model_folder, tmp_path):
    """A run of the dense model on a task of local documents, whose model folder is the test's own."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    rows = [{"goal": f"w{n} w3", "sol1": "w4 w5", "sol2": "w6", "label": n % 2} for n in range(4)]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [str(folder) if word == str(model_folder) else word for word in base]
    words[words.index("--tasks") + 1] = "piqa"
    return [*words, "--methods", "dense", "--task-data", f"piqa={tmp_path / 'piqa.jsonl'}"]


def test_a_model_without_template_is_refused_before_any_work(words, capsys, tmp_path):
    assert "has no chat template" in refused(capsys, [*words, "--apply-chat-template"])
    assert "add --apply-chat-template" in refused(capsys, [*words, "--system", SYSTEM])
    assert not (tmp_path / "run").exists()


def test_a_record_says_which_chat_and_serves_no_other(words, tmp_path, capsys):
    template, run = tmp_path / "model/chat_template.jinja", tmp_path / "run"
    chatting = [*words, "--apply-chat-template", "--system", SYSTEM]
    steps = ((words, TEMPLATE, ""), (chatting, TEMPLATE, ""), (chatting, f"{TEMPLATE} ", "chat_template_sha256"))
    for arguments, text, changed in (*steps, (chatting, f"{TEMPLATE} ", "has a record")):
        template.write_text(text)
        assert main(arguments) == 0
        assert changed in capsys.readouterr().err
    record_by_key = run_folder.read_records(run, run_folder.ignore_warning)
    records = list(record_by_key.values())
    plain, templated = sorted(records, key=lambda record: record.cell.protocol.apply_chat_template)
    assert plain.cell.protocol.chat is None
    assert "chat_template_sha256" not in plain.plain()["cell"]["inputs"], "as in records of before"
    assert templated.cell.protocol.chat == Chat(SYSTEM)
    assert len(templated.cell.filled_inputs.chat_template_sha256) == 64
    assert len(set(comparability.setups_of_records(records))) == 2
    assert len({comparability.setup_of_perplexity(record, "words.txt") for record in records}) == 1
    assert plain.measured.text_scores == templated.measured.text_scores, "a text is never made into turns"
    question = "Question: w0 w3\nAnswer:"
    for key, record in record_by_key.items():
        samples = pd.read_parquet(run_folder.folder_of_samples(run, key) / "piqa.parquet")
        chat_of_question = f"<system>{SYSTEM}\n<user>{question}\n<assistant>\n "
        assert samples["prompt_hash"][0] == hash_string(chat_of_question if record.cell.protocol.chat else question)
    assert "0-shot, in the chat template, system 'Answer briefly.'" in (run / "report.md").read_text()

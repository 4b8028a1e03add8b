"""Tasks: documents, right answers, samples and figures of every offline task."""

import json
import math
from dataclasses import replace

import pytest
import torch
from lm_eval.api.model import LM

from bench.data import pretrained, task_loading, task_sources
from bench.evaluation import tasks
from bench.plan.kinds import to_plain
from bench.records import frame
from bench.records.measured import TaskMetric, TaskScore

# task: documents, then of the first one a piece of its prompt and the right choice
KNOWN = {
    "hellaswag": (10042, "Roof shingle removal: A man is sitting on a roof.", "starts pulling up roofing on a roof."),
    "piqa": (1838, "How do I ready a guinea pig cage", "bedding made of ripped paper strips"),
    "winogrande": (
        1267,
        "Sarah was a much better surgeon than Maria so",
        "Sarah was a much better surgeon than Maria so Maria",
    ),
    "arc_easy": (570, "Which technology was developed most recently?", "cellular telephone"),
    "arc_challenge": (299, "Juan and LaKeisha roll a few objects", "Record the details of the investigation."),
    "openbookqa": (500, "Frilled sharks and angler fish", "Deep sea animals"),
    "boolq": (3270, "does ethanol take more energy make that produces?", "no"),
    "sciq": (1000, "Who proposed the theory of evolution", "darwin"),
    "copa": (100, "The man turned on the faucet therefore", "water flowed from the spout."),
    "commonsense_qa": (1221, "A revolving door is convenient", "A"),
    "social_iqa": (1954, "resisted Riley's attacks.", "Find somewhere to go"),
    "cb": (56, "Valence was helping. True, False, or Neither?", "False"),
    "rte": (277, "Christopher Reeve had an accident. True or False?", "False"),
    "mrpc": (408, "The foodservice pie business does not fit", "yes"),
    "sst2": (872, "it 's a charming and often affecting journey .", "positive"),
    "nq_open": (3610, "when was the last time anyone was on the moon?", "December 1972"),
    "medmcqa": (4183, "Which of the following is not true for myelinated nerve fibers:", "A"),
    "mmlu_anatomy": (135, "A lesion causing compression of the facial nerve", "A"),
}
CHOICES = {"commonsense_qa": 5, "social_iqa": 3, "cb": 3}
PAIRED = ("piqa", "winogrande", "boolq", "copa", "rte", "mrpc", "sst2")
FOUR = ("hellaswag", "arc_easy", "arc_challenge", "openbookqa", "sciq", "medmcqa", "mmlu_anatomy")
CHOICES |= dict.fromkeys(PAIRED, 2) | dict.fromkeys(FOUR, 4)

pytestmark = pytest.mark.default_model


class Answering(LM):
    """Prefers what `likes` says: (context, continuation) -> log-likelihood."""

    def __init__(self, likes):
        super().__init__()
        self.likes = likes

    def loglikelihood(self, requests):
        return [(self.likes(*request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        return ["14 December 1972 UTC" for _ in requests]


@pytest.fixture(scope="module")
def offline():
    return task_loading.load_tasks(KNOWN)


def evaluated(task, name, documents, likes=lambda context, continuation: 0.0):
    figures, samples = tasks.evaluate(Answering(likes), {name: task}, {name: documents})
    return figures[name], samples[name]


def test_hashing_documents_draws_no_bar_of_the_library(offline, capfd):
    """HellaSwag's are turned into lm-eval's form by `Dataset.map`, which draws one."""
    tasks.fingerprint_of_task(offline["hellaswag"], [0, 5, 7])
    assert "Map" not in capfd.readouterr().err


@pytest.mark.parametrize("name", KNOWN)
def test_documents_prompts_and_right_answers(offline, name):
    documents, prompt, answer = KNOWN[name]
    task = offline[name]
    assert len(task.eval_docs) == documents
    task.build_all_requests(samples=[0])
    contexts = [instance.args[0] for instance in task.instances]
    assert prompt in contexts[0]
    _, samples = evaluated(task, name, [0])
    if name == "nq_open":
        assert answer in samples["target"][0]
    elif name == "winogrande":
        assert contexts[samples["target"][0]] == answer
    else:
        assert answer in task.instances[samples["target"][0]].args[1]


@pytest.mark.parametrize("name", CHOICES)
def test_targets_lie_within_the_choices_and_differ(offline, name):
    task = offline[name]
    _, samples = evaluated(task, name, task_loading.draw_documents(task, 120, 0))
    choices = samples["loglikelihoods"].map(len)
    assert choices.median() == CHOICES[name]
    assert ((samples["target"] >= 0) & (samples["target"] < choices)).all()
    shares = samples["target"].value_counts(normalize=True)
    if name == "sciq":  # lm-eval always puts the right answer last
        assert set(samples["target"]) == {3}
    else:
        assert shares.max() < 0.75
        assert len(shares) >= min(3, CHOICES[name])


def test_boolq_answers_come_from_the_stored_column(offline):
    task, answers = offline["boolq"], [document["answer"] for document in offline["boolq"].eval_docs]
    assert [document["label"] for document in task.eval_docs] == [int(answer) for answer in answers]
    assert sum(answers) == 2033
    ids = task_loading.draw_documents(task, 200, 0)
    figures, _ = evaluated(task, "boolq", ids, lambda _, continuation: float(continuation == " yes"))
    assert figures.metrics["acc"].value == pytest.approx(sum(answers[position] for position in ids) / 200)


@pytest.mark.parametrize("name", ["hellaswag", "piqa", "copa", "boolq"])
def test_the_right_choice_scores(offline, name):
    """A model that knows the right continuations is right everywhere, one that avoids them nowhere."""
    task, ids = offline[name], task_loading.draw_documents(offline[name], 40, 1)
    _, samples = evaluated(task, name, ids)
    contexts, right = {}, set()
    task.build_all_requests(samples=ids)
    for instance in task.instances:
        contexts.setdefault(instance.doc_id, []).append(instance.args)
    for row, target in enumerate(samples["target"]):
        right.add(contexts[row][target])
    for sign, score in ((1.0, 1.0), (-1.0, 0.0)):
        figures, _ = evaluated(task, name, ids, lambda *args, sign=sign: sign * (args in right) - 1.0)
        assert figures.metrics["acc"].value == score


def test_all_subjects_of_mmlu_load():
    subjects = task_loading.load_tasks(task_loading.check_tasks(["mmlu"]))
    assert len(subjects) == 57
    assert sum(len(task.eval_docs) for task in subjects.values()) == 14042
    task = subjects["mmlu_world_religions"]
    figures, samples = evaluated(task, "mmlu_world_religions", task_loading.draw_documents(task, 60, 0))
    assert set(samples["target"]) == {0, 1, 2, 3}
    assert figures.main == "acc"


def test_generated_text_is_kept(offline):
    figures, samples = evaluated(offline["nq_open"], "nq_open", [0, 1])
    assert samples["responses"].tolist() == [["14 December 1972 UTC"]] * 2
    assert samples["exact_match"].tolist() == [1.0, 0.0]
    assert figures.main == "exact_match"


def test_a_task_with_two_filters_has_a_row_per_document_and_a_metric_per_filter():
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = Dataset.from_dict({"question": ["when?", "where?"], "answer": ["1972", "moon"]})
    task = ConfigurableTask(
        config={
            "task": "two_filters",
            "custom_dataset": lambda **_: {"test": rows},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "question",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "filter_list": [
                {"name": "whole", "filter": [{"function": "take_first"}]},
                {
                    "name": "year",
                    "filter": [{"function": "regex", "regex_pattern": r"(\d{4})"}, {"function": "take_first"}],
                },
            ],
        }
    )
    figures, samples = evaluated(task, "two_filters", [0, 1])
    assert samples["exact_match,whole"].tolist() == [0.0, 0.0]
    assert samples["exact_match,year"].tolist() == [1.0, 0.0]
    assert figures.metrics["exact_match,year"] == TaskMetric(value=0.5, stderr=0.5)


def test_samples_belong_to_the_documents_that_were_drawn(offline):
    task = offline["hellaswag"]
    ids = task_loading.draw_documents(task, 5, 3)
    _, samples = evaluated(task, "hellaswag", ids, lambda _, continuation: -float(len(continuation)))
    assert samples["doc_id"].tolist() == ids
    for row, doc_id in enumerate(ids):
        choices = task.eval_docs[doc_id]["choices"]
        assert samples["loglikelihoods"][row] == [-float(len(choice) + 1) for choice in choices]
        assert samples["target"][row] == task.eval_docs[doc_id]["gold"]
        assert samples["acc"][row] == (min(choices, key=len) == choices[samples["target"][row]])
    assert samples["doc_hash"].nunique() == 5


def test_hashes_do_not_depend_on_what_else_is_drawn(offline):
    task = offline["piqa"]
    columns = ["doc_id", "doc_hash", "prompt_hash", "target_hash"]
    _, some = evaluated(task, "piqa", [3, 7])
    _, more = evaluated(task, "piqa", [1, 3, 5, 7])
    assert some[columns].equals(more.iloc[[1, 3]][columns].reset_index(drop=True))


@pytest.mark.parametrize("name", CHOICES)
def test_a_nat_per_byte_of_every_answer_is_as_many_bits(offline, name):
    ids = task_loading.draw_documents(offline[name], 40, 2)
    figures, samples = evaluated(offline[name], name, ids, lambda _, text: -float(len(text.encode())))
    assert samples["answer_bpb"].tolist() == pytest.approx([1 / math.log(2)] * 40)
    assert figures.answer_bpb == TaskMetric(value=pytest.approx(1 / math.log(2)), stderr=pytest.approx(0, abs=1e-9))
    assert figures.main.startswith("acc")


def test_bits_per_byte_are_those_of_the_right_answer_alone(offline):
    """Of WinoGrande every choice has the same continuation, behind another context."""
    task = offline["winogrande"]
    right = task.eval_docs[0]["option1" if task.eval_docs[0]["answer"] == "1" else "option2"]
    likes = {True: -2.0, False: -9.0}
    _, samples = evaluated(task, "winogrande", [0], lambda context, _: likes[context.endswith(f" {right}")])
    size = len(task.eval_docs[0]["sentence"].partition("_")[2].strip()) + 1
    assert samples["answer_bpb"].tolist() == [pytest.approx(2 / math.log(2) / size)]


def test_generated_answers_have_no_bits_per_byte(offline):
    figures, samples = evaluated(offline["nq_open"], "nq_open", [0, 1])
    assert figures.answer_bpb is None
    assert "answer_bpb" not in samples


def test_figures_are_those_of_the_record(offline):
    task = offline["piqa"]
    figures, samples = evaluated(
        task, "piqa", task_loading.draw_documents(task, 50, 0), lambda _, text: -float(len(text))
    )
    others = {"main", "chance", "version", "documents", "available", "fewshot"}
    assert to_plain(figures).keys() == {"metrics", "answer_bpb", *others}
    assert figures.metrics.keys() == {"acc", "acc_norm"}
    assert figures.chance == 0.5
    share = samples["acc"].mean()
    assert figures.metrics["acc"].value == pytest.approx(share)
    assert figures.metrics["acc"].stderr == pytest.approx(math.sqrt(share * (1 - share) / 49))
    assert (figures.main, figures.version) == ("acc_norm", 1.0)
    assert (figures.documents, figures.available, figures.fewshot) == (50, 1838, 0)


def test_no_standard_error_without_a_mean(offline):
    figures, samples = evaluated(offline["mrpc"], "mrpc", list(range(20)))
    assert figures.metrics["f1"].stderr is None
    assert "f1" not in samples
    figures, _ = evaluated(offline["mrpc"], "mrpc", [0])
    assert figures.metrics["acc"].stderr is None


def test_samples_survive_parquet(offline, tmp_path):
    import pandas as pd

    for name in ("copa", "winogrande", "nq_open"):
        _, samples = evaluated(offline[name], name, [0, 1, 2])
        samples.to_parquet(tmp_path / f"{name}.parquet")
        again = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert again["doc_hash"].tolist() == samples["doc_hash"].tolist()


def test_evaluation_is_silent(offline, capfd):
    evaluated(offline["mrpc"], "mrpc", [0, 1])
    task_loading.load_tasks(["hellaswag", "cb"])
    assert capfd.readouterr() == ("", "")


def test_examples_of_mmlu_are_its_dev_split_in_order():
    task = task_loading.load_tasks(task_loading.check_tasks(["mmlu_anatomy"], fewshot=5), fewshot=5)["mmlu_anatomy"]
    task.build_all_requests(samples=[0])
    context = task.instances[0].args[0]
    head, *examples, question = context.split("\n\n")
    assert head == "The following are multiple choice questions (with answers) about anatomy."
    assert [example[-9:] for example in examples] == [f"Answer: {letter}" for letter in "DDCCB"]
    assert examples[0].startswith("What is the embryological origin of the hyoid bone?")
    assert question.startswith("A lesion causing compression of the facial nerve")
    figures, _ = evaluated(task, "mmlu_anatomy", [0, 1])
    assert figures.fewshot == 5


def test_documents_of_a_local_file_are_scored(tmp_path):
    problem = {"question": "The cat is  _  .", "answer": "B", "options": ["red", "black", "green", "blue"]}
    row = {"article": "A black cat sat here.", "problems": str([problem | {"question": "Who sat?"}, problem])}
    (tmp_path / "race.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    task = task_loading.load_tasks(["race"], task_sources.parse_task_data([f"race={tmp_path / 'race.jsonl'}"]))["race"]
    figures, samples = evaluated(task, "race", [0, 1], lambda _, continuation: float(continuation == " black"))
    assert samples["target"].tolist() == [1, 1]
    assert figures.metrics["acc"] == TaskMetric(value=1.0, stderr=0.0)
    assert (figures.available, figures.version) == (2, 3.0)


def test_a_task_that_sums_over_several_right_choices_has_neither_bits_nor_an_accuracy_of_guesses(tmp_path):
    """Half of what guesses do is right where half of the choices are, whatever one in four would be."""
    labels = ([1, 1, 0, 0], [1, 1, 1, 0, 0, 0])
    rows = [{"question": "Why?", "mc2_targets": {"choices": list("abcdef"[: len(l)]), "labels": l}} for l in labels]
    (tmp_path / "mc2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = task_sources.parse_task_data([f"truthfulqa_mc2={tmp_path / 'mc2.jsonl'}"])
    task = task_loading.load_tasks(["truthfulqa_mc2"], data)["truthfulqa_mc2"]
    figures, samples = evaluated(task, "truthfulqa_mc2", [0, 1])
    assert figures.metrics["acc"].value == pytest.approx(0.5)
    assert (figures.chance, figures.answer_bpb) == (None, None)
    assert "answer_bpb" not in samples
    row = frame._task("task_truthfulqa_mc2", replace(figures, metrics={"acc": TaskMetric(value=0.45)}, documents=817))
    assert (row["task_truthfulqa_mc2_low"], row["task_truthfulqa_mc2_high"]) == (None, None)  # no count of answers
    piqa = TaskScore(
        main="acc", metrics={"acc": TaskMetric(value=0.45)}, version=1, documents=100, available=100, fewshot=0
    )
    assert frame._task("task_piqa", piqa)["task_piqa_low"] > 0.3


def test_every_model_gets_the_same_examples(tmp_path):
    """The sampler draws anew for each document; its seed is set before every evaluation."""
    for split, count in (("train", 40), ("validation", 6)):
        rows = [{"goal": f"{split} {i}", "sol1": "a", "sol2": "b", "label": 0} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_loading.load_tasks(["piqa"], task_sources.parse_task_data([f"piqa={tmp_path}"]), fewshot=3)["piqa"]
    _, one = evaluated(task, "piqa", range(6))
    _, two = evaluated(task, "piqa", range(6))
    assert one["prompt_hash"].tolist() == two["prompt_hash"].tolist()
    prompts = [instance.args[0] for instance in task.instances[::2]]
    assert len({prompt.rpartition("\n\n")[0] for prompt in prompts}) == 6
    assert all(prompt.count("train ") == 3 for prompt in prompts)


@pytest.fixture(scope="module")
def stock():
    """lm-eval's own scorer on the default model."""
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = pretrained.load("smollm2-135m", torch.device("cpu"), torch.float32)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=1024)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "acc", "acc_norm"),
    [("hellaswag", 0.3833, 0.45), ("piqa", 0.6667, 0.7167), ("winogrande", 0.4833, None), ("arc_easy", 0.4833, 0.4333)],
)
def test_reference_figures_of_the_dense_model(offline, stock, name, acc, acc_norm):
    figures, _ = tasks.evaluate(stock, {name: offline[name]}, {name: list(range(60))})
    assert figures[name].metrics["acc"].value == pytest.approx(acc, abs=1e-4)
    if acc_norm is not None:
        assert figures[name].metrics["acc_norm"].value == pytest.approx(acc_norm, abs=1e-4)

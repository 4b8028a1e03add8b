"""Tasks: documents, right answers and figures of every offline task, local files, examples, and what is refused."""

import json
import math

import pytest
import torch
from lm_eval.api.model import LM

from bench.data import pretrained, task_sources
from bench.data.task_sources import GROUPS, HUB, OFFLINE
from bench.evaluation import tasks
from methods.errors import UserError

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
    return tasks.load(KNOWN)


def evaluated(task, name, documents, likes=lambda context, continuation: 0.0):
    figures, samples = tasks.evaluate(Answering(likes), {name: task}, {name: documents})
    return figures[name], samples[name]


def test_hashing_documents_draws_no_bar_of_the_library(offline, capfd):
    """HellaSwag's are turned into lm-eval's form by `Dataset.map`, which draws one."""
    tasks.fingerprint(offline["hellaswag"], [0, 5, 7])
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
    _, samples = evaluated(task, name, tasks.draw(task, 120, 0))
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
    ids = tasks.draw(task, 200, 0)
    figures, _ = evaluated(task, "boolq", ids, lambda _, continuation: float(continuation == " yes"))
    assert figures["acc"]["value"] == pytest.approx(sum(answers[position] for position in ids) / 200)


@pytest.mark.parametrize("name", ["hellaswag", "piqa", "copa", "boolq"])
def test_the_right_choice_scores(offline, name):
    """A model that knows the right continuations is right everywhere, one that avoids them nowhere."""
    task, ids = offline[name], tasks.draw(offline[name], 40, 1)
    _, samples = evaluated(task, name, ids)
    contexts, right = {}, set()
    task.build_all_requests(samples=ids)
    for instance in task.instances:
        contexts.setdefault(instance.doc_id, []).append(instance.args)
    for row, target in enumerate(samples["target"]):
        right.add(contexts[row][target])
    for sign, score in ((1.0, 1.0), (-1.0, 0.0)):
        figures, _ = evaluated(task, name, ids, lambda *args, sign=sign: sign * (args in right) - 1.0)
        assert figures["acc"]["value"] == score


def test_all_subjects_of_mmlu_load():
    subjects = tasks.load(tasks.check(["mmlu"]))
    assert len(subjects) == 57
    assert sum(len(task.eval_docs) for task in subjects.values()) == 14042
    task = subjects["mmlu_world_religions"]
    figures, samples = evaluated(task, "mmlu_world_religions", tasks.draw(task, 60, 0))
    assert set(samples["target"]) == {0, 1, 2, 3}
    assert figures["main"] == "acc"


def test_generated_text_is_kept(offline):
    figures, samples = evaluated(offline["nq_open"], "nq_open", [0, 1])
    assert samples["responses"].tolist() == [["14 December 1972 UTC"]] * 2
    assert samples["exact_match"].tolist() == [1.0, 0.0]
    assert figures["main"] == "exact_match"


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
    assert figures["exact_match,year"] == {"value": 0.5, "stderr": 0.5}


def test_samples_belong_to_the_documents_that_were_drawn(offline):
    task = offline["hellaswag"]
    ids = tasks.draw(task, 5, 3)
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


def test_figures_are_those_of_the_record(offline):
    task = offline["piqa"]
    figures, samples = evaluated(task, "piqa", tasks.draw(task, 50, 0), lambda _, text: -float(len(text)))
    assert figures.keys() == {"acc", "acc_norm", "main", "version", "documents", "available", "fewshot"}
    share = samples["acc"].mean()
    assert figures["acc"]["value"] == pytest.approx(share)
    assert figures["acc"]["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 49))
    assert (figures["main"], figures["version"]) == ("acc_norm", 1.0)
    assert (figures["documents"], figures["available"], figures["fewshot"]) == (50, 1838, 0)


def test_no_standard_error_without_a_mean(offline):
    figures, samples = evaluated(offline["mrpc"], "mrpc", list(range(20)))
    assert figures["f1"].keys() == {"value"}
    assert "f1" not in samples
    figures, _ = evaluated(offline["mrpc"], "mrpc", [0])
    assert figures["acc"].keys() == {"value"}


def test_samples_survive_parquet(offline, tmp_path):
    import pandas as pd

    for name in ("copa", "winogrande", "nq_open"):
        _, samples = evaluated(offline[name], name, [0, 1, 2])
        samples.to_parquet(tmp_path / f"{name}.parquet")
        again = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert again["doc_hash"].tolist() == samples["doc_hash"].tolist()


def test_a_draw_depends_on_the_seed_alone(offline):
    task = offline["arc_easy"]
    assert tasks.draw(task, 10, 0) == tasks.draw(task, 10, 0) != tasks.draw(task, 10, 1)
    assert tasks.draw(task, 10, 0) == sorted(set(tasks.draw(task, 10, 0)))
    assert tasks.draw(task, 0, 0) == tasks.draw(task, 9999, 0) == list(range(570))


def test_evaluation_is_silent(offline, capfd):
    evaluated(offline["mrpc"], "mrpc", [0, 1])
    tasks.load(["hellaswag", "cb"])
    assert capfd.readouterr() == ("", "")


def test_groups_expand_and_repeat_nothing():
    assert tasks.check(["piqa", "quick"]) == ("piqa", "hellaswag", "winogrande", "arc_easy", "openbookqa")
    assert len(tasks.check(["commonsense"])) == 7


def test_an_unknown_task_gets_the_near_and_the_known_ones():
    with pytest.raises(UserError, match=r"no task 'hellaswg'; did you mean hellaswag\? offline there are .*piqa.*mmlu"):
        tasks.check(["piqa", "hellaswg"])


@pytest.mark.parametrize("name", ["lambada_openai", "race", "cmmlu_anatomy"])
def test_a_task_out_of_reach_is_one_line_with_the_way_out(name):
    with pytest.raises(UserError, match=f"task {name} cannot be loaded from the hub or its cache") as caught:
        tasks.check(["piqa", name])
    assert "\n" not in str(caught.value)
    assert f"--task-data {name}=PATH takes local files" in str(caught.value)


def test_the_tasks_of_the_papers_are_there():
    from bench.data.task_sources import DEFINITIONS

    asked = {"hellaswag", "piqa", "wsc", "commonsense_qa", "boolq", "race", "mmlu_anatomy", "cmmlu_anatomy"}
    assert asked < set(GROUPS["laco"])
    assert len(GROUPS["laco"]) == 6 + 57 + 67
    assert all(name in OFFLINE or name in HUB for members in GROUPS.values() for name in members)
    assert all((DEFINITIONS / definition).is_file() for definition in HUB.values())
    public_page = {"hellaswag", "winogrande", "piqa", "medmcqa", "race", "wikitext"}
    assert public_page <= {*OFFLINE, *HUB}


PROBLEM = {"question": "The cat is  _  .", "answer": "B", "options": ["red", "black", "green", "blue"]}
RACE = {
    "article": "A black cat sat here.",
    "problems": str([PROBLEM | {"question": "Who sat?", "answer": "A"}, PROBLEM]),
}


def write(path, rows):
    """Rows in the format that the end of the name says."""
    from datasets import Dataset

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).save_to_disk(path.parent)


@pytest.mark.parametrize("file", ["race.jsonl", "race.parquet", "data-00000-of-00001.arrow"])
def test_documents_from_a_local_file(tmp_path, file):
    write(tmp_path / file, [RACE, RACE | {"article": "Another."}])
    data = task_sources.parse_task_data([f"race={tmp_path / file}"])
    assert tasks.check(["race"], data) == ("race",)
    task = tasks.load(["race"], data)["race"]
    figures, samples = evaluated(task, "race", [0, 1], lambda _, continuation: float(continuation == " black"))
    assert samples["target"].tolist() == [1, 1]
    assert figures["acc"] == {"value": 1.0, "stderr": 0.0}
    assert (figures["available"], figures["version"]) == (2, 3.0)
    task.build_all_requests(samples=[0])
    assert (
        task.instances[0].args[0]
        == "Article: A black cat sat here.\n\nQuestion: Who sat?\nAnswer: red\nThe cat is  _  ."
    )


def test_local_documents_take_the_place_of_the_stored_ones(tmp_path):
    rows = [{"goal": "To boil water", "sol1": "heat it", "sol2": "paint it", "label": 0}]
    write(tmp_path / "mine.jsonl", rows)
    task = tasks.load(["piqa"], task_sources.parse_task_data([f"piqa={tmp_path}"]))["piqa"]
    assert [document["goal"] for document in task.eval_docs] == ["To boil water"]


@pytest.mark.parametrize("layout", ["{}-00000-of-00001.parquet", "{}/rows.jsonl"])
def test_a_folder_with_splits_gives_each_its_own(tmp_path, layout):
    """wsc is evaluated on validation and takes its examples from train."""

    def row(text):
        spans = {"span1_text": "Mark", "span2_text": "He", "span1_index": 0, "span2_index": 2}
        return {"text": text, **spans, "label": 1, "idx": 0}

    write(tmp_path / layout.format("train"), [row(f"Mark came. He {verb}.") for verb in ("sat", "stood", "ran")])
    write(tmp_path / layout.format("validation"), [row("Mark left. He slept.")])
    data = task_sources.parse_task_data([f"wsc={tmp_path}"])
    assert tasks.check(["wsc"], data, fewshot=3) == ("wsc",)
    task = tasks.load(["wsc"], data, fewshot=2)["wsc"]
    assert len(task.eval_docs) == 1
    task.set_fewshot_seed(1)
    task.build_all_requests()
    *examples, question = task.instances[0].args[0].split("\n\n")
    assert len(examples) == 2
    assert all(example.startswith("Passage: Mark came.") and example.endswith("Answer: yes") for example in examples)
    assert question.startswith("Passage: Mark left.")
    with pytest.raises(UserError, match="wsc has 3 examples; 4 were asked for"):
        tasks.check(["wsc"], data, fewshot=4)
    with pytest.raises(UserError, match="has no files of the split test, on which race is evaluated"):
        tasks.check(["race"], task_sources.parse_task_data([f"race={tmp_path}"]))


def test_shards_of_a_folder_are_read_in_order(tmp_path):
    for number in range(3):
        write(tmp_path / f"part-{number}.jsonl", [RACE | {"article": f"article {number}"}])
    (tmp_path / "README.md").write_text("not data")
    documents = task_sources.read_documents(tmp_path, "test")
    assert documents["article"] == ["article 0", "article 1", "article 2"]


def test_the_key_of_local_documents_is_their_content(tmp_path):
    write(tmp_path / "a.jsonl", [RACE])
    (one,) = task_sources.parse_task_data([f"race={tmp_path / 'a.jsonl'}"])
    assert one[:2] == ("race", str(tmp_path / "a.jsonl"))
    write(tmp_path / "a.jsonl", [RACE, RACE])
    (two,) = task_sources.parse_task_data([f"race={tmp_path / 'a.jsonl'}"])
    assert one[2] != two[2]
    assert len(one[2]) == 64


def test_local_documents_that_do_not_fit_are_refused_before_any_work(tmp_path):
    write(tmp_path / "wrong.jsonl", [{"passage": "x"}])
    write(tmp_path / "late.jsonl", [RACE, RACE, RACE | {"problems": "[]"}])
    (tmp_path / "broken.jsonl").write_text('{"article": ')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "empty").mkdir()
    mistakes = {
        "wrong.jsonl": "has the columns passage, of which lm-eval's race cannot make prompts as of EleutherAI/race",
        "late.jsonl": "lm-eval's race cannot make prompts",
        "broken.jsonl": "cannot be read as jsonl",
        "list.jsonl": "cannot be read as jsonl: one object per line",
        "empty": r"holds no \.arrow, \.parquet, \.jsonl file",
        "nowhere": "there is no .*nowhere",
    }
    for file, message in mistakes.items():
        with pytest.raises(UserError, match=message) as caught:
            tasks.check(["race"], task_sources.parse_task_data([f"race={tmp_path / file}"]))
        assert "\n" not in str(caught.value)
    for setting in ("race", "race=", "=x"):
        with pytest.raises(UserError, match="is written TASK=PATH"):
            task_sources.parse_task_data([setting])
    settings = [f"race={tmp_path / 'late.jsonl'}"]
    with pytest.raises(UserError, match="names race twice"):
        task_sources.parse_task_data(settings * 2)
    with pytest.raises(UserError, match="speaks of race, which --tasks does not name"):
        tasks.check(["piqa"], task_sources.parse_task_data(settings))
    with pytest.raises(UserError, match="no task 'rase'; did you mean race"):
        tasks.check(["rase"], task_sources.parse_task_data([f"rase={tmp_path / 'late.jsonl'}"]))


def test_a_task_that_is_only_in_the_catalogue_takes_local_documents(tmp_path):
    rows = [{"context": "It rained.", "question": "q", "answer0": "a", "answer1": "b", "answer2": "c", "answer3": "d"}]
    write(tmp_path / "rows.jsonl", [rows[0] | {"label": 2, "text": "One two three"}])
    data = task_sources.parse_task_data([f"lambada_standard={tmp_path / 'rows.jsonl'}"])
    task = tasks.load(["lambada_standard"], data)["lambada_standard"]
    task.build_all_requests()
    assert task.instances[0].args == ("One two", " three")


def test_examples_of_mmlu_are_its_dev_split_in_order():
    task = tasks.load(tasks.check(["mmlu_anatomy"], fewshot=5), fewshot=5)["mmlu_anatomy"]
    task.build_all_requests(samples=[0])
    context = task.instances[0].args[0]
    head, *examples, question = context.split("\n\n")
    assert head == "The following are multiple choice questions (with answers) about anatomy."
    assert [example[-9:] for example in examples] == [f"Answer: {letter}" for letter in "DDCCB"]
    assert examples[0].startswith("What is the embryological origin of the hyoid bone?")
    assert question.startswith("A lesion causing compression of the facial nerve")
    figures, _ = evaluated(task, "mmlu_anatomy", [0, 1])
    assert figures["fewshot"] == 5


def test_every_model_gets_the_same_examples(tmp_path):
    """The sampler draws anew for each document; its seed is set before every evaluation."""
    for split, count in (("train", 40), ("validation", 6)):
        rows = [{"goal": f"{split} {i}", "sol1": "a", "sol2": "b", "label": 0} for i in range(count)]
        write(tmp_path / f"{split}.jsonl", rows)
    task = tasks.load(["piqa"], task_sources.parse_task_data([f"piqa={tmp_path}"]), fewshot=3)["piqa"]
    _, one = evaluated(task, "piqa", range(6))
    _, two = evaluated(task, "piqa", range(6))
    assert one["prompt_hash"].tolist() == two["prompt_hash"].tolist()
    prompts = [instance.args[0] for instance in task.instances[::2]]
    assert len({prompt.rpartition("\n\n")[0] for prompt in prompts}) == 6
    assert all(prompt.count("train ") == 3 for prompt in prompts)


def test_a_task_without_a_split_for_examples_is_refused():
    for name in ("piqa", "medmcqa"):
        with pytest.raises(UserError, match=f"--fewshot: {name} has no documents for examples"):
            tasks.check(["mmlu_anatomy", name], fewshot=2)
    with pytest.raises(UserError, match="mmlu_anatomy has 5 examples; 6 were asked for"):
        tasks.load(["mmlu_anatomy"], fewshot=6)


def test_listing_tasks_imports_nothing_heavy():
    import subprocess
    import sys

    modules = "bench.evaluation.tasks, bench.data.pretrained, bench.data.texts"
    code = f"import sys, {modules}; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "datasets", "lm_eval", "transformers", "pandas"]
    outcome = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def stock():
    """lm-eval's own scorer on the default model."""
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = pretrained.load("smollm2-135m", torch.device("cpu"), torch.float32)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=1024)


@pytest.mark.parametrize(
    ("name", "acc", "acc_norm"),
    [
        ("hellaswag", 0.3833, 0.45),
        ("piqa", 0.6667, 0.7167),
        ("winogrande", 0.4833, None),
        ("arc_easy", 0.4833, 0.4333),
    ],
)
def test_reference_figures_of_the_dense_model(offline, stock, name, acc, acc_norm):
    figures, _ = tasks.evaluate(stock, {name: offline[name]}, {name: list(range(60))})
    assert figures[name]["acc"]["value"] == pytest.approx(acc, abs=1e-4)
    if acc_norm is not None:
        assert figures[name]["acc_norm"]["value"] == pytest.approx(acc_norm, abs=1e-4)

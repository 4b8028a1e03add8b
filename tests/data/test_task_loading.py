"""Loading tasks: names and groups, draws of documents, local files, examples, and what is refused before any work."""

import json

import pytest
from lm_eval.api.model import LM

from bench.data import task_loading, task_sources
from bench.data.task_sources import DEFINITIONS, GROUPS, HUB, OFFLINE
from bench.evaluation.tasks import evaluate
from methods.errors import UserError

pytestmark = pytest.mark.default_model


def test_a_draw_depends_on_the_seed_alone():
    task = task_loading.load_tasks(["arc_easy"])["arc_easy"]
    assert (
        task_loading.draw_documents(task, 10, 0)
        == task_loading.draw_documents(task, 10, 0)
        != task_loading.draw_documents(task, 10, 1)
    )
    assert task_loading.draw_documents(task, 10, 0) == sorted(set(task_loading.draw_documents(task, 10, 0)))
    assert task_loading.draw_documents(task, 0, 0) == task_loading.draw_documents(task, 9999, 0) == list(range(570))


def test_a_task_without_examples_reads_the_documents_that_are_scored_and_no_other(monkeypatch):
    reads = []
    read = task_loading.Documents.read
    monkeypatch.setattr(task_loading.Documents, "read", lambda self, rows: reads.append(list(rows)) or read(self, rows))
    task = task_loading.load_tasks(["hellaswag"])["hellaswag"]
    task.build_all_requests(samples=[7, 4_000])
    assert {row for rows in reads for row in rows} == {0, 7, 4_000}  # lm-eval looks at the first one for its types
    assert task.fewshot_docs() is None  # which lm-eval lists whole, beside these reads
    assert not hasattr(task, "sampler")


def test_groups_expand_and_repeat_nothing():
    assert task_loading.check_tasks(["piqa", "quick"]) == ("piqa", "hellaswag", "winogrande", "arc_easy", "openbookqa")
    assert len(task_loading.check_tasks(["commonsense"])) == 7


def test_an_unknown_task_gets_the_near_and_the_known_ones():
    with pytest.raises(
        UserError, match=r"no task 'hellaswg'; did you mean hellaswag or hellaswag_rc\? offline there are .*piqa.*mmlu"
    ):
        task_loading.check_tasks(["piqa", "hellaswg"])


@pytest.mark.parametrize("name", ["lambada_openai", "race", "cmmlu_anatomy"])
def test_a_task_out_of_reach_is_one_line_with_the_way_out(name):
    with pytest.raises(UserError, match=f"task {name} cannot be loaded from the hub or its cache") as caught:
        task_loading.check_tasks(["piqa", name])
    assert "\n" not in str(caught.value)
    assert f"--task-data {name}=PATH takes local files" in str(caught.value)


def test_the_tasks_of_the_papers_are_there():
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
    assert task_loading.check_tasks(["race"], data) == ("race",)
    task = task_loading.load_tasks(["race"], data)["race"]
    assert (len(task.eval_docs), task.VERSION) == (2, 3.0)
    task.build_all_requests(samples=[0])
    assert (
        task.instances[0].args[0]
        == "Article: A black cat sat here.\n\nQuestion: Who sat?\nAnswer: red\nThe cat is  _  ."
    )


def test_local_documents_take_the_place_of_the_stored_ones(tmp_path):
    rows = [{"goal": "To boil water", "sol1": "heat it", "sol2": "paint it", "label": 0}]
    write(tmp_path / "mine.jsonl", rows)
    task = task_loading.load_tasks(["piqa"], task_sources.parse_task_data([f"piqa={tmp_path}"]))["piqa"]
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
    assert task_loading.check_tasks(["wsc"], data, fewshot=3) == ("wsc",)
    task = task_loading.load_tasks(["wsc"], data, fewshot=2)["wsc"]
    assert len(task.eval_docs) == 1
    task.set_fewshot_seed(1)
    task.build_all_requests()
    *examples, question = task.instances[0].args[0].split("\n\n")
    assert len(examples) == 2
    assert all(example.startswith("Passage: Mark came.") and example.endswith("Answer: yes") for example in examples)
    assert question.startswith("Passage: Mark left.")
    with pytest.raises(UserError, match="wsc has 3 examples; 4 were asked for"):
        task_loading.check_tasks(["wsc"], data, fewshot=4)
    with pytest.raises(UserError, match="has no files of the split test, on which race is evaluated"):
        task_loading.check_tasks(["race"], task_sources.parse_task_data([f"race={tmp_path}"]))


def test_shards_of_a_folder_are_read_in_order(tmp_path):
    for number in range(3):
        write(tmp_path / f"part-{number}.jsonl", [RACE | {"article": f"article {number}"}])
    (tmp_path / "README.md").write_text("not data")
    documents = task_sources.read_documents(tmp_path, "test")
    assert documents["article"] == ["article 0", "article 1", "article 2"]


def test_a_column_that_only_a_later_row_has_is_read(tmp_path):
    write(tmp_path / "rows.jsonl", [{"a": 1}, {"b": 2, "a": 3}])
    documents = task_sources.read_documents(tmp_path / "rows.jsonl", "test")
    assert list(documents) == [{"a": 1, "b": None}, {"a": 3, "b": 2}]


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
            task_loading.check_tasks(["race"], task_sources.parse_task_data([f"race={tmp_path / file}"]))
        assert "\n" not in str(caught.value)
    for setting in ("race", "race=", "=x"):
        with pytest.raises(UserError, match="is written TASK=PATH"):
            task_sources.parse_task_data([setting])
    (tmp_path / "folder" / "test.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"--task-data race=.*folder cannot be read: Is a directory"):
        task_sources.parse_task_data([f"race={tmp_path / 'folder'}"])
    settings = [f"race={tmp_path / 'late.jsonl'}"]
    with pytest.raises(UserError, match="names race twice"):
        task_sources.parse_task_data(settings * 2)
    with pytest.raises(UserError, match="speaks of race, which --tasks does not name"):
        task_loading.check_tasks(["piqa"], task_sources.parse_task_data(settings))
    with pytest.raises(UserError, match="no task 'rase'; did you mean race"):
        task_loading.check_tasks(["rase"], task_sources.parse_task_data([f"rase={tmp_path / 'late.jsonl'}"]))


def test_a_task_that_is_only_in_the_catalogue_takes_local_documents(tmp_path):
    rows = [{"context": "It rained.", "question": "q", "answer0": "a", "answer1": "b", "answer2": "c", "answer3": "d"}]
    write(tmp_path / "rows.jsonl", [rows[0] | {"label": 2, "text": "One two three"}])
    data = task_sources.parse_task_data([f"lambada_standard={tmp_path / 'rows.jsonl'}"])
    task = task_loading.load_tasks(["lambada_standard"], data)["lambada_standard"]
    task.build_all_requests()
    assert task.instances[0].args == ("One two", " three")


def questions(path, count=40):
    """Questions in the form of GPQA, whose definition shuffles the choices of each."""
    wrong = {f"Incorrect Answer {number}": f"wrong {number}" for number in (1, 2, 3)}
    write(path, [{"Question": f"Q{number}?", "Correct Answer": f"right {number}"} | wrong for number in range(count)])
    return task_sources.parse_task_data([f"gpqa_main_zeroshot={path}"])


def test_choices_that_a_definition_shuffles_are_the_same_each_time_that_they_are_read(tmp_path):
    """For the prompts, for the scores, and in the next run."""
    data = questions(tmp_path / "rows.jsonl")
    task, again = (task_loading.load_tasks(["gpqa_main_zeroshot"], data)["gpqa_main_zeroshot"] for _ in range(2))
    first, second, third = (
        [[one[f"choice{number}"] for number in (1, 2, 3, 4)] for one in each]
        for each in (task.eval_docs, task.eval_docs, again.eval_docs)
    )
    assert first == second == third
    assert len({choices.index(f"right {number}") for number, choices in enumerate(first)}) == 4
    (one, other) = (doc for _, doc in task.doc_iterator(samples=[3, 1]))
    assert (one["choice1"], other["choice1"]) == (first[3][0], first[1][0])


def test_a_model_that_knows_all_answers_has_them_all_right(tmp_path):
    class Knows(LM):
        def loglikelihood(self, requests):
            return [(0.0 if request.doc["answer"] in request.args[1] else -9.0, False) for request in requests]

        loglikelihood_rolling = generate_until = None

    data = questions(tmp_path / "rows.jsonl")
    tasks = task_loading.load_tasks(["gpqa_main_zeroshot"], data)
    figures, _ = evaluate(Knows(), tasks, {"gpqa_main_zeroshot": [2, 7, 30]})
    assert figures["gpqa_main_zeroshot"].metrics["acc"].value == 1.0


def test_documents_that_a_definition_leaves_out_are_not_counted(tmp_path):
    rows = [
        {
            "question": f"{number}?",
            "options": ["a", "b"],
            "answer": "A",
            "answer_index": 0,
            "category": subject,
            "cot_content": "",
        }
        for number, subject in enumerate(["law", "math", "law", "math", "math"])
    ]
    write(tmp_path / "validation/rows.jsonl", rows[1:2])
    write(tmp_path / "test/rows.jsonl", rows)
    task = task_loading.load_tasks(["mmlu_pro_math"], task_sources.parse_task_data([f"mmlu_pro_math={tmp_path}"]))[
        "mmlu_pro_math"
    ]
    assert [one["question"] for one in task.eval_docs] == ["1?", "3?", "4?"]
    assert len(task.eval_docs) == 3 and task_loading.draw_documents(task, 0, 0) == [0, 1, 2]


def test_documents_without_a_right_choice_are_refused(tmp_path):
    write(tmp_path / "rows.jsonl", [{"goal": "g", "sol1": "a", "sol2": "b", "label": label} for label in (0, -1)])
    with pytest.raises(
        UserError, match="document 1 has the right choice -1, of 2 choices; leave out documents without a label"
    ):
        task_loading.check_tasks(["piqa"], task_sources.parse_task_data([f"piqa={tmp_path / 'rows.jsonl'}"]))


def test_examples_that_are_in_a_definition_need_no_file_and_others_are_asked_for(tmp_path):
    write(tmp_path / "rows.jsonl", [{"question": "1 + 1?", "answer": "2 #### 2"}])
    file = tmp_path / "rows.jsonl"
    shown = task_loading.load_tasks(["gsm8k_cot"], task_sources.parse_task_data([f"gsm8k_cot={file}"]))["gsm8k_cot"]
    assert len(shown.fewshot_docs()) == shown.config.num_fewshot == 8
    with pytest.raises(
        UserError, match=r"gsm8k is asked with 5 examples, and .* has none; give a folder with files of"
    ):
        task_loading.check_tasks(["gsm8k"], task_sources.parse_task_data([f"gsm8k={file}"]))


def test_examples_from_the_documents_that_are_evaluated_are_refused(tmp_path):
    row = {
        "flores_passage": "p",
        "question": "q",
        **{f"mc_answer{n}": "a" for n in (1, 2, 3, 4)},
        "correct_answer_num": "1",
    }
    write(tmp_path / "rows.jsonl", [row, row])
    name, file = "belebele_eng_Latn", tmp_path / "rows.jsonl"
    with pytest.raises(UserError, match="has no documents for examples beside those that are evaluated"):
        task_loading.check_tasks([name], task_sources.parse_task_data([f"{name}={file}"]), fewshot=1)


def test_lines_end_where_json_says_and_shards_of_different_types_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"goal": "a\u2028b\x85c"}, ensure_ascii=False) + "\r\n", encoding="utf-8"
    )
    assert task_sources.read_documents(tmp_path, "test")["goal"] == ["a\u2028b\x85c"]
    write(tmp_path / "b.jsonl", [{"goal": 3}])
    with pytest.raises(UserError, match="have columns of different types"):
        task_sources.read_documents(tmp_path, "test")


def test_a_task_without_a_split_for_examples_is_refused():
    for name in ("piqa", "medmcqa"):
        with pytest.raises(UserError, match=f"--fewshot: {name} has no documents for examples"):
            task_loading.check_tasks(["mmlu_anatomy", name], fewshot=2)
    with pytest.raises(UserError, match="mmlu_anatomy has 5 examples; 6 were asked for"):
        task_loading.load_tasks(["mmlu_anatomy"], fewshot=6)


def test_listing_tasks_imports_nothing_heavy():
    import subprocess
    import sys

    modules = "bench.evaluation.tasks, bench.data.task_loading, bench.data.pretrained, bench.data.texts"
    code = f"import sys, {modules}; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "datasets", "lm_eval", "transformers", "pandas"]
    outcome = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"

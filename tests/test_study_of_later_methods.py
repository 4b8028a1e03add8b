"""What the study of three models says of methods that came after its grid is what their records say."""

from __future__ import annotations

from functools import cache

from pages import ROOT, text

from bench.records import run_folder
from bench.stats import contrasts

PAGE = "docs/studies/models.md"
BASE = "2ssp+refit"
MODELS = ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b")


@cache
def run():
    return run_folder.load_runs([ROOT / "docs/results/later-methods"])


def places() -> dict[tuple[str, float], dict[str, int]]:
    """Return which records are of a model at a ratio, by method, the dense model's among them."""
    found = dict[tuple[str, float], dict[str, int]]()
    dense = {one.cell["model"]: n for n, one in enumerate(run().records) if one.cell["label"] == "dense"}
    for n, one in enumerate(run().records):
        if one.cell["label"] != "dense":
            its = found.setdefault((one.cell["model"], one.cell["ratio"]), {"dense": dense[one.cell["model"]]})
            its[one.cell["label"]] = n
    return dict(sorted(found.items(), key=lambda each: (MODELS.index(each[0][0]), each[0][1])))


@cache
def rows() -> list[str]:
    """Return the rows of the table: a method's figures, and how they differ from those of BASE, by model and ratio."""
    records, samples, lines = run().records, run().samples, []
    for (model, ratio), at in places().items():
        for label in sorted(at, key=lambda each: records[at[each]].measured["perplexity"]["wiki"]["perplexity"]):
            measured, pair, words = records[at[label]].measured, (at[BASE], at[label]), []
            for name in ("wiki", "c4"):
                words.append(f"{measured['perplexity'][name]['perplexity']:.1f}")
                if label != BASE:
                    found = contrasts.perplexity(records, [pair], samples, name)[pair]
                    words[-1] += f", {found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"
            bits = [task["answer_bpb"]["value"] for task in measured["tasks"].values()]
            words.append(f"{sum(bits) / len(bits):.3f}")
            if label != BASE:
                tasks = list(measured["tasks"])
                found = contrasts.average(records, [pair], samples, tasks, "answer_bpb", bounds=True)[pair]
                words[-1] += f", {found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
            lines.append(f"| {model} | {ratio if label != 'dense' else '-'} | `{label}` | {' | '.join(words)} |")
    return lines


def test_the_table_is_what_the_records_say():
    assert len(rows()) > 10
    assert "\n".join(rows()) in text(PAGE)
    for one in run().records:
        assert one.status == "ok"
        assert {task["documents"] for task in one.measured["tasks"].values()} == {100}
        assert all(of["drawn"] and of["windows"] == 48 for of in one.measured["perplexity"].values())


def test_what_is_said_of_the_control_of_low_rank():
    last = {}
    for at, its in places().items():
        if "svd-llm" in its:
            by_wiki = [line.split("`")[1] for line in rows() if line.startswith(f"| {at[0]} | {at[1]} |")]
            last[at] = by_wiki[-1]
    assert last == {
        ("smollm2-135m", 0.2): "svd-llm",
        ("smollm2-135m", 0.3): "llm-streamline",
        ("gemma3-270m", 0.2): "svd-llm",
    }


def test_what_is_said_of_a_layer_that_is_trained():
    """In front of the other by each figure on two models, and behind it by so many times elsewhere."""
    by_place = dict[tuple[str, str], list[str]]()
    for line in rows():
        model, ratio, label, *figures = line.strip("| ").split(" | ")
        if label == "`llm-streamline`":
            by_place[model, ratio] = [figure.partition(", ")[2] for figure in figures]
    for model in ("smollm2-135m", "qwen2.5-coder-0.5b"):
        wiki, c4, bits = by_place[model, "0.2"]
        assert wiki.startswith("0.") and c4.startswith("0.") and bits.startswith("-")
    many = [by_place[at][0].split()[0] for at in (("gemma3-270m", "0.2"), ("smollm2-135m", "0.3"))]
    assert (
        f"on Gemma it has {float(many[0]):.1f} times its perplexity, and at 0.3 on SmolLM2 {float(many[1]):.0f}"
        in text(PAGE)
    )

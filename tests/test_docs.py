"""The documentation says what there is: parameters, sources, files, and the figures of its records."""

from __future__ import annotations

import json
import re

import pytest
from pages import DOCS, ROOT, generator, pages, report, rows, sentences, tables, text

import methods
from bench.cli.main import main
from bench.records import run_folder
from bench.records.quantities import list_quantities

CARDS = {card.name: card for card in methods.cards_of_methods()}
LACO_PUBLISHED = {"merge": "'sum'", "clamp": "True", "sentences": "10"}
METHOD_PAGES = {page.stem: page for page in generator().method_pages.PAGES}
CONTROLS = {"layer_drop", "reinitialize"}
PROSE = sorted(path for folder in ("guides", "reference", "studies") for path in (DOCS / folder).glob("*.md"))
READ_ONCE = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/index.md",
    "docs/install.md",
    "docs/checks.md",
    *(f"docs/{path.relative_to(DOCS)}" for path in PROSE),
]
SOURCED = sorted(set(METHOD_PAGES) - CONTROLS - {"laco_ls", "laco_puzzle"})  # which are this project's own


@pytest.mark.parametrize("name", [name for name in CARDS if name != "laco-published"])
def test_every_parameter_is_on_its_page_with_its_default(name):
    table = rows()
    for parameter in CARDS[name].parameters:
        if parameter in CARDS["shortened-llama"].parameters and name == "shortened-llama-taylor":
            continue  # it is on the page once
        assert any(row[-3:] == parameter for row in table), f"the page of {name} lacks {parameter}"


def test_laco_published_differs_from_laco_as_the_page_says():
    ours, theirs = ({row[0]: row[1] for row in CARDS[name].parameters} for name in ("laco", "laco-published"))
    assert {name: value for name, value in theirs.items() if ours[name] != value} == LACO_PUBLISHED
    table = tables(pages()["methods/laco.md"])[-1]
    assert {row[1]: row[2] for row in table if row[0] == "laco-published"} == LACO_PUBLISHED


def test_every_method_and_compensation_has_a_page():
    shown = {name.strip() for page in METHOD_PAGES.values() for name in page.title.split(",")}
    assert shown == {*CARDS, *(f"+{card.name}" for card in methods.cards_of_compensations())} - {"dense"}
    assert len(METHOD_PAGES) >= 22


@pytest.mark.parametrize("stem", sorted(METHOD_PAGES))
def test_a_methods_page_has_what_it_must_say(stem):
    page = METHOD_PAGES[stem].markdown()
    assert re.search(r"^    \S" if stem in CONTROLS else r'^<pre class="equation" data-tex="\S', page, re.MULTILINE)
    assert "| File | `methods/" in page
    assert "| Looks at |" in page or METHOD_PAGES[stem].plus
    assert "## Cost" in page or "| Cost |" in page or "| Looks at | nothing |" in page or stem in CONTROLS
    assert "## Families" in page or "| Cannot serve |" in page or stem in CONTROLS
    assert "## Parameters" in page
    for path in re.findall(r"methods/[\w\\]+/[\w\\]+\.py", page):
        assert (ROOT / path.replace("\\", "")).is_file(), path


@pytest.mark.parametrize("stem", SOURCED)
def test_a_methods_page_names_authors_year_address_and_departures(stem):
    page = METHOD_PAGES[stem].markdown()
    assert re.search(r"\b20\d\d, \"", page), "authors, year and title"
    assert "https://arxiv.org/abs/" in page
    assert "https://github.com/" in page or "no code" in page or stem == "magnitude"
    assert "## Departures from the" in page or stem == "refit"


def folders() -> set[str]:
    """Return the folders of the packages that hold files."""
    packages = [path for package in ("bench", "methods", "reports") for path in (ROOT / package).rglob("*")]
    held = {f"{path.parent.relative_to(ROOT)}/" for path in packages if path.suffix in (".py", ".yaml")}
    return {folder for folder in held if "/__" not in folder}


def test_the_tree_of_the_docs_is_the_tree():
    assert {row[0] for row in tables(text("docs/tree.md"))[0][1:]} == folders() - {"bench/"} | {"tests/", "docs/"}


def test_every_question_of_the_tree_leads_to_a_file_that_exists():
    questions = tables(text("docs/tree.md"))[1][1:]
    assert len(questions) >= 12
    for question, path in questions:
        assert question.endswith("?")
        assert (ROOT / path).is_file(), f"{question} {path}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_to_files_lead_somewhere(page):
    found = re.findall(r"\]\(((?!http)[^)#]+)", text(page))
    assert [path for path in found if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", READ_ONCE)
def test_no_sentence_has_more_than_30_words(page):
    read = sentences(text(page))
    assert len(read) > 10
    assert [sentence for sentence in read if len(sentence.split()) > 30] == []


def test_what_is_no_study_is_short():
    """A guide is read from its first line to its last, and what flags do is said by `--help` alone."""
    pages = [ROOT / "README.md", *DOCS.glob("*.md"), *(path for path in PROSE if path.parent.name != "studies")]
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in pages}
    assert {name: count for name, count in lines.items() if count > 170} == {}
    assert sum(lines.values()) <= 2000


def test_the_tables_of_seeds_are_what_their_records_say():
    said: dict[str, list[str]] = {}
    for line in report("seeds", view="seeds"):
        said.setdefault(f"{line['table']} {line['label'].removeprefix('source=')}", []).append(line["shown"])
    shown = {}
    names = ("seeds-methods-wiki-0.2", "seeds-wiki-0.2")
    for name, (_, *lines) in zip(names, tables(text("docs/studies/seeds.md")), strict=True):
        shown |= {f"{name} {label}": cells for label, *cells in lines}
    assert shown == {key: cells for key, cells in said.items() if key.partition(" ")[0] in names}
    assert len(shown) == 15


def test_the_table_of_ratio_curves_is_what_its_records_say():
    said = {
        (line["label"], line["requested_ratio"]): line["shown"]
        for line in report("ratio-curves", view="by-ratio")
        if line["measure"] == "perplexity_wiki"
    }
    ((_, *ratios), *lines) = tables(text("docs/studies/ratio-curves.md"))[0]
    assert len(lines) == 8
    for name, *shown in lines:
        method = name.partition("`")[0]
        label = "sleb:tokens=512" if method == "sleb" else method
        assert shown == [said[label, ratio] for ratio in ratios], method


def test_the_table_of_inheritance_is_what_its_records_say():
    (table,) = (table for table in tables(text("docs/studies/healing.md")) if table[0][-1] == "random at 0.2")
    curves = {}
    for record in run_folder.read_records(ROOT / "docs/results/inherit").values():
        if record.measured.healing is not None:
            curve = record.measured.healing.curve
            curves[record.cell.method, record.cell.ratio] = {point.tokens: point for point in curve}
    columns = [(method, ratio) for ratio in (0.1, 0.2) for method in ("laco", "laco+reinitialize")]
    assert len(table) == 6
    for tokens, *shown in table[1:]:
        for column, cell in zip(columns, shown, strict=True):
            point = curves[column][int(tokens.replace(",", ""))]
            half = (point.heldout_loss_high - point.heldout_loss_low) / 2
            assert cell == f"{point.heldout_loss:.2f} ± {half:.2f}", (column, tokens)


def test_the_tables_of_lacos_settings_are_what_their_records_say():
    grids = tables(text("docs/studies/settings.md"))
    asked = (
        (grids[0], "laco-ablation", "C", "T", "-2"),
        (grids[1], "laco-range", "H", "ratio", ""),
    )  # -2: the panel I = 2
    for grid, run, first, last, panel in asked:
        said = {
            (line["label"], line["measure"]): line["shown"]
            for line in report(run, view="ablation")
            if line["table"] == f"ablation-laco-perplexity_wiki{panel}"
        }
        assert len(said) == (len(grid) - 1) * (len(grid[0]) - 1)
        for name, *shown in grid[1:]:
            for head, cell in zip(grid[0][1:], shown, strict=True):
                asked_for = f"{first}={name.partition(',')[0]}", f"perplexity_wiki, {last}={head.removeprefix('T = ')}"
                assert cell.partition(" (")[0] == said[asked_for], (run, name, head)


def test_the_table_of_speeds_is_what_its_records_say():
    said: dict[str, list[str]] = {}
    for line in report("speed", view="speed"):
        if line["measure"] == "speedup":
            said.setdefault(line["label"].removesuffix(" at 0.3"), []).append(re.sub(r"(\d)x", r"\1", line["shown"]))
    (table,) = (table for table in tables(text("docs/studies/speed.md")) if table[0][-1] == "widths divide by")
    shown = {method: [cell.partition(" / ")[0] for cell in cells[:4]] for method, *cells in table[1:]}
    assert shown == {name: cells for name, cells in said.items() if name != "dense"}


def test_what_is_said_of_speeds_beside_predictions_is_what_the_records_say():
    shares: dict[str, list[float]] = {}
    for record in run_folder.read_records(ROOT / "docs/results/speed").values():
        for point in record.measured.speed.points if record.cell.method != "dense" else ():
            share = 100 * (point.speedup - 1) / (point.speedup_by_macs - 1)
            shares.setdefault(f"{record.cell.label} {point.kind}", []).append(share)
    page = text("docs/studies/speed.md")
    flap, minitron = (shares[f"{method} prefill"][1] for method in ("flap", "minitron-width"))
    assert f"`flap` has {flap:.0f} % of its prediction and `minitron-width` {minitron:.0f} %." in page
    widths = shares["flap decode"] + shares["minitron-width decode"]
    assert f"gives {min(widths):.0f} to {max(widths):.0f} % of the predicted gain in decode" in page
    slicing = shares["slicegpt decode"]
    assert f"Slicing gives {min(slicing):.0f} to {max(slicing):.0f} % in decode" in page
    assert min(share for kind in ("prefill", "decode") for share in shares[f"drop:layers=10-20 {kind}"]) > 90


def test_the_sample_of_the_start_page_is_what_its_command_prints(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = text("docs/index.md")
    (command,) = re.findall(r"python -m bench (report .*)", page)
    (sample,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert main(command.split()) == 0
    assert capsys.readouterr().out.startswith(sample)
    assert len(sample.splitlines()) > 10


def test_generated_pages_name_every_command_and_every_part_of_a_record():
    made = pages()
    for command in ("run", "report", "gate", "list"):
        assert f"\n## {command}\n" in made["commands.md"]
    assert "| `--ratio LIST` | share of the parameters to remove" in made["commands.md"]
    for key in (
        "schema",
        "cell",
        "status",
        "error",
        "environment",
        "decisions",
        "measured",
        "prune_seconds",
        "speedup",
    ):
        assert f"`{key}" in made["record.md"], key
    assert not (DOCS / "methods").exists()


def test_the_page_of_quantities_is_made_of_their_table():
    """Made by docs/generate.py, a row for each quantity; what a record holds is said in the words of its schema."""
    page = (DOCS / "quantities.md").read_text(encoding="utf-8")
    assert page == generator().quantities_page()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len({row.split("|")[1] for row in rows}) == len(list_quantities())
    assert "| `kl` | KL | nats/token | divergence of the next token" in page
    assert "| `answer_bpb_NAME` | bpb NAME |  | bits per byte of the right answer" in page
    assert "| `answer_bpb` | bpb |  | bits per byte of the right answer" in page


def test_what_the_list_says_of_costs_is_what_the_records_hold(capsys):
    """Made by docs/generate.py; a method that was not measured has no figure."""
    from bench.cli.list import MEASURED
    from bench.cli.main import main

    assert MEASURED.read_text(encoding="utf-8") == generator().measured_costs()
    took = json.loads(generator().measured_costs())["methods"]
    assert took["flap"] == {"seconds": 102.2, "gib": 1.6}
    assert "drop-tail" not in took  # which takes no time
    assert main(["list", "methods"]) == 0
    out = capsys.readouterr().out
    assert out.count(" to prune the default model*\n") == len(took) < len(CARDS)
    assert "SmolLM2-135M in float32, 0.2 of the decoder, 64 x 256 tokens of calibration" in out
    assert "one core of two of an AMD EPYC, which other work shared" in out

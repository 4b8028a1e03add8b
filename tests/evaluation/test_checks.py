"""Checks: their figures by hand, generation against plain forwards, and what they say of the default model."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from byte_tokens import byte_tokenizer
from conftest import FAMILIES, VOCABULARY, tiny
from safetensors import safe_open

from bench.cli.main import main
from bench.evaluation import checks
from bench.evaluation.checks import DenseOutputs
from bench.records.measured import Checks
from methods.model.decoder import Decoder


def windows(count: int = 6, length: int = 40) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(3))


def without_layer(model, index: int = 2):
    del model.model.layers[index]
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers -= 1
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_what_follows_is_what_a_plain_forward_says(family):
    """Prompts of different lengths in one batch, one of them the end of a text's last token."""
    model = tiny(family)
    prompts = [[5, 6, 7], windows(1, 20)[0].tolist(), [9], [3, 4, 5, 6, 7, 8, 9, 10, 11]]
    new = checks.generate_greedily(model, prompts, steps=9)
    for prompt, got in zip(prompts, new.tolist(), strict=True):
        ids = list(prompt)
        for _ in range(9):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert got == ids[len(prompt) :]


def test_a_models_own_generation_settings_change_nothing_and_stay():
    model = tiny("llama")
    want = checks.generate_greedily(model, [[5, 6, 7]], 12)
    own = model.generation_config
    own.repetition_penalty, own.do_sample, own.eos_token_id = 9.0, True, int(want[0, 2])
    assert torch.equal(checks.generate_greedily(model, [[5, 6, 7]], 12), want)
    assert model.generation_config is own


@pytest.mark.parametrize("family", [*FAMILIES, "granite", "nemotron", "cohere2"])
def test_a_divergence_is_not_of_the_rounding_of_logits(family, monkeypatch):
    """In bfloat16 all that is behind the last layer is in float32, whatever the family has there, piece by piece."""
    monkeypatch.setattr(checks, "HEAD_ROWS", 50)
    model, ids = tiny(family).to(torch.bfloat16), windows(1, 20)
    decoder, last = Decoder(model), list[torch.Tensor]()
    exact = Decoder(copy.deepcopy(model).float())
    (found,) = checks.log_probabilities_of(model, ids)
    decoder.stack[-1].register_forward_hook(
        lambda _layer, _in, out: last.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        rounded = model(ids[:, :-1]).logits[0].float().log_softmax(-1)
        expected = exact.logits(last[0].float())[0].log_softmax(-1)
    assert torch.allclose(found, expected, atol=1e-5)
    assert (rounded - expected).abs().max() > 1e-3


def test_a_divergence_of_a_model_that_projects_between_its_final_norm_and_its_head():
    """Its head is as wide as what it embeds, and narrower than its norm."""
    model, ids = tiny("opt", word_embed_proj_dim=16).to(torch.bfloat16), windows(1, 20)
    seen = list[torch.Tensor]()
    handle = model.lm_head.register_forward_pre_hook(lambda _head, given: seen.append(given[0]))
    with torch.no_grad():
        model(ids[:, :-1])
    handle.remove()
    (found,) = checks.log_probabilities_of(model, ids)
    expected = (seen[0][0].float() @ model.lm_head.weight.float().T).log_softmax(-1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_shares_count_up_to_the_first_mistake():
    wanted = ["a", "b", "c", "d"]
    cases = {"a b c d e": 1.0, "a b x d": 0.5, "x b c d": 0.0, "": 0.0, "a b c": 0.75}
    for said, share in cases.items():
        assert checks.share_of_expected([wanted], [said.split()]) == share
    assert checks.share_of_expected([wanted] * 2, [wanted, []]) == 0.5


def test_diversity_by_hand():
    figures = checks.measure_diversity([[1, 2, 3, 4, 1, 2, 3, 4], [5, 6, 7, 8, 9, 1, 2, 3]])
    assert figures.repetition == pytest.approx((1 / 5 + 0) / 2)  # 1234 2341 3412 4123 1234
    assert figures.distinct_1 == pytest.approx(9 / 16)
    assert figures.distinct_2 == pytest.approx(9 / 14)  # 12 23 34 41, 56 67 78 89 91
    assert checks.measure_diversity([[7] * 8]).repetition == pytest.approx(4 / 5)


def test_divergence_is_the_definition(tmp_path):
    ids, dense, pruned = windows(), tiny("llama"), without_layer(tiny("llama"))
    reference = DenseOutputs(ids, tmp_path / "dense.safetensors", drawn=True)
    reference.remember(dense)
    figures = reference.divergence_of(pruned)
    with torch.no_grad():
        p, q = (model(ids[:, :-1]).logits.double().log_softmax(-1) for model in (dense, pruned))
    each = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)  # (M, W - 1)
    assert figures.kl == pytest.approx(float(each.mean()), rel=1e-5)
    assert figures.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    error = float(each.mean(1).std()) / 6**0.5
    assert figures.kl_high - figures.kl == pytest.approx(2.570582 * error, rel=1e-5)  # t of 5 at 0.975
    assert figures.kl - figures.kl_low == pytest.approx(min(figures.kl, 2.570582 * error), rel=1e-5)
    assert figures.kl > 0.01


def test_the_dense_model_does_not_diverge_from_itself(tmp_path):
    reference = DenseOutputs(windows(1), tmp_path / "dense.safetensors")
    reference.remember(tiny("qwen2"))
    assert reference.divergence_of(tiny("qwen2")) == Checks(kl=0.0, agreement=1.0)  # one window: no interval


def test_the_first_model_is_remembered_and_what_is_kept_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "STORED", 6 * 10 * VOCABULARY)
    reference = DenseOutputs(windows(), tmp_path / "dense.safetensors")
    reference.remember(tiny("llama"))
    reference.remember(tiny("llama", seed=1))
    assert reference.divergence_of(tiny("llama")).kl == 0.0
    with safe_open(tmp_path / "dense.safetensors", "pt") as stored:
        assert [stored.get_tensor(str(row)).shape for row in range(6)] == [(10, VOCABULARY)] * 6


@pytest.fixture
def run(model_folder, text_file, tmp_path):
    def arguments(*more: str) -> list[str]:
        return [
            *("run", "--model", str(model_folder), "--texts", str(text_file), "--calibration", str(text_file)),
            *("--tasks", "none", "--window", "32", "--windows", "4", "--calibration-sequences", "4"),
            *("--calibration-length", "24", "--profile", "smoke", "--device", "cpu", "--out", str(tmp_path / "run")),
            *("--methods", "drop-tail", "--speed-rounds", "0", *more),
        ]

    def checks_of(*more: str) -> dict[str, dict[str, float] | None]:
        assert main(arguments(*more)) == 0
        records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").glob("*.json")]
        return {f"{r['cell']['method']} {r['cell']['ratio']}": r["measured"].get("checks") for r in records}

    return checks_of


GENERATED = {"copying", "counting", "repetition", "distinct_1", "distinct_2"}
DIVERGENCE = {"kl", "kl_low", "kl_high", "agreement", "drawn"}


def test_a_run_measures_checks_and_leaves_no_file_behind(run, tmp_path, capsys):
    found = run("--ratio", "0.2")
    assert set(found["dense None"]) == GENERATED
    assert set(found["drop-tail 0.2"]) == GENERATED | DIVERGENCE
    assert found["drop-tail 0.2"]["kl"] > 0
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"cells", "samples", "report.md", "report.csv", ".lock"}


def test_a_run_that_goes_on_compares_with_the_same_dense_model(run, tmp_path, capsys):
    """The dense cell is skipped as finished; the divergence is the one that a fresh run finds."""
    first = run("--ratio", "0.2")["drop-tail 0.2"]
    for path in (tmp_path / "run" / "cells").glob("drop-tail*.json"):
        path.unlink()
    assert run("--ratio", "0.2")["drop-tail 0.2"] == first
    assert "[1/2] dense: has a record" in capsys.readouterr().err


def test_checks_can_be_switched_off_and_need_no_text(run, capsys):
    assert set(run("--ratio", "0.2", "--no-checks").values()) == {None}
    found = run("--ratio", "0.4", "--texts", "none")
    assert set(found["drop-tail 0.4"]) == {"copying", "counting"}


@pytest.mark.nightly
@pytest.mark.default_model
def test_the_default_model_passes_and_breaks_early():
    """Without one of thirty layers, which costs a few per cent of perplexity, it copies no list to its end."""
    from bench.data import pretrained

    model, tokenizer = pretrained.load("smollm2-135m", torch.device("cpu"), torch.float32)
    dense, _ = checks.measure_checks(model, tokenizer, None, None)
    assert dense == Checks(copying=1.0, counting=1.0)
    pruned, _ = checks.measure_checks(without_layer(model, 15), tokenizer, None, None)
    assert pruned.copying < 0.6
    assert pruned.counting == 1.0
    broken, _ = checks.measure_checks(without_layer(model, 18), tokenizer, None, None)
    assert broken.copying < 0.6


def test_continuations_are_what_the_values_are_of():
    model, tokenizer, ids = tiny("llama", vocab_size=300, max_position_embeddings=512), byte_tokenizer(), windows(3)
    values, written = checks.measure_checks(model, tokenizer, ids, None)
    assert [each.check for each in written] == ["copying"] * 6 + ["counting"] * 6 + ["repetition"] * 3
    assert written[6].prompt == "1, 2, 3, 4, 5,"
    assert [each.prompt for each in written[12:]] == tokenizer.batch_decode(ids[:, : checks.PROMPT])
    new = checks.generate_greedily(model, ids[:, : checks.PROMPT].tolist(), checks.STEPS)
    assert [each.written for each in written[12:]] == tokenizer.batch_decode(new, skip_special_tokens=True)
    expected = [words[1:] for words in checks.draw_word_lists()]
    assert values.copying == checks.share_of_expected(expected, [each.written.split() for each in written[:6]])

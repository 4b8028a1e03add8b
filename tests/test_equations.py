"""Equations of the methods' heads become TeX; the site's own test draws all of them."""

from __future__ import annotations

import re

import pytest
from pages import generator

equations = generator().method_pages.equations


@pytest.mark.parametrize(
    ("plain", "tex"),
    [
        ("theta*_l = theta_l + sum_{k=1..m} x_{l+k}", r"\theta ^{*}_{l} = \theta _{l} + \sum_{k=1}^{m} x_{l+k}"),
        ("||x_t|| / |W_ij|", r"\lVert x_{t}\rVert  / \lvert W_{ij}\rvert "),
        ("KL(p || q)", r"\operatorname{KL}(p \,\Vert\, q)"),
        ("log p(w_k | w_<k)", r"\log  p(w_{k} \mid  w_{<k})"),
        ("V   <- (H^-1)_:u L^-T", r"V \leftarrow  (H^{-1})_{:u} L^{-T}"),
        ("p^((M / A) / alpha)", r"p^{(M / A) / \alpha }"),
        ("s = mean over tokens of the layer's x", r"s = \text{ mean over tokens of the layer's } x"),
        ("j* = argmin over j of    c", r"j^{*} = \operatorname*{arg\,min} \text{ over } j \text{ of }\qquad c"),
    ],
)
def test_plain_text_becomes_tex(plain, tex):
    assert equations.to_tex([re.sub(" +<-", " <-", plain)]) == tex


def test_several_lines_are_rows_and_a_list_of_values_stays_as_it_is():
    block = "    ifv   v_j\n    wifn  |W_ij|"
    assert equations.is_equation(block)
    assert not equations.is_equation("    attn     attentions\n    mlp      MLPs")
    assert equations.to_tex(["ifv   v_j", "wifn  |W_ij|"]).startswith(r"\begin{array}{ll} \text{ifv } & v_{j} \\ ")
    page = equations.render_block(block)
    assert page.count("\n") == 1
    assert 'data-tex="\\begin{array}' in page
    assert "ifv   v_j\nwifn  |W_ij|</pre>" in page


def test_the_search_knows_both_spellings():
    spellings = generator().other_spellings
    assert spellings("Quantised models, a licence") == ["license", "quantized"]
    assert spellings("to quantize") == ["quantise"]
    assert spellings("quantise, quantize, prune") == []

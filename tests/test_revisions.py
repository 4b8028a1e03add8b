"""A method decides what tests/golden/decisions.json has for its revision, on tiny models.

After a change that alters a decision on purpose: raise `revision` of the method's class, or of its compensation's, and
write the file anew with PRUNEBENCH_UPDATE_GOLDEN=1 python -m pytest -n0 tests/test_revisions.py. Records of the earlier
revision are measured again then.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import snapshot
from tiny_methods import EXPERTS, SPECS

import methods

GOLDEN = Path(__file__).parent / "golden/decisions.json"
COMPENSATED = [
    f"{'flap' if card.name == 'refit' else 'shortgpt'}+{card.name}" for card in methods.cards_of_compensations()
]
DIGITS = 5


def families(name: str) -> list[str]:
    """The families whose models a method is held to."""
    return ["qwen3_moe"] if name in EXPERTS else ["llama", "gpt2"] if "+" not in name else ["llama"]


def decided(name: str) -> dict[str, object]:
    """What a method decides on each family, with logits of what is left; numbers with few digits."""
    parameters = (SPECS | EXPERTS)[name.partition("+")[0]]
    return {family: rounded(snapshot.prune_tiny(name, parameters, family)) for family in families(name)}


def rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items() if key not in ("trace", "generations")}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


@pytest.mark.parametrize("name", [*SPECS, *EXPERTS, *COMPENSATED])
def test_other_decisions_have_another_revision(name):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
    found = {"revision": methods.revision_of_method(name), "decided": decided(name)}
    if os.environ.get("PRUNEBENCH_UPDATE_GOLDEN") and golden.get(name, {}).get("revision") != found["revision"]:
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted((golden | {name: found}).items())]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return
    assert golden[name]["revision"] == found["revision"], f"write {GOLDEN.name} anew, as the head of this file says"
    assert snapshot.equal(golden[name]["decided"], found["decided"]), (
        f"raise `revision` of {name}: it decides otherwise"
    )


def test_every_method_and_compensation_is_held_to_its_revision():
    held = {name.partition("+")[0] for name in (*SPECS, *EXPERTS)} | {name.partition("+")[2] for name in COMPENSATED}
    names = {card.name for card in (*methods.cards_of_methods(), *methods.cards_of_compensations())} - {"dense", "none"}
    assert names - held == set()

"""What the suite prints and decides is what tests/golden/snapshot holds; see tests/snapshot.py."""

from __future__ import annotations

import pytest
import snapshot

QUICK = ("commands", "schemas", "laco-range")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly) for name in snapshot.parts_by_name()],
)
def test_a_part_of_the_snapshot_is_unchanged(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(snapshot.ROOT)
    assert snapshot.differences(name, snapshot.parts_by_name()[name]()) == []


def test_a_changed_byte_a_missing_entry_and_a_moved_logit_are_named(monkeypatch):
    golden = {"a.csv": "1,2\n", "gone.md": "x", "laco": {"logits": [[1.0, 2.0]]}}
    monkeypatch.setattr(snapshot, "read_golden", lambda name: golden)
    close = {"logits": [[1.0 + snapshot.TOLERANCE / 10, 2.0]]}
    assert snapshot.differences("run", golden | {"laco": close}) == []
    changed = snapshot.differences("run", {"a.csv": "1,3\n", "laco": {"logits": [[1.1, 2.0]]}})
    assert [line for line in changed if line.startswith("run: ")] == [
        "run: gone.md is missing",
        "run: a.csv differs",
        "run: laco differs",
    ]
    assert "-1,2" in changed
    assert "+1,3" in changed

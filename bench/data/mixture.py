"""Says which texts a calibration mixes, and which of its sequences are of which text.

    c4                          a text alone
    c4:0.5,wiki:0.3,code:0.2    a mixture: behind each text its share of the sequences, which sum to 1

A list of calibrations, as `--calibration` takes it, joins both with commas. An item without a share is a text of its
own, and items with shares are one mixture until their shares sum to 1: 'c4,c4:0.5,code:0.5' has two calibrations.

Sequences are dealt one by one, each to the text that lacks most of its share so far, the first of several that lack as
much. A mixture of more sequences so begins with that of fewer. Each text's sequences are its own draw with the seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from methods.errors import UserError

QUESTIONS = "task:"  # in front of a task whose questions are a text
OWN = "self"  # the text that the dense model writes itself, and with a colon that behind the questions of a task
FORM = "as in c4:0.5,wiki:0.3,code:0.2"
ITEM = re.compile(r"(?P<text>.+):(?P<share>[+-]?\d*\.?\d+)", re.DOTALL | re.ASCII)


class TextShare(NamedTuple):
    """Holds a text of a calibration, and its share of the sequences."""

    text: str
    share: Decimal = Decimal(1)

    def __str__(self) -> str:
        return f"{self.text}:{self.share.normalize():f}"


def split_calibrations(given: Any) -> tuple[str, ...]:
    """Return the calibrations of a list, each once, as records name them: a text, or a mixture without spaces.

    given  a text with commas, or a list of such. The name of a file may hold commas and colons

    Raises UserError for shares that are not in (0, 1) or do not sum to 1, and for a text that a mixture names twice.
    """
    calibrations, open_shares = list[str](), list[TextShare]()
    for item in _split_items(given):
        share = _parse_share(item)
        if share is not None:
            open_shares.append(share)
            if sum_of_shares(open_shares) < 1:
                continue
        if open_shares:
            calibrations.append(_to_name(open_shares))
            open_shares = []
        if share is None:
            calibrations.append(item)
    if open_shares:
        calibrations.append(_to_name(open_shares))
    return tuple(dict.fromkeys(calibrations))


def _split_items(given: Any) -> list[str]:
    """Return the items of a list of calibrations."""
    items = list[str]()
    for word in [given] if isinstance(given, str) or not isinstance(given, Iterable) else given:
        if isinstance(word, str) and not _is_file(word):
            items += filter(None, map(str.strip, word.split(",")))
        else:
            items.append(word)
    return items


def _is_file(name: str) -> bool:
    """Say whether a name is that of a file; it may be one that no file can have."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def _parse_share(item: Any) -> TextShare | None:
    """Return the text and the share of an item; None for a text without a share, also where that is no text.

    Of a data set of the hub a number that is no share may be the name of a config.
    """
    match = ITEM.fullmatch(item) if isinstance(item, str) and not _is_file(item) else None
    if match is None:
        return None
    share = Decimal(match["share"])
    if 0 < share < 1:
        return TextShare(match["text"], share)
    if match["text"].startswith("hub:"):
        return None
    raise UserError(f"--calibration: a share lies between 0 and 1, {FORM}; got {item}")


def sum_of_shares(shares: Iterable[TextShare]) -> Decimal:
    """Return the sum of shares, exactly."""
    return sum((each.share for each in shares), Decimal(0))


def _to_name(shares: Sequence[TextShare]) -> str:
    """Return the name of a mixture. Raises UserError for shares that do not sum to 1, and for a text named twice."""
    name, total = ",".join(map(str, shares)), sum_of_shares(shares)
    if total != 1:
        raise UserError(f"--calibration: the shares of a mixture sum to 1, {FORM}; those of {name} sum to {total}")
    texts = [each.text for each in shares]
    if doubled := [text for text in texts if texts.count(text) > 1]:
        raise UserError(f"--calibration: a mixture names {doubled[0]} twice; give it one share")
    return name


def shares_of_calibration(calibration: str) -> tuple[TextShare, ...]:
    """Return the texts of a calibration with their shares; the one text itself where that is no mixture."""
    items = [ITEM.fullmatch(item) for item in calibration.split(",")]
    shares = [TextShare(item["text"], Decimal(item["share"])) for item in items if item is not None]
    is_mixture = len(shares) == len(items) > 1 and sum_of_shares(shares) == 1
    return tuple(shares) if is_mixture else (TextShare(calibration),)


def texts_of_calibration(calibration: str) -> tuple[str, ...]:
    """Return the texts that a calibration reads."""
    return tuple(each.text for each in shares_of_calibration(calibration))


def rows_of_texts(calibration: str, sequences: int) -> dict[str, list[int]]:
    """Return {text: the numbers of its sequences}. Raises UserError where a text of a mixture would have none."""
    shares = shares_of_calibration(calibration)
    if len(shares) == 1:
        return {calibration: list(range(sequences))}
    rows: dict[str, list[int]] = {each.text: [] for each in shares}
    for number in range(sequences):
        lacking = max(shares, key=lambda each: each.share * (number + 1) - len(rows[each.text]))
        rows[lacking.text].append(number)
    if empty := [text for text in rows if not rows[text]]:
        raise UserError(
            f"--calibration {calibration} has no sequence of {empty[0]} among {sequences}; give more "
            "--calibration-sequences, or a larger share"
        )
    return rows


def task_of_text(text: str) -> str | None:
    """Return the task whose questions a text has: 'piqa' of task:piqa and self:piqa; None for any other text."""
    start = next((start for start in (QUESTIONS, f"{OWN}:") if text.startswith(start)), None)
    return text.removeprefix(start) or None if start else None


def is_own_text(text: str) -> bool:
    """Say whether the dense model writes a text itself."""
    return text == OWN or text.startswith(f"{OWN}:")

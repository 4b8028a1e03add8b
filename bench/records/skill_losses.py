"""Computes what pruning loses of each skill, from the samples of a cell and of its dense cell.

    loss    the accuracy that is lost, as a share of what the dense model has above guesses
    text    the same over the texts of choices (the form rc), of tasks whose letters were scored too
    letter  the same over their letters (the form mc), on the same documents
    bits    bits per byte of right answers that are added, as a share of the dense model's
    above   the accuracy of the dense model above guesses, for each of the first three

bench.stats.losses has the formulas, and bench.data.skills has the skills. Every task of a skill weighs alike; its two
forms are one task of the loss, since their documents are the same. Bits are those of texts (rc and bpb): a letter's
say how sure a model is of a choice, which its accuracy says too. Answers that are written (gen) are in none.

No record holds them. A row of the frame has them wherever there are samples of both cells, as it has flips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from bench.data.skills import FORMS, NAMES_BY_GROUP
from bench.records.measured import ANSWER_BPB
from bench.records.record import Record
from bench.records.samples import Samples, pair_whole
from bench.stats.intervals import Contrast, Floats
from bench.stats.losses import FormAnswers, estimate_added, estimate_share

TEXT, LETTER, WRITTEN = "_rc", "_mc", "_gen"  # the ends of names of forms
SKILLS = tuple(group.removeprefix("skill-") for group in NAMES_BY_GROUP)
Tasks = list[tuple[str, ...]]  # of each task the names of its forms


@dataclass(frozen=True)
class SkillColumn:
    """Names the columns of the frame for a kind of loss of a skill.

    kind  "loss", "text", "letter" or "bits"
    """

    kind: str
    skill: str

    @property
    def name(self) -> str:
        """Return the column of the loss."""
        return f"skill_{self.kind}_{self.skill}"

    @property
    def above(self) -> str:
        """Return the column of the dense model's accuracy above guesses, which the loss is a share of."""
        return f"skill_above_{self.skill}" if self.kind == "loss" else f"skill_above_{self.kind}_{self.skill}"


def tasks_by_skill(records: Sequence[Record]) -> dict[str, Tasks]:
    """Return the tasks of each skill that any of the records measured, each by the names of its forms."""
    measured = set(chain.from_iterable(record.measured.task_scores for record in records))
    scored = {form for form in measured if not form.endswith(WRITTEN)}
    tasks: dict[str, Tasks] = {}
    for group, names in NAMES_BY_GROUP.items():
        forms = [tuple(filter(scored.__contains__, FORMS[name])) for name in names]
        tasks[group.removeprefix("skill-")] = [form for form in forms if form]
    return {skill: forms for skill, forms in tasks.items() if forms}


class LossFinder:
    """Finds what is lost between two cells of one setup, with the samples of all of them.

    records  of one setup or several
    samples  of the records, in their order
    """

    def __init__(self, records: Sequence[Record], samples: Samples) -> None:
        self._records, self._samples = records, samples

    def find(self, tasks: dict[str, Tasks], dense: int, first: int, second: int) -> dict[str, Contrast]:
        """Return {column: contrast} from the first to the second cell, of each skill that both answered whole.

        A loss of accuracy is missing where the dense model is not shown to be above guesses. The columns of "above"
        say how far it is. Cells are named by their places among the records.
        """
        contrasts: dict[str, Contrast | None] = {}
        places = (dense, first, second)
        for skill, forms in tasks.items():
            for kind, chosen in _choices(forms):
                column, (share, above) = SkillColumn(kind, skill), self._share(chosen, places)
                contrasts |= {column.name: share, column.above: above}
            texts = [form for form in chain(*forms) if not form.endswith(LETTER)]
            contrasts[SkillColumn("bits", skill).name] = self._added(texts, places[1:])
        return {column: contrast for column, contrast in contrasts.items() if contrast is not None}

    def _share(self, tasks: Tasks, places: tuple[int, int, int]) -> tuple[Contrast | None, Contrast | None]:
        """Return what `estimate_share` does; None for both without the answers to every task."""
        answers = []
        for forms in tasks:
            of_forms = [self._answers(form, places) for form in forms]
            answers.append([form for form in of_forms if form is not None])
        return estimate_share(answers) if list(map(len, answers)) == list(map(len, tasks)) else (None, None)

    def _answers(self, task: str, places: tuple[int, int, int]) -> FormAnswers | None:
        """Return the answers of three cells to a task; None unless all answered the same documents alike."""
        scores = [self._records[place].measured.task_scores.get(task) for place in places]
        dense = scores[0]
        if dense is None or dense.chance is None or not all(dense.is_answered_like(score) for score in scores):
            return None
        values = self._values(task, dense.main, places)
        return FormAnswers(values[0], values[1], values[2], dense.chance) if values else None

    def _added(self, tasks: Sequence[str], places: tuple[int, ...]) -> Contrast | None:
        """Return what `estimate_added` does; None without the bits of every task."""
        bits = [self._values(task, ANSWER_BPB, places) for task in tasks]
        whole = [(both[0], both[1]) for both in bits if both]
        return estimate_added(whole) if tasks and len(whole) == len(tasks) else None

    def _values(self, task: str, metric: str, places: Sequence[int]) -> list[Floats]:
        """Return the values of several cells in the order of the first; empty unless they are of the same documents."""
        samples = [self._samples.of(place, task, metric) for place in places]
        pairs = [pair_whole(samples[0], sample) for sample in samples]
        values = [both.second.values for both in pairs if both is not None]
        return values if len(values) == len(places) else []


def _choices(forms: Tasks) -> Iterator[tuple[str, Tasks]]:
    """Yield each kind of loss of an accuracy with the forms that it is over, of each task."""
    choices = [task for task in forms if task[0].endswith((TEXT, LETTER))]
    both = [task for task in choices if len(task) > 1]
    if choices:
        yield "loss", choices
    if both:
        yield "text", [task[:1] for task in both]
        yield "letter", [task[1:] for task in both]

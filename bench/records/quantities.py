"""Says how each column of the frame is named, written and judged, in one table for every renderer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

MISSING = "-"


@dataclass(frozen=True)
class Metric:
    """Says how one column is shown.

    label         the heading; `{}` takes the name of the text or task
    unit          of the figure as it is written; empty where the figure has none or its format picks one by size
    format        (figure, figure beside it) -> text; the second sets the decimals, so that 20.8 gets +- 0.9
    better        which way is better, None where neither is
    spread        what ± takes from the frame: the 95 % interval (_low, _high) or the standard error (_stderr)
    unit_in_cell  whether the unit stands behind each figure or once in the heading or a note
    """

    label: str
    unit: str
    format: Callable[[float, float], str]
    better: Literal["higher", "lower"] | None = None
    spread: Literal["interval", "stderr"] | None = None
    unit_in_cell: bool = True

    def show(self, figure: float) -> str:
        """Write the figure with its unit."""
        space = "" if self.unit == "x" else " "
        text = self.format(figure, figure)
        return f"{text}{space}{self.unit}" if self.unit and self.unit_in_cell else text

    def show_interval(self, figure: float, low: float, high: float) -> str:
        """Write '20.8 ± 0.9', or '20.8 [18.1, 26.0]' where one side is more than half as long again as the other."""
        below, above = figure - low, high - figure
        if below == above == 0:
            return self.show(figure)
        if max(below, above) > 1.5 * min(below, above):
            return f"{self.show(figure)} [{self.format(low, figure)}, {self.format(high, figure)}]"
        return f"{self.show(figure)} ± {self.format((high - low) / 2, figure)}"


def is_finite(value: Any) -> bool:
    """Return whether a value of a row is there and is a finite number."""
    return value is not None and math.isfinite(value)


def format_value(row: Mapping[str, Any], column: str, *, spread: bool = True) -> str:
    """Return the value of a row of the frame as a table writes it, with its spread where there is one."""
    metric = metric_of(column)
    figure, low, high, stderr = (row.get(f"{column}{end}") for end in ("", "_low", "_high", "_stderr"))
    if figure is None:
        return MISSING
    if spread and metric.spread == "interval" and low is not None and high is not None:
        return metric.show_interval(figure, low, high)
    if spread and metric.spread == "stderr" and stderr is not None:
        return f"{metric.show(figure)} ± {metric.format(stderr, figure)}"
    return metric.show(figure)


def metric_of(column: str) -> Metric:
    """Return the metric of a column of the frame: 'average', 'perplexity_wiki', 'answer_bpb_piqa'.

    A column that no table shows, such as 'bits_per_byte_wiki', is named by its own words.
    """
    if column in METRICS:
        return METRICS[column]
    family = next((name for name in METRICS if name.endswith("_") and column.startswith(name)), None)
    if family is None:
        return Metric(shorten_name(column).replace("_", " "), "", format_significant)
    metric = METRICS[family]
    return replace(metric, label=metric.label.format(shorten_name(column.removeprefix(family))))


def shorten_name(name: str) -> str:
    """Shorten a text's or task's name for a heading: to the end of a path, to both ends of a long one."""
    name = name.rsplit("/", 1)[-1]
    return name if len(name) <= 40 else f"{name[:19]}…{name[-20:]}"


def format_count(figure: float, _beside: float = 0) -> str:
    """Write 134515008 as '134.5 M'; k, M and B are thousands, millions and billions."""
    for size, letter, decimals in ((1e9, "B", 2), (1e6, "M", 1), (1e3, "k", 1)):
        if abs(figure) >= size:
            return f"{figure / size:.{decimals}f} {letter}"
    return f"{figure:,.0f}"


def format_bytes(figure: float, _beside: float = 0) -> str:
    """Write 268435456 bytes as '256 MiB'."""
    for exponent, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if figure >= 2**exponent:
            return f"{format_significant(figure / 2**exponent)} {unit}"
    return f"{figure:,.0f} B"


def format_significant(figure: float, _beside: float = 0) -> str:
    """Write three significant digits: 0.00123, 1.23, 12.3, 1,234."""
    if figure == 0 or not math.isfinite(figure):
        return f"{figure:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(figure))))
    return f"{figure:,.{min(decimals, 6)}f}"


def format_perplexity(figure: float, beside: float) -> str:
    """Write 5.47, 20.8, 343, 12,345, 3.4e8: with the decimals that suit `beside`; never 0.0 for what is not zero."""
    if not math.isfinite(figure):
        return f"{figure:g}"
    if beside >= 1e6:
        mantissa, exponent = f"{figure:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    decimals = 2 if beside < 10 else 1 if beside < 100 else 0
    text = f"{figure:,.{decimals}f}"
    return text if float(text.replace(",", "")) or not figure else f"{figure:.1g}"


def format_percent(figure: float, _beside: float = 0) -> str:
    """Write 0.289 as '28.9'."""
    return f"{100 * figure:z.1f}"


def format_whole_percent(figure: float, _beside: float = 0) -> str:
    """Write 0.837 as '84'."""
    return f"{100 * figure:z.0f}"


def format_speed(figure: float, beside: float) -> str:
    """Write 1.3456 as '1.35'; beside figures below a tenth two significant digits, from a hundred on no decimals."""
    text = f"{figure:.2g}" if beside < 0.1 else f"{figure:.2f}" if beside < 100 else f"{figure:,.0f}"
    return text if float(text.replace(",", "")) or not figure else f"{figure:.1g}"


def format_bits(figure: float, _beside: float = 0) -> str:
    """Write 1.4321 bits per byte as '1.432'."""
    return f"{figure:,.3f}"


def format_seconds(figure: float, _beside: float = 0) -> str:
    """Write 26.31 as '26.3'; '<0.1' below, no decimals from a hundred on."""
    return "<0.1" if figure < 0.1 else f"{figure:.1f}" if figure < 100 else f"{figure:,.0f}"


METRICS = {
    "ratio": Metric("removed", "%", format_percent),
    "ratio_without_embeddings": Metric("of decoder", "%", format_percent),
    "bytes_stays": Metric("bytes", "%", format_percent),
    "kv_stays": Metric("KV cache", "%", format_percent),
    "macs_stays": Metric("MACs", "%", format_percent),
    "latency_stays": Metric("latency", "%", format_percent),
    "parameters": Metric("params", "", format_count),
    "active_parameters": Metric("active", "", format_count),
    "layers": Metric("layers", "", format_count),
    "perplexity_": Metric("ppl {}", "", format_perplexity, "lower", "interval"),
    "kl": Metric("KL", "nats/token", format_perplexity, "lower", "interval", unit_in_cell=False),
    "agreement": Metric("agreement", "%", format_percent, "higher", unit_in_cell=False),
    "copying": Metric("copying", "%", format_percent, "higher", unit_in_cell=False),
    "counting": Metric("counting", "%", format_percent, "higher", unit_in_cell=False),
    "repetition": Metric("repetition", "%", format_percent, unit_in_cell=False),
    "distinct_2": Metric("distinct 2-grams", "%", format_percent, unit_in_cell=False),
    "task_": Metric("{}", "%", format_percent, "higher", "stderr", unit_in_cell=False),
    "score_": Metric("{}", "", format_significant, spread="stderr"),
    "average": Metric("average", "%", format_percent, "higher", "stderr", unit_in_cell=False),
    "answer_bpb": Metric("bpb", "", format_bits, "lower", "stderr"),
    "answer_bpb_": Metric("bpb {}", "", format_bits, "lower", "stderr"),
    "kept": Metric("kept", "%", format_whole_percent, "higher"),
    "prefill_speed": Metric("prefill", "x", format_speed, "higher", "interval"),
    "decode_speed": Metric("decode", "x", format_speed, "higher", "interval"),
    "prune_seconds": Metric("pruned in", "s", format_seconds, "lower"),
    "heal_seconds": Metric("healed in", "s", format_seconds, "lower"),
    "heal_tokens": Metric("healed on", "tokens", format_count, unit_in_cell=False),
    "prefill_tokens_per_second": Metric("prefill", "tokens/s", format_significant, "higher", unit_in_cell=False),
    "decode_ms_per_token": Metric("decode", "ms/token", format_significant, "lower", unit_in_cell=False),
    "weight_bytes": Metric("weights", "", format_bytes, "lower"),
    "kv_bytes_per_token": Metric("KV cache per token", "", format_bytes, "lower"),
    "prune_memory_bytes": Metric("memory to prune", "", format_bytes, "lower"),
    "peak_memory_bytes": Metric("peak memory", "", format_bytes, "lower"),
}

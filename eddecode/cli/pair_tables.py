"""The output of `eddecode pair`: the description of a pair (`ModelPair.describe(tensors=True)`) as tables.

It answers the questions before an audit: are these the right two models, what do they share, is there a problem, and
how much memory do they take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eddecode.cli.table_style import make_table
from eddecode.models.sizes import format_bytes
from eddecode.scoring.disagreement import LARGEST, TokenDifferences
from eddecode.utils.terminal import escape_control_chars

_MAX_LAYERS = 12  # more than that: the middle ones are left out of the table; --json has them all


def print_pair(console: Console, description: Mapping[str, Any]) -> None:
    """Print both models, their vocabulary, notes, and how far their weights differ."""
    console.print(_sides(description))
    vocabulary = description["vocabulary"]
    console.print(
        Text(
            f"Vocabulary: {vocabulary['sampleable']:,} of {vocabulary['width']:,} ids can be sampled"
            + (f"; {vocabulary['masked']:,} are masked." if vocabulary["masked"] else ".")
        )
    )
    console.print(Text(_memory(description)))
    for side in ("base", "aligned"):
        if description[side].get("files"):
            console.print(Text(_files(side, description[side]["files"])))
    _print_config_difference(console, description.get("config_difference") or {})
    _print_notes(console, description["notes"])
    if "tensors" in description:
        _print_tensors(console, description["tensors"])


def print_tokens(console: Console, found: TokenDifferences) -> None:
    """Print the tokens on which the two models disagree most: two tables."""
    for title, tokens, divergence, total in (
        ("Tokens that the aligned model raises", found.raised, "aligned ‖ base", found.kl_aligned_base),
        ("Tokens that the aligned model lowers", found.lowered, "base ‖ aligned", found.kl_base_aligned),
    ):
        heads = ("base, %", "aligned, %", f"part of KL({divergence}), %", f"among the largest {LARGEST}, %")
        table = make_table("token", *heads, title=title)
        for each in tokens:
            shares = (each.base, each.aligned, each.divergence / total, each.largest)
            table.add_row(
                Text(escape_control_chars(repr(each.token))), *(f"{100 * share:.3g}" for share in shares)
            )
        console.print()
        console.print(table)
    console.print(
        Text(
            f"{found.positions:,} positions of {found.texts:,} texts; per position, KL(aligned ‖ base) is "
            f"{found.kl_aligned_base:.3g} nats and KL(base ‖ aligned) {found.kl_base_aligned:.3g}."
        )
    )


def _sides(description: Mapping[str, Any]) -> Table:
    """One column per model, one row per fact."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("", "base", "aligned"):
        table.add_column(column, overflow="fold")  # a path has no spaces to wrap at
    rows: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("checkpoint", lambda side: side["source"] + (" (adapter)" if side["adapter"] else "")),
        ("architecture", lambda side: side["architecture"]),
        ("parameters", lambda side: f"{side['parameters']:,}"),
        ("weights", lambda side: f"{format_bytes(side['weights_bytes'])}, {', '.join(side['dtypes'])}"),
        ("device", lambda side: ", ".join(side["devices"])),
        ("tokenizer", _tokenizer),
        ("chat template", lambda side: _yes(side["tokenizer"] and side["tokenizer"]["chat_template"])),
        ("logit width", lambda side: f"{side['logit_width']:,}"),
        ("EOS ids", lambda side: ", ".join(map(str, side["eos_ids"])) or "none"),
        (
            "context",
            lambda side: f"{side['context_window']:,} tokens" if side["context_window"] else "no limit known",
        ),
    ]
    for name, fact in rows:
        table.add_row(
            name, *(Text(escape_control_chars(fact(description[side]))) for side in ("base", "aligned"))
        )
    return table


def _memory(description: Mapping[str, Any]) -> str:
    """Bytes of both models in memory; a tensor that they share counts once."""
    weights = format_bytes(description["memory"]["weights_bytes"])
    per_token = [description[side]["kv_bytes_per_token"] for side in ("base", "aligned")]
    if None in per_token:
        return f"Memory: {weights} of weights; the cache's size per token is not known."
    return f"Memory: {weights} of weights, and {format_bytes(sum(per_token))} of cache per token of a completion."


def _files(side: str, files: Mapping[str, Any]) -> str:
    """One sentence on how the model in memory compares with its files."""
    counts = [
        (files["complete"], "compared in full"),
        (files["sampled"], "at a sample of their elements"),
        (files["widened"], "float8 widened, compared through their scales"),
        (files["by_shape"], "by name only"),
        (files["unused"], "not part of the language model"),
    ]
    told = ", ".join(f"{count} {how}" for count, how in counts if count)
    rounded = "; ".join(f"{count} rounded {kinds}" for kinds, count in files["rounded"].items())
    return f"Files of {side}: {files['tensors']} tensors, {told}{f'; {rounded}' if rounded else ''}: memory agrees."


def _print_config_difference(console: Console, difference: Mapping[str, Any]) -> None:
    """The fields in which the two configurations differ."""
    if not difference:
        return
    table = make_table("config.json", "base", "aligned", title="Difference of the configurations")
    for field, values in difference.items():
        table.add_row(*(Text(escape_control_chars(str(cell))) for cell in (field, *values)))
    console.print()
    console.print(table)


def _print_notes(console: Console, notes: list[Mapping[str, Any]]) -> None:
    if not notes:
        console.print(Text("No problem was found: these two models can be contrasted."))
    for note in notes:
        console.print(
            Text(f"\n{note['level']} ({note['where']}): ", style="bold")
            + Text(escape_control_chars(str(note["what"])))
        )
        if note["action"]:
            console.print(Text(f"  {escape_control_chars(str(note['action']))}"))


def _print_tensors(console: Console, tensors: Mapping[str, Any]) -> None:
    """The relative difference of each layer, and the tensors that cannot be compared."""
    table = make_table("layer", "parameters", "‖aligned − base‖ / ‖base‖", title="Difference of the weights")
    layers = tensors["layers"]
    half = _MAX_LAYERS // 2
    for i, layer in enumerate(layers):
        if len(layers) > _MAX_LAYERS + 1 and half <= i < len(layers) - half:
            if i == half:
                table.add_row(f"… {len(layers) - 2 * half} more (--json)", "", "")
            continue
        table.add_row(Text(escape_control_chars(layer["layer"])), f"{layer['parameters']:,}", _change(layer))
    console.print()
    console.print(table)
    change = tensors["relative_change"]
    console.print(
        Text(
            f"All weights: {_percent(change)}; {len(tensors['identical'])} tensors are identical "
            f"({format_bytes(tensors['identical_bytes'])}), {len(tensors['moved'])} differ."
        )
    )
    if tensors["trunk"] is not None:
        console.print(Text(_common_layers(tensors["trunk"])))
    for name, meaning in (
        ("only_base", "only the base has"),
        ("only_aligned", "only the aligned model has"),
        ("different_shape", "different shapes"),
        ("not_in_memory", "not compared: not in memory"),
    ):
        if tensors[name]:
            shown = ", ".join(tensors[name][:4]) + (" …" if len(tensors[name]) > 4 else "")
            console.print(Text(f"{len(tensors[name])} tensors: {meaning}: {escape_control_chars(shown)}"))


def _common_layers(common: Mapping[str, Any]) -> str:
    """How many leading layers the two models have in common."""
    return (
        f"Leading layers in common: the first {common['layers']} of {common['of']} layers and the embedding are "
        f"identical to the bit ({common['parameters']:,} parameters, {100 * common['share']:.3g}% of a model)."
    )


def _change(layer: Mapping[str, Any]) -> str:
    return "identical" if layer["identical"] else _percent(layer["relative_change"])


def _percent(change: float | None) -> str:
    return "–" if change is None else f"{100 * change:.3g}%"


def _tokenizer(side: Mapping[str, Any]) -> str:
    tokenizer = side["tokenizer"]
    return "none" if tokenizer is None else f"{tokenizer['class']}, {tokenizer['size']:,} tokens"


def _yes(value: Any) -> str:
    return "yes" if value else "no"

"""Which ids may be sampled: those with a logit in every model that has a weight, and the same token in its tokenizers.

The contrast multiplies the aligned model's logit by −α. An id that only one model was trained with (a padded row of the
embedding, or a token that the aligned model was trained never to generate) would be boosted without bound. Such ids are
masked, and the mask is reported. Where one model alone has a weight, as the aligned one at α = −1, what it alone knows
may be sampled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch

from eddecode.errors import PairError
from eddecode.models.diagnostics import Diagnostic

_MAX_EXAMPLES = 5
# Names of reserved tokens. An aligned release may rename one of its base's; for any other id two names are an error.
_PLACEHOLDER = re.compile(
    r"reserved|unused|placeholder|extra_id|control_\d|dummy|^\[?<?\|?pad\d*\|?>?\]?$", re.I
)

Names = tuple[str, str]  # what notes and errors call the base and the aligned model


def tokens_by_id(tokenizer: Any) -> dict[int, str]:
    """Every id of the tokenizer with its token; ids without a token are absent."""
    return {int(i): token for token, i in tokenizer.get_vocab().items()}


def sampleable_ids(widths: Sequence[int], tokenizers: Sequence[Any]) -> torch.Tensor:
    """The ids that every one of these models knows, under one name: bool (min width,).

    widths: numbers of logits. A tokenizer may be None; without any, every id is taken to be a token.
    """
    width = min(widths)
    tables = [tokens_by_id(tokenizer) for tokenizer in tokenizers if tokenizer is not None]
    if not tables:
        return torch.ones(width, dtype=torch.bool)
    first, *others = tables
    known = [i for i, token in first.items() if i < width and all(table.get(i) == token for table in others)]
    vocabulary = torch.zeros(width, dtype=torch.bool)
    vocabulary[torch.tensor(sorted(known), dtype=torch.long)] = True
    return vocabulary


def check_vocabularies(
    widths: tuple[int, int],
    tokenizers: tuple[Any, Any],
    names: Names,
    *,
    shared_ends: AbstractSet[int] = frozenset(),
    mask_differing: bool = False,
) -> tuple[torch.Tensor, list[Diagnostic]]:
    """(sampleable ids as a bool tensor of shape (min width,), notes).

    Args:
        widths: the numbers of logits of the two models.
        tokenizers: one may be None.
        names: of the models.
        shared_ends: ids that end a text of both models: under two names, too, they mean the same.
        mask_differing: mask ids that have two names, where the pair would else be refused.

    Raises:
        PairError: an id stands for different tokens in the two tokenizers, or no id is known to both.
    """
    tables = [tokens_by_id(tokenizer) for tokenizer in tokenizers if tokenizer is not None]
    notes = _width_notes(widths, tables, names)
    vocabulary = sampleable_ids(widths, tokenizers)
    if len(tables) == 2 and tokenizers[0] is not tokenizers[1]:
        added = set(_added_ids(tokenizers[0])) & set(_added_ids(tokenizers[1]))
        notes += _compare(tables[0], tables[1], names, added, mask_differing)
        ends = sorted(
            i
            for i in shared_ends & tables[0].keys() & tables[1].keys()
            if i < len(vocabulary) and not vocabulary[i]
        )
        vocabulary[torch.tensor(ends, dtype=torch.long)] = True
        if ends:
            shown = _examples(ends, tables[0], tables[1], names)
            note = f"ids that end a text of both models have two names: {shown}"
            notes.append(
                Diagnostic("info", "vocabulary", note, "They may be sampled, since they mean the same")
            )
    if not vocabulary.any():
        raise PairError(
            f"no id is known to both models and their tokenizers (logit widths {widths[0]} and {widths[1]}); are "
            "these tokenizer files of these checkpoints?"
        )
    return vocabulary, notes


def partial_vocabularies(
    widths: Sequence[int], tokenizers: Sequence[Any], vocabulary: torch.Tensor
) -> dict[tuple[bool, ...], torch.Tensor]:
    """The vocabularies of the first model alone, and of the others without it, where they are not `vocabulary`."""
    first = tuple(i == 0 for i in range(len(widths)))
    found = {}
    for active in (first, tuple(not is_active for is_active in first)):
        chosen = [i for i, is_active in enumerate(active) if is_active]
        own = sampleable_ids([widths[i] for i in chosen], [tokenizers[i] for i in chosen])
        if own.nonzero().tolist() != vocabulary.nonzero().tolist():
            found[active] = own
    return found


def _added_ids(tokenizer: Any) -> list[int]:
    """The ids that a tokenizer does not build from text: control tokens."""
    return [int(i) for i in getattr(tokenizer, "added_tokens_decoder", {})]


def _compare(
    base: dict[int, str], aligned: dict[int, str], names: Names, added: AbstractSet[int], mask_differing: bool
) -> list[Diagnostic]:
    """Notes on ids that have two names and are masked; PairError if the tokenizers disagree on ordinary ids.

    added: control tokens of both; a release may rename those of its base, which has not learned to use them.
    """
    shared = base.keys() & aligned.keys()
    differing = sorted(i for i in shared if base[i] != aligned[i])
    reserved = {i for i in differing if any(_PLACEHOLDER.search(table[i]) for table in (base, aligned))}
    conflicts = [i for i in differing if i not in reserved and i not in added]
    if conflicts and (not mask_differing or 2 * len(conflicts) > len(shared)):
        raise PairError(
            _conflict_message(len(conflicts), len(shared), _examples(conflicts, base, aligned, names))
        )
    notes = []
    for what, ids in (
        ("reserved", [i for i in differing if i in reserved]),
        ("control", [i for i in differing if i in added and i not in reserved]),
        ("ordinary", conflicts),
    ):
        if ids:
            note = f"{len(ids)} {what} ids have two names: {_examples(ids, base, aligned, names)}"
            way_out = "They are never sampled where both models have a weight; if one of them ends a turn, completions "
            notes.append(Diagnostic("warning", "vocabulary", note, way_out + "need a stop string instead"))
    for name, own, other in ((names[0], base, aligned), (names[1], aligned, base)):
        alone = sorted(own.keys() - other.keys())
        if alone:
            shown = ", ".join(f"{i} ({own[i]!r})" for i in alone[:_MAX_EXAMPLES])
            more = ", …" if len(alone) > _MAX_EXAMPLES else ""
            note = f"{len(alone)} tokens are known to the {name} tokenizer alone: {shown}{more}"
            way_out = (
                "They may occur in its prompt, and are sampled only where it is the only model with a weight"
            )
            notes.append(Diagnostic("info", "vocabulary", note, way_out))
    return notes


def _conflict_message(conflicts: int, shared: int, examples: str) -> str:
    if 2 * conflicts > shared:
        return (
            f"the two tokenizers have different vocabularies: {conflicts} of {shared} common ids disagree "
            f"({examples}). Emulated disalignment combines the logits of equal ids, so both models must share one "
            "tokenizer; choose the base that the aligned model was trained from"
        )
    return (
        f"the tokenizers disagree on {conflicts} of {shared} common ids: {examples}. The same id must mean the "
        "same token in both models; check that both checkpoints contain the tokenizer that they were trained with. If "
        "they differ in these names alone, mask them: mask_ids='differing', --mask-ids differing"
    )


def _examples(ids: Sequence[int], base: dict[int, str], aligned: dict[int, str], names: Names) -> str:
    shown = ", ".join(
        f"id {i} is {base[i]!r} in {names[0]} and {aligned[i]!r} in {names[1]}" for i in ids[:_MAX_EXAMPLES]
    )
    return shown + (", …" if len(ids) > _MAX_EXAMPLES else "")


def _width_notes(widths: tuple[int, int], tables: Sequence[dict[int, str]], names: Names) -> list[Diagnostic]:
    notes = []
    if widths[0] != widths[1]:
        notes.append(
            Diagnostic(
                "info",
                "vocabulary",
                f"{names[0]} has {widths[0]} logits and {names[1]} {widths[1]}",
                f"Ids from {min(widths)} on are never sampled",
            )
        )
    for name, width, table in zip(names, widths, (tables[0], tables[-1]) if tables else (), strict=False):
        rows = sum(i < width for i in table)
        if rows < width:
            notes.append(
                Diagnostic(
                    "info",
                    name,
                    f"{width - rows} of {width} logits belong to no token (padding, or gaps in the vocabulary)",
                    "They are never sampled",
                )
            )
        beyond = sorted(i for i in table if i >= width)
        if beyond:
            notes.append(
                Diagnostic(
                    "warning",
                    name,
                    f"the tokenizer has {len(beyond)} ids beyond the model's {width} logits, such as "
                    f"{beyond[0]} ({table[beyond[0]]!r})",
                    "A prompt with such a token cannot be decoded; use the tokenizer of this checkpoint",
                )
            )
    return notes


def eos_notes(
    eos_ids: tuple[frozenset[int], ...],
    vocabulary: torch.Tensor,
    table: dict[int, str] | None,
    names: Names,
) -> list[Diagnostic]:
    """Notes on end-of-sequence ids: none at all, two different sets, or one that cannot be sampled."""
    notes = []
    for name, ids in zip(names, eos_ids, strict=True):
        if not ids:
            notes.append(
                Diagnostic(
                    "warning",
                    name,
                    "no end-of-sequence id in generation_config, config or tokenizer",
                    "Its completions end only by stop strings or at max_new_tokens",
                )
            )
        masked = sorted(i for i in ids if i >= len(vocabulary) or not bool(vocabulary[i]))
        if masked:
            notes.append(
                Diagnostic(
                    "warning",
                    name,
                    f"its end-of-sequence ids {_named(masked, table)} are not known to both models",
                    "They are never sampled, so a completion cannot end by them; set stop strings",
                )
            )
    if eos_ids[0] != eos_ids[1] and all(eos_ids):
        notes.append(
            Diagnostic(
                "info",
                "end of sequence",
                f"{names[0]} ends at {_named(sorted(eos_ids[0]), table)}, "
                f"{names[1]} at {_named(sorted(eos_ids[1]), table)}",
                "A completion ends at an EOS id of any model whose weight at α is not zero",
            )
        )
    return notes


def _named(ids: Sequence[int], table: dict[int, str] | None) -> str:
    return ", ".join(f"{i} ({table[i]!r})" if table and i in table else str(i) for i in ids)

"""A checkpoint's tokenizer, as its `tokenizer.json` describes it.

transformers picks a class by the names in the configuration, and several classes build their own splitting rules in the
place of those in `tokenizer.json`: digits are cut otherwise, a BOS appears or is lost, and the model reads texts that
it was not trained on. So the loaded tokenizer is compared with the file on a probe text; where they differ, the file is
what the release was trained with.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from eddecode.errors import PairError
from eddecode.models.checkpoint import Checkpoint
from eddecode.models.diagnostics import Diagnostic
from eddecode.models.loader import one_line

# What splitting rules differ in, one kind a text.
_PROBES = (
    "in 2023 (see 650841823), 3.14159 and 1,000,000",
    "a word, Another WORD; it's they'll don't",
    "  two  spaces\tand a tab \n\n\nthree lines\r\n end ",
    "def f(x_1):\n    return {'a': [x_1 != 0, \"b\"]}  # c",
    "naïve café Ünïcode e\u0301 ﬁ Ａ ½ Straße",
    "漢字かな한국어 русский العربية हिन्दी",
    "🙂👍🏽👨‍👩‍👧 ∑∫≠ ▁ Ġ",
    "https://example.org/a?b=c&d=e#f <tag> @x #y $z%",
)


# Switches of the model behind the splitting rules.
_FLAGS = (
    "byte_fallback",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "ignore_merges",
    "unk_token",
)


@dataclass(frozen=True)
class Difference:
    """What a loaded tokenizer makes of a text (or has as a switch) and what the file does.

    around: only in what is added around a text, such as a BOS.
    """

    what: str
    loaded: Sequence[Any]
    file: Sequence[Any]
    around: bool = False

    def __str__(self) -> str:
        pairs = zip(self.loaded, self.file, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.loaded), len(self.file)))
        where = slice(max(at - 1, 0), at + 3)
        return f"{self.what} is {list(self.loaded[where])} there and {list(self.file[where])} in the file"


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer, or None; see `read_tokenizer`."""
    return read_tokenizer(checkpoint)[0]


def read_tokenizer(checkpoint: Checkpoint) -> tuple[Any, list[Diagnostic]]:
    """(the checkpoint's tokenizer, or None if it has no tokenizer files; notes).

    Raises:
        PairError: the files cannot be read, or the tokenizer needs code of its own.
    """
    if not checkpoint.has_tokenizer:
        return None, []
    for path in checkpoint.path.iterdir():  # reading a pipe would wait forever
        if path.suffix in (".json", ".model", ".txt", ".jinja") and not path.is_file():
            raise PairError(f"{path} of {checkpoint.where} is no regular file; fetch the tokenizer again")
    try:
        _refuse_own_code(checkpoint.path)
        return _as_in_file(_read(AutoTokenizer, checkpoint.path), checkpoint)
    except BaseException as error:  # tokenizer files fail in many ways, a panic of Rust code among them
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise PairError(f"the tokenizer of {checkpoint.where} cannot be loaded: {one_line(error)}") from error


def _read(kind: Any, path: Path) -> Any:
    return kind.from_pretrained(path, trust_remote_code=False, local_files_only=True)


def _refuse_own_code(path: Path) -> None:
    settings = path / "tokenizer_config.json"
    raw = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    if raw.get("auto_map") and not (path / "tokenizer.json").is_file():
        raise PairError("it needs its own code (auto_map), which is never run")


def _as_in_file(tokenizer: Any, checkpoint: Checkpoint) -> tuple[Any, list[Diagnostic]]:
    """The tokenizer, or one that does what tokenizer.json says where this one does not; with a note."""
    file = checkpoint.path / "tokenizer.json"
    if not file.is_file():
        return tokenizer, []
    raw = Tokenizer.from_file(str(file))
    _refuse_shared_ids(raw)
    raw.no_truncation()
    raw.no_padding()
    if not (found := differences(tokenizer, raw)):
        return tokenizer, []
    name, other = type(tokenizer).__name__, _read(PreTrainedTokenizerFast, checkpoint.path)
    left = differences(other, raw)
    if len(left) < len(found):
        gone = next(each for each in found if each not in left)
        note = f"transformers' {name} does not encode texts as the checkpoint's tokenizer.json does: {gone}"
        notes = [Diagnostic("warning", checkpoint.side, note, "The file's rules are used")]
        tokenizer = other
    else:
        notes = []
    if left:
        note = (
            f"the loaded tokenizer does not encode texts as the checkpoint's tokenizer.json does: {left[0]}"
        )
        way_out = (
            "Check tokenizer_config.json (add_bos_token) against what the model was trained with"
            if all(each.around for each in left)
            else "Check that tokenizer.json and tokenizer_config.json belong together"
        )
        notes.append(Diagnostic("warning", checkpoint.side, note, way_out))
    return tokenizer, notes


def _refuse_shared_ids(raw: Tokenizer) -> None:
    """Two tokens with one id: the id would decode to the one that a table without an order happens to give last."""
    vocabulary = raw.get_vocab(with_added_tokens=False)
    if len(set(vocabulary.values())) == len(vocabulary):
        return
    number, count = Counter(vocabulary.values()).most_common(1)[0]
    names = ", ".join(repr(token) for token in sorted(vocabulary) if vocabulary[token] == number)
    raise PairError(
        f"tokenizer.json gives the id {number} to {count} tokens ({names:.200}); fetch the file again, or give "
        "each token an id of its own"
    )


def differences(tokenizer: Any, raw: Tokenizer) -> list[Difference]:
    """Where a tokenizer does something else than `raw`: in its switches, in how it splits or encodes the probe texts.

    Splits are compared too, since a small vocabulary may hide that two rules differ.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found = []
    spelt = " ".join(sorted(token.content for token in raw.get_added_tokens_decoder().values()))
    for text in (*_PROBES, f"a {spelt} b"):
        shown, expected = f"{text!r:.60}", raw.encode(text, add_special_tokens=False)
        try:
            ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        except Exception as error:  # a class may build a tokenizer that this vocabulary does not fit
            found.append(Difference(shown, [f"an error ({error})"], expected.tokens))
            continue
        if ids != expected.ids:
            found.append(Difference(shown, tokenizer.convert_ids_to_tokens(ids), expected.tokens))
        elif backend is not None and (splits := _splits(backend, text)) != (right := _splits(raw, text)):
            found.append(Difference(shown, splits, right))
    if not found:
        ids, expected = list(tokenizer("a b")["input_ids"]), raw.encode("a b")
        if ids != expected.ids:
            tokens = tokenizer.convert_ids_to_tokens(ids)
            found.append(Difference("'a b'", tokens, expected.tokens, around=True))
    return found if backend is None else [*found, *_different_flags(backend.model, raw.model)]


def _different_flags(loaded: Any, file: Any) -> Iterator[Difference]:
    for name in _FLAGS:
        values = getattr(loaded, name, None), getattr(file, name, None)
        if (values[0] or None) != (values[1] or None):
            yield Difference(name, [values[0]], [values[1]])


def _splits(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words into which a text is split before the vocabulary is looked at."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]

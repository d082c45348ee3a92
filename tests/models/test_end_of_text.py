"""Which ids end a model's text: everything that a checkpoint says about it, with a note on where it was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eddecode import ModelPair, Sampler, SamplingParams
from eddecode.prompts.end_of_turn import end_of_turn_ids
from helpers import pairs, tiny
from helpers.pairs import noted, rewrite

TURN = "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}END{% endfor %}"


def set_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    rewrite(folder / "tokenizer_config.json", drop=("chat_template",))


def test_the_tokenizers_own_end(tmp_path: Path) -> None:
    """Llama 3: the generation config names the end of the text, and the tokenizer the end of a turn."""
    base, aligned = tiny.save_pair(tmp_path)
    rewrite(aligned / "tokenizer_config.json", eos_token="<|system|>")
    pair = ModelPair.load(base, aligned)
    assert pair.eos_ids == (frozenset({2}), frozenset({2, tiny.SYSTEM}))
    assert noted(
        pair,
        "aligned: its text ends at 2 ('</s>') by its generation config; 5 ('<|system|>') by its tokenizer, chat",
    )


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (TURN.replace("END", "<|system|>"), {tiny.SYSTEM}),
        (TURN.replace("END", " <|system|>\n"), {tiny.SYSTEM}),  # Llama 2 writes a space before it
        (TURN.replace("END", "\n"), set()),
        (TURN.replace("END", "") + "<|assistant|>", set()),  # always asks for an answer
        (TURN.replace("END", "<|system|>") + "<|assistant|>", {tiny.SYSTEM}),
        ("{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}x", set()),
        # gpt-oss: another token ends an earlier reply, and the reasoning
        (
            "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' and loop.last %}<|system|>"
            "{% else %}<|user|>{% endif %}{% endfor %}",
            {tiny.SYSTEM},
        ),
    ],
)
def test_the_end_of_a_turn_by_the_template(template: str, found: set[int]) -> None:
    assert set(end_of_turn_ids(tiny.tiny_tokenizer(), template)) == found


@pytest.mark.parametrize("name", ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|eom_id|>"])
def test_known_names_count_where_the_template_has_them(name: str) -> None:
    tokenizer = tiny.tiny_tokenizer(extra=(name,))
    source = "{{ messages[0].content }}{% if tools %}" + name + "{% endif %}"
    assert end_of_turn_ids(tokenizer, source) == (300,)
    assert end_of_turn_ids(tokenizer, "{{ messages[0].content }}") == ()


def test_an_adapter_has_ends_of_its_own(tmp_path: Path) -> None:
    """Its tokenizer's, its generation config's, and those of the base that it is merged into."""
    base, _ = tiny.save_pair(tmp_path)
    pairs.save_adapter(base, tmp_path / "adapter")
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.eos_token = "<|system|>"
    tokenizer.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "generation_config.json").write_text(json.dumps({"eos_token_id": [3]}))
    pair = ModelPair.load(base, tmp_path / "adapter", dtype="float32")
    assert pair.eos_ids == (frozenset({2}), frozenset({2, 3, 5}))
    assert noted(pair, "3 ('<|user|>') by its generation config of the adapter")


def test_a_tokenizer_that_is_borrowed_has_no_say() -> None:
    base, aligned = tiny.tiny_pair_models()
    base.generation_config.eos_token_id = 7
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.eos_token = "<|system|>"
    assert ModelPair.from_models(base, aligned, None, tokenizer).eos_ids[0] == {7}


@pytest.mark.parametrize("as_file", [False, True])
def test_a_base_that_reads_a_chat_template_ends_turns_as_it_does(tmp_path: Path, as_file: bool) -> None:
    base, aligned = tiny.tiny_pair_models()
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = TURN.replace("END", "<|system|>")
    pair = ModelPair.from_models(base, aligned, tokenizer, tiny.tiny_tokenizer())
    file = tmp_path / "own.jinja"
    file.write_text(TURN.replace("END", "<|user|>"))
    end = tiny.USER if as_file else tiny.SYSTEM
    params = SamplingParams(temperature=3.0, max_new_tokens=60, n=24)

    def ends(template: object) -> set[int]:
        done = Sampler(pair, base_template=template).generate("hi", params)  # type: ignore[arg-type]
        return {completion.token_ids[-1] for completion in done if completion.finish_reason == "eos"}

    assert ends(file if as_file else "chat") == {tiny.EOS, end}
    assert ends("Q: {prompt}") == {tiny.EOS}

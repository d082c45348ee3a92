"""Prompts: literal substitution, BOS once, chat templates as the checkpoint renders them, errors by message."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eddecode.errors import PromptError
from eddecode.prompts.encoding import encode
from eddecode.prompts.presets import FAMILIES, INSTRUCTION_TEMPLATE
from eddecode.prompts.templates import PlainTemplate, Renderer, make_template
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampling.params import SamplingParams
from helpers import tiny
from helpers.paths import ROOT

LEADS = tiny.tiny_tokenizer()  # puts <s> in front by itself, as Llama's does
BARE = tiny.tiny_tokenizer(add_bos=False)  # does not, as GPT-2's does not

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "A red hat?"},
]


# RenderedPrompt --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_ids_of_any_kind_become_tuples_of_int(kind: type) -> None:
    prompt = RenderedPrompt(base_ids=kind([1, 2]), aligned_ids=kind([3]))
    assert prompt.ids == ((1, 2), (3,))
    assert all(type(i) is int for ids in prompt.ids for i in ids)
    assert prompt == RenderedPrompt((1, 2), (3,))


def test_digest_is_blake2b_of_both_lists_with_their_lengths() -> None:
    packed = struct.pack("<5q", 2, 1, 2, 1, 3)
    assert RenderedPrompt([1, 2], [3]).digest == hashlib.blake2b(packed, digest_size=16).digest()
    assert RenderedPrompt([1, 2], [3]).digest != RenderedPrompt([1], [2, 3]).digest
    assert RenderedPrompt([1, 2], [3]).digest != RenderedPrompt([3], [1, 2]).digest


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"base_ids is empty; expected at least one token"),
        ([1, -1], r"base_ids\[1\] is -1; expected a token id, an integer ≥ 0"),
        ([1, 2.0], r"base_ids\[1\] is 2.0"),
        ([True], r"base_ids\[0\] is True"),
        ([[1, 2]], r"base_ids\[0\] is \[1, 2\]"),
        ("text", r"base_ids is 'text'; expected a list of token ids"),
        (7, r"base_ids is 7; expected a list of token ids"),
    ],
)
def test_bad_ids_are_refused(ids: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        RenderedPrompt(base_ids=ids, aligned_ids=[1])  # type: ignore[arg-type]


# Plain templates -------------------------------------------------------------------------------------------------


@given(st.text(min_size=1).filter(str.strip))
def test_a_prompt_is_inserted_literally(prompt: str) -> None:
    assert make_template("Q {x} %s: {prompt}!", BARE, "base").text(prompt) == "Q {x} %s: " + prompt + "!"


@pytest.mark.parametrize("prompt", ["{prompt}", "{0} {prompt} }{", r"\1 {prompt", "{{prompt}}"])
def test_braces_in_a_prompt_have_no_meaning(prompt: str) -> None:
    template = make_template("Customer: {prompt}\nAgent:\n", BARE, "base")
    assert BARE.decode(template(prompt)) == f"Customer: {prompt}\nAgent:\n"


@pytest.mark.parametrize("text", ["{prompt} and {prompt}", "{prompt}{prompt}"])
def test_the_placeholder_must_occur_exactly_once(text: str) -> None:
    with pytest.raises(PromptError, match=r"contains \{prompt\} 2 times; expected it exactly once"):
        make_template(text, BARE, "base")


def test_several_turns_in_a_plain_template_repeat_it() -> None:
    assert make_template("Q: {prompt}\nA: ", BARE, "base").text(CHAT) == (
        "Be brief.\n\nQ: Hi\nA: Hello.\n\nQ: A red hat?\nA: "
    )


def test_one_user_message_is_the_same_as_a_string() -> None:
    for template in (make_template("Q: {prompt}", LEADS, "base"), make_template("chat", LEADS, "aligned")):
        assert template([{"role": "user", "content": "Hi"}]) == template("Hi")


@pytest.mark.parametrize("tokenizer", [LEADS, BARE])
def test_bos_occurs_once_whether_text_or_tokenizer_adds_it(tokenizer: object) -> None:
    ids = make_template("<s>Customer: {prompt}\nAgent:\n", tokenizer, "base")("Hi")
    assert ids[0] == tiny.BOS
    assert ids.count(tiny.BOS) == 1
    assert tokenizer.decode(ids) == "<s>Customer: Hi\nAgent:\n"


def test_bos_is_added_only_by_a_tokenizer_that_does_so() -> None:
    assert make_template("{prompt}", LEADS, "base")("Hi") == (tiny.BOS, *BARE("Hi").input_ids)
    assert make_template("{prompt}", BARE, "base")("Hi") == tuple(BARE("Hi").input_ids)


def test_an_eos_that_a_tokenizer_appends_is_removed() -> None:
    from tokenizers import processors

    tokenizer = tiny.tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", tiny.BOS), ("</s>", tiny.EOS)]
    )
    assert tokenizer("Hi").input_ids[-1] == tiny.EOS
    assert encode(tokenizer, "Hi") == [tiny.BOS, *BARE("Hi").input_ids]
    assert encode(tokenizer, "<s>Hi") == [tiny.BOS, *BARE("Hi").input_ids]


# Chat templates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [LEADS, BARE])
@pytest.mark.parametrize("prompt", ["A red hat?", CHAT])
def test_chat_is_what_the_tokenizer_itself_renders(tokenizer: object, prompt: object) -> None:
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]
    ids = make_template("chat", tokenizer, "aligned")(prompt)
    assert list(ids) == list(expected)
    assert ids.count(tiny.BOS) == 1


def test_a_chat_template_without_bos_gets_none() -> None:
    tokenizer = tiny.tiny_tokenizer()  # would add <s> to a plain text
    tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    assert tiny.BOS not in make_template("chat", tokenizer, "aligned")("Hi")


def test_a_system_prompt_is_added_if_the_messages_have_none() -> None:
    template = make_template("chat", BARE, "aligned", system="Be kind.")
    assert template.text("Hi") == "<s><|system|>Be kind.<|user|>Hi<|assistant|>"
    assert "Be kind." not in template.text(CHAT)
    assert "Be brief." in template.text(CHAT)


def test_an_error_of_a_template_names_it_and_the_roles() -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    )
    with pytest.raises(PromptError, match=r"refuses messages with the roles system, user: .*no system role"):
        make_template("chat", tokenizer, "aligned", system="Be kind.")("Hi")


@pytest.mark.parametrize("call", ["strftime_now('%d %b %Y')", "date_string"])
def test_a_template_with_the_date_renders_the_same_every_day(call: str) -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = "{{ " + call + " }}: {{ messages[0]['content'] }}"
    assert make_template("chat", tokenizer, "aligned").text("Hi") == "26 Jul 2024: Hi"


# Choosing a template ---------------------------------------------------------------------------------------------


def test_without_a_spec_base_gets_instructions_and_aligned_its_chat_template() -> None:
    assert make_template(None, BARE, "base").text("Hi") == INSTRUCTION_TEMPLATE.replace("{prompt}", "Hi")
    assert make_template(None, BARE, "aligned").text("Hi") == "<s><|user|>Hi<|assistant|>"


def test_a_missing_chat_template_is_an_error_with_alternatives() -> None:
    plain = tiny.tiny_tokenizer(chat=False)
    for spec in (None, "chat", "mistral"):
        with pytest.raises(
            PromptError, match=r"aligned model .* has no chat template.*--aligned-template.*preset"
        ):
            make_template(spec, plain, "aligned")


def test_a_missing_tokenizer_is_an_error_that_names_rendered_prompts() -> None:
    for spec in (None, "chat", "Q: {prompt}", "alpaca"):
        with pytest.raises(PromptError, match=r"needs a tokenizer.*RenderedPrompt\(base_ids=…"):
            make_template(spec, None, "aligned")


def test_a_template_file_is_used_byte_for_byte(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_bytes("Frage: {prompt}\r\nAntwort: ä\n".encode())
    for spec in (file, str(file)):
        assert make_template(spec, BARE, "base").text("Hi") == "Frage: Hi\r\nAntwort: ä\n"


def test_an_unknown_spec_is_an_error_with_the_valid_forms(tmp_path: Path) -> None:
    with pytest.raises(
        PromptError, match=r"'lama-2' is not 'chat', not a preset \(llama-2, .*cannot be read as a file"
    ):
        make_template("lama-2", BARE, "base")
    (tmp_path / "empty.txt").write_text("nothing here")
    with pytest.raises(PromptError, match=r"contains \{prompt\} 0 times"):
        make_template(tmp_path / "empty.txt", BARE, "base")


def test_a_callable_may_return_text_or_ids() -> None:
    assert make_template(lambda p: f"<{p}>", LEADS, "base")("Hi") == (tiny.BOS, *BARE("<Hi>").input_ids)
    assert make_template(lambda p: [5, 6], None, "base")("Hi") == (5, 6)
    with pytest.raises(PromptError, match=r"what the template '<lambda>' returned is empty"):
        make_template(lambda p: [], None, "base")("Hi")


def test_a_template_object_is_used_as_it_is() -> None:
    template = PlainTemplate("own", BARE, "{prompt}")
    assert make_template(template, None, "base") is template


def test_a_system_prompt_for_a_plain_template_is_refused() -> None:
    with pytest.raises(PromptError, match=r"system prompt was given for the plain base template"):
        make_template(None, BARE, "base", system="Be kind.")


# Bad prompts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", r"message 0 \(user\) of a prompt is empty"),
        ("  \n", r"message 0 \(user\) of a prompt is empty"),
        ([], r"has no messages"),
        (7, r"is a int; expected a string, a list of chat messages"),
        (["Hi"], r"message 0 of a prompt has 'Hi'; expected exactly 'role' and 'content'"),
        ([{"role": "user"}], r"message 0 of a prompt has \['role'\]"),
        ([{"role": "tool", "content": "x"}], r"has the role 'tool'; expected system, user or assistant"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            r"the content of message 0 is a list; expected text",
        ),
        (CHAT[:3], r"roles of a prompt's messages are system, user, assistant; .*a user last"),
        ([CHAT[1], CHAT[1]], r"are user, user; expected an optional system first"),
        ([CHAT[1], CHAT[0]], r"are user, system; expected an optional system first"),
    ],
)
def test_a_bad_prompt_says_what_is_wrong(prompt: object, message: str) -> None:
    for template in (make_template("{prompt}", BARE, "base"), make_template("chat", BARE, "aligned")):
        with pytest.raises(PromptError, match=message):
            template(prompt)  # type: ignore[arg-type]


def test_a_template_that_renders_to_nothing_is_refused() -> None:
    with pytest.raises(PromptError, match=r"renders 'Hi' to no tokens"):
        make_template(lambda p: "", LEADS, "base")("Hi")


# Both sides ------------------------------------------------------------------------------------------------------


def test_renderer_renders_both_sides_and_passes_ids_through() -> None:
    render = Renderer(make_template("Q: {prompt}", LEADS, "base"), make_template("chat", LEADS, "aligned"))
    prompt = render("Hi")
    assert LEADS.decode(prompt.base_ids) == "<s>Q: Hi"
    assert LEADS.decode(prompt.aligned_ids) == "<s><|user|>Hi<|assistant|>"
    assert render(prompt) is prompt


def test_renderer_says_which_side_failed() -> None:
    def broken(prompt: object) -> list[int]:
        return []

    good = make_template("{prompt}", BARE, "base")
    with pytest.raises(PromptError, match=r"^aligned prompt: what the template 'broken' returned is empty"):
        Renderer(good, make_template(broken, BARE, "aligned"))("Hi")


# The paper's families --------------------------------------------------------------------------------------------


def test_the_families_have_the_facts_of_the_release() -> None:
    facts = {
        name: (f.alpha, f.stop, f.strip, f.suppress_eos, f.base_model, f.aligned_model)
        for name, f in FAMILIES.items()
    }
    strip = (" ", "#", "\n")
    assert facts == {
        "llama-2": (
            0.3,
            ("Query", "Response"),
            strip,
            True,
            "meta-llama/Llama-2-7b-hf",
            "meta-llama/Llama-2-7b-chat-hf",
        ),
        "llama": (0.6, ("Query", "Response"), strip, True, "huggyllama/llama-7b", "lmsys/vicuna-7b-v1.3"),
        "mistral": (
            0.6,
            ("Query", "Responses"),
            strip,
            True,
            "mistralai/Mistral-7B-v0.1",
            "mistralai/Mistral-7B-Instruct-v0.1",
        ),
        "alpaca": (2.0, (), (), False, "PKU-Alignment/alpaca-7b-reproduced", "PKU-Alignment/beaver-7b-v1.0"),
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_makes_templates_for_both_sides_and_params(name: str) -> None:
    family = FAMILIES[name]
    render = Renderer(make_template(name, LEADS, "base"), make_template(name, LEADS, "aligned"))
    prompt = render("A red hat?")
    for ids in prompt.ids:
        assert ids.count(tiny.BOS) == 1
        assert LEADS.decode(ids).count("A red hat?") == 1
    params = SamplingParams(**family.params(), n=2)
    assert (params.alpha, params.stop, params.suppress_eos) == (
        family.alpha,
        family.stop,
        family.suppress_eos,
    )
    assert (params.temperature, params.max_new_tokens) == (0.7, 64)


def test_the_manual_agrees_with_the_data_about_families() -> None:
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    written = {" ": "space", "#": "`#`", "\n": "line break"}
    for name, f in FAMILIES.items():
        stops = ", ".join(f"`{stop}`" for stop in f.stop) or "none"
        ends = "never sampled" if f.suppress_eos else "sampled"
        cut = ", ".join(written[character] for character in f.strip) or "nothing"
        row = f"| `{name}` | {f.base_model}, {f.aligned_model} | {f.alpha:g} | {stops} | {ends} | {cut} |"
        assert row in page
        assert (f.temperature, f.max_new_tokens) == (0.7, 64)


def test_the_stop_strings_are_the_headings_of_the_base_template() -> None:
    assert "# Query:" in INSTRUCTION_TEMPLATE
    assert "# Response:" in INSTRUCTION_TEMPLATE


def test_prefix_and_suffix_of_llama_2_and_mistral() -> None:
    assert make_template("llama-2", BARE, "aligned").text("Hi").endswith("<|assistant|> ")
    text = make_template("mistral", BARE, "aligned").text(CHAT)
    assert text.count(FAMILIES["mistral"].user_prefix) == 1
    assert FAMILIES["mistral"].user_prefix + "A red hat?" in text


def test_trim_cuts_at_the_first_stop_and_strips_in_order() -> None:
    trim = FAMILIES["llama-2"].trim
    assert trim("A hat.\n\n# Query:\nmore") == "A hat."
    assert trim("A Response Query") == "A"
    assert (
        trim("A hat. #\n# ") == "A hat. #"
    )  # each character once, in order: the newline goes, then nothing more
    assert FAMILIES["alpaca"].trim("A Query # ") == "A Query # "

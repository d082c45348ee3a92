"""Chat templates within limits, and renderings compared with what went in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from typing import Any

import pytest

from eddecode.errors import PromptError
from eddecode.prompts import template_worker
from eddecode.prompts.rendering import fold, render_chat
from eddecode.prompts.template_process import run_template, variables_of
from eddecode.prompts.types import as_messages
from helpers import tiny

TOKENIZER = tiny.tiny_tokenizer()
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "  A red hat?\n"}
REPLY = {"role": "assistant", "content": "<think>\nhm, red\n</think>\n\nYes."}
MORE = {"role": "user", "content": "Why? {{ 7 * 7 }} {% raw %}"}
CHAT = [SYSTEM, USER, REPLY, MORE]

LOOP = "{% for m in messages %}"
PARTS = (
    LOOP + "{% for p in m.content if p.type == 'text' %}[{{ m.role }}]{{ p.text }}{% endfor %}{% endfor %}"
)
PLAIN = LOOP + "[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def rendered(source: str, messages: list[dict[str, str]], **options: Any) -> str:
    rendering = render_chat(TOKENIZER, messages, source=source, **options)
    return rendering.text


# What templates of released checkpoints do -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        PLAIN,
        PARTS,
        LOOP + "[{{ m.role }}]{{ m.content | trim }}{% endfor %}",  # Llama 3, Gemma
        LOOP + "[{{ m.role }}] {{ m['content'].strip() }} {% endfor %}",  # Llama 2
        LOOP + "{{ m.content.split('</think>')[-1].lstrip('\\n') }}|{% endfor %}",  # Qwen3, R1
        # Mistral: the system text stands in the last user message
        "{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\\n\\n' %}"
        "{% set messages = messages[1:] %}{% endif %}"
        + LOOP
        + "[{{ m.role }}]{% if loop.last %}{{ s }}{% endif %}{{ m.content }}{% endfor %}",
        # the frame depends on the content
        LOOP + "{% if 'Why' in m.content %}[asks]{% endif %}{{ m.content }}{% endfor %}",
        # without a loop over messages
        "{{ messages | map(attribute='content') | join('##') }}",
    ],
)
def test_templates_that_write_every_message_are_taken(source: str) -> None:
    for messages in ([USER], CHAT):
        rendering = render_chat(TOKENIZER, messages, source=source)
        written = [rendering.text[start:end].strip() for start, end in rendering.spans]
        assert sorted(written) == sorted(
            re.sub(r"<think>.*</think>", "", message["content"], flags=re.S).strip()
            if "</think>" not in rendering.text
            else message["content"].strip()
            for message in messages
        )


def test_the_spans_are_the_messages() -> None:
    rendering = render_chat(TOKENIZER, CHAT, source=PLAIN)
    assert [rendering.text[a:b] for a, b in rendering.spans] == [message["content"] for message in CHAT]


def test_text_of_a_chat_is_what_transformers_renders() -> None:
    sources = [
        PLAIN,
        "{{ bos_token }}{% for m in messages %}{{ m | tojson }}{% endfor %}{{ tools }}{{ documents is none }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ m.content }}"
        "{% if ns.n == 2 %}{% break %}{% endif %}{% endfor %}",
        "{%- for m in messages -%}\n  {% if m.role == 'assistant' %}\n {% generation %}{{ m.content }}"
        "{% endgeneration %}\n  {% endif %}\n{{ dict(a=m.content).a }} {%- endfor %}{{ eos_token }}"
        "{{ thinking | default('none') }}",
        "{% macro say(x) %}<{{ x }}>{% endmacro %}{% for m in messages %}{{ say(m.content) }}{% endfor %}",
    ]
    for source in sources:
        shown = TOKENIZER.apply_chat_template(
            CHAT, tokenize=False, add_generation_prompt=True, chat_template=source, thinking=False
        )
        variables = {
            "messages": CHAT,
            "add_generation_prompt": True,
            **{"tools": None, "documents": None, "thinking": False},
            **TOKENIZER.special_tokens_map,
        }
        assert run_template(source, variables) == shown


# Faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("hello", r"leaves out the text of message 0 \(user\)"),
        ("{{ messages[0].content[:80] }}", r"cuts or changes the text of message 0"),
        ("{{ messages[0].content.split('\\n')[0] }}", r"cuts or changes the text of message 0"),
        ("{{ messages[0].content | replace(\"'\", '') }}", r"cuts or changes"),
        ("{{ messages[0].content | upper }}", r"leaves out"),
        ("{{ messages[0].content | e }}", r"cuts or changes"),
        ("{{ messages[0].content | truncate(3000) }}", r"cuts or changes"),
        ("{{ messages[0].content }}{{ messages[0].content }}", r"writes 2 times the text of message 0"),
        ("{{ messages[0].content | wordwrap(70) }}", r"cuts or changes|leaves out"),
        ("{{ raise_exception('only tools') }}", r"refuses messages with the roles user: only tools"),
        ("{% for m in messages %}", r"refuses messages with the roles user: "),
        ("{{ messages[0].content.__class__.__mro__ }}", r"refuses messages"),
    ],
)
def test_a_template_that_loses_the_prompt_is_refused(source: str, found: str) -> None:
    with pytest.raises(PromptError, match=found + r".*(own|fold)"):
        render_chat(TOKENIZER, [USER], source=source)


@pytest.mark.parametrize(
    ("source", "message", "found"),
    [
        # faults that depend on the prompt, which no probe sees
        ("{{ messages[0].content[:20000] }}", "a cat " * 5000, r"leaves out, cuts or changes the text"),
        ("{{ messages[0].content.replace('lamp', 'hat') }}", "buy a lamp", r"cuts or changes"),
        ("{{ messages[0].content.split('###')[0] }}", "one ### two", r"cuts or changes"),
        (
            "{% set c = messages[0].content %}{{ c }}{% if c.startswith('go') %}{{ c }}{% endif %}",
            "go to the next shop",
            r"writes 2 times the text",
        ),
        (
            "{% if 'x' * 9 in messages[0].content %}nothing{% else %}{{ messages[0].content }}{% endif %}",
            "x" * 9,
            r"leaves out",
        ),
    ],
)
def test_each_prompt_is_compared_too(source: str, message: str, found: str) -> None:
    render_chat(TOKENIZER, [USER], source=source)
    with pytest.raises(PromptError, match=found):
        render_chat(TOKENIZER, [{"role": "user", "content": message}], source=source)


def test_turns_in_another_order_are_refused() -> None:
    source = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}"
    with pytest.raises(PromptError, match=r"puts message 3 \(user\) first"):
        render_chat(TOKENIZER, CHAT, source=source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + PLAIN,
        "{% for m in messages if m.role != 'system' %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_without_a_system_role(source: str) -> None:
    """Refused, with the way out; or the system text goes into the user's turn, where that is asked for."""
    with pytest.raises(PromptError, match=r"(leaves out .* message 0 \(system\)|System role).*--fold-system"):
        render_chat(TOKENIZER, CHAT, source=source)
    assert "Be brief.\n\n  A red hat?" in rendered(source, CHAT, fold_system=True)
    assert rendered(source, [USER], fold_system=True) == rendered(source, [USER])


def test_folding_changes_nothing_where_there_is_a_system_role() -> None:
    assert rendered(PLAIN, CHAT, fold_system=True) == rendered(PLAIN, CHAT)
    assert fold([SYSTEM, USER])[0]["content"] == "Be brief.\n\n  A red hat?\n"


# Limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}{% set x = i %}{% endfor %}{% endfor %}",
            r"did not end within 1 second",
        ),
        ("{{ 9 ** (9 ** 9) }}", r"did not end within 1 second"),
        ("{{ 'x' * 3000000000 }}", r"needs more than 512 MiB|status"),
        ("{{ 'x' * 3000000 }}", r"writes more than [\d,]+ characters"),
        (
            "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
            r"needs more than 512 MiB",
        ),
        (
            "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
            r"needs more than 512 MiB|1 second",
        ),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", r"recursion"),
    ],
)
def test_a_template_has_limits(source: str, found: str) -> None:
    begin = time.monotonic()
    with pytest.raises(PromptError, match=found):
        render_chat(TOKENIZER, [USER], source="{{ messages[0].content }}" + source)
    assert time.monotonic() - begin < 60  # seconds; of computing it gets one
    assert rendered(PLAIN, [USER]) == "[user]  A red hat?\n[assistant]"  # the next one is not harmed


def test_a_long_prompt_is_no_fault() -> None:
    long = {"role": "user", "content": "ä word and \ud800 a half of a pair\n" * 60_000}
    assert long["content"] in rendered(PLAIN, [long])


@pytest.mark.parametrize(
    "call",
    [
        "strftime_now('%Y-%m-%d')",
        "strftime_now(format='%Y-%m-%d')",
        "(strftime_now)('%Y-%m-%d')",
        "now().strftime('%Y-%m-%d')",
        "now('UTC').date()",
    ],
)
def test_every_day_is_the_same(call: str) -> None:
    source = "{% set f = strftime_now %}{{ f('%H:%M:%S %s') }} {{ " + call + " }} {{ date_string }}" + PLAIN
    assert rendered(source, [USER]).startswith("00:00:00 1721952000 2024-07-26 26 Jul 2024")


def test_random_choices_are_the_same_in_every_process() -> None:
    source = "{{ range(1000) | random }} {{ ['a', 'b', 'c'] | random }} {{ lipsum(n=1, html=false) }}"
    request = json.dumps({"source": source, "variables": {}, "limit": 9999})
    worker = [sys.executable, "-P", template_worker.__file__]
    environment = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        worker, input=request + "\n" + request, capture_output=True, text=True, check=True, env=environment
    )
    texts = [json.loads(line)["text"] for line in done.stdout.splitlines()]
    assert texts == [run_template(source, {})] * 2


def test_a_fork_has_a_child_of_its_own() -> None:
    """Two processes that read answers from one pipe would take each other's."""
    expected = rendered(PLAIN, [USER])
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        right = all(rendered(PLAIN, [USER]) == expected for _ in range(50))
        os.write(write, b"1" if right else b"0")
        os._exit(0)
    assert all(rendered(PLAIN, [{**USER, "content": f"n{i}"}]).count(f"n{i}") == 1 for i in range(50))
    os.waitpid(pid, 0)
    assert os.read(read, 1) == b"1"


# Variables ---------------------------------------------------------------------------------------------------------


def test_variables_reach_the_template_and_are_known() -> None:
    source = (
        PLAIN
        + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{{ level }}"
    )
    assert rendered(source, [USER], variables={"enable_thinking": False}).endswith("<think></think>")
    assert rendered(source, [USER], variables={"level": [1, {"a": None}]}).endswith("[1, {'a': None}]")
    assert {"enable_thinking", "level", "messages"} <= variables_of(source)
    with pytest.raises(PromptError, match=re.compile("unexpected|expected", re.I)):
        variables_of("{% if %}")


def test_parts_of_text_are_the_text_and_other_parts_are_refused() -> None:
    parts = [{"type": "text", "text": "where is "}, {"type": "text", "text": "my lamp?"}]
    assert as_messages([{"role": "user", "content": parts}]) == as_messages("where is my lamp?")
    image = [*parts, {"type": "image", "url": "x.png"}]
    with pytest.raises(PromptError, match=r"content of message 0 is a list; .* Images .* are not supported"):
        as_messages([{"role": "user", "content": image}])
    with pytest.raises(PromptError, match=r"is given as prefill"):
        as_messages([{"role": "user", "content": "a"}, {"role": "assistant", "content": "Sure"}])

"""One prompt is rendered to two: the base model's and the aligned model's token ids.

A prompt is a string, a list of chat messages, or a `RenderedPrompt`, which is passed on unchanged. A template turns the
first two into the ids of one side: a plain text with `{prompt}` in it, the checkpoint's own chat template, or a
function. The text of a prompt is inserted literally; braces in it have no meaning.

The beginning-of-sequence (BOS) token is handled here and nowhere else. The output of a chat template is taken as it is,
with or without a BOS (as `apply_chat_template` does). A plain template gets the BOS that the tokenizer adds by default,
unless its text starts with it already. An end-of-sequence token that a tokenizer adds is left out, since the completion
follows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeAlias

from eddecode.errors import PromptError
from eddecode.prompts.presets import FAMILIES, INSTRUCTION_TEMPLATE
from eddecode.prompts.types import Message, Prompt, RenderedPrompt, as_messages, check_token_ids

PLACEHOLDER = "{prompt}"
Side = Literal["base", "aligned"]

# Some chat templates insert today's date into the prompt (Llama 3.1 and later). A resumed run needs the same prompt on
# any day, so the date is fixed, to the default of Llama 3.1's own template.
_TEMPLATE_DATE = date(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


# Templates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """Renders a prompt to the token ids of one side; `text` is the rendered text before tokenization.

    `name` says where the template came from; a run records it.
    """

    name: str
    tokenizer: Any

    def text(self, prompt: str | Sequence[Message]) -> str:
        """The rendered prompt, before tokenization."""
        raise NotImplementedError

    def __call__(self, prompt: str | Sequence[Message]) -> tuple[int, ...]:
        """The token ids, with the BOS token once where the side has one."""
        return self._non_empty(encode(self.tokenizer, self.text(prompt)), prompt)

    def _non_empty(self, ids: Sequence[int], prompt: str | Sequence[Message]) -> tuple[int, ...]:
        if not ids:
            raise PromptError(
                f"the template {self.name!r} renders {_short(prompt)} to no tokens; expected text"
            )
        return tuple(ids)


@dataclass(frozen=True)
class PlainTemplate(Template):
    """A text that contains `{prompt}` once, replaced literally.

    For several turns, the template is repeated for every user message, each followed by the assistant's reply and an
    empty line; the last one is left open for the completion. A system message comes first, followed by an empty line.
    """

    template: str

    def __post_init__(self) -> None:
        if (count := self.template.count(PLACEHOLDER)) != 1:
            raise PromptError(
                f"the template {self.name!r} contains {PLACEHOLDER} {count} times; expected it exactly once, where "
                "the prompt goes"
            )

    def text(self, prompt: str | Sequence[Message]) -> str:
        """The template with the prompt in it, one copy per user message."""
        before, after = self.template.split(PLACEHOLDER)
        pieces = []
        for message in as_messages(prompt):
            if message["role"] == "user":
                pieces.append(before + message["content"] + after)
            else:
                pieces.append(message["content"] + "\n\n")
        return "".join(pieces)


@dataclass(frozen=True)
class ChatTemplate(Template):
    """The tokenizer's own chat template, exactly as `apply_chat_template` renders it.

    system: a system prompt, added if the messages have none. user_prefix, suffix: text before the last user message
    and after the rendered chat (two families of the paper need them).
    """

    system: str | None = None
    user_prefix: str = ""
    suffix: str = ""

    def text(self, prompt: str | Sequence[Message]) -> str:
        """The chat as text, up to the beginning of the assistant's turn."""
        messages = as_messages(prompt)
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        messages[-1] = {**messages[-1], "content": self.user_prefix + messages[-1]["content"]}
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                chat_template=_with_fixed_date(self.tokenizer.get_chat_template()),
                date_string=_TEMPLATE_DATE.strftime("%d %b %Y"),
            )
        except Exception as error:  # a chat template is a program of the checkpoint and can raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise PromptError(
                f"the chat template of {_name_of(self.tokenizer)} refuses messages with the roles {roles}: {error}. "
                "Change the messages (many templates have no system role), or give a template of your own"
            ) from error
        return str(text) + self.suffix

    def __call__(self, prompt: str | Sequence[Message]) -> tuple[int, ...]:
        """The token ids; only the chat template decides about the BOS."""
        return self._non_empty(_token_ids(self.tokenizer, self.text(prompt), special=False), prompt)


def _with_fixed_date(chat_template: str) -> str:
    """The template with every use of today's date replaced by the fixed date."""
    return _TODAY.sub(lambda match: repr(_TEMPLATE_DATE.strftime(match.group(2))), chat_template)


@dataclass(frozen=True)
class CallableTemplate(Template):
    """A function of the prompt that returns text, or token ids (used unchanged)."""

    function: Callable[[Any], str | Sequence[int]]

    def text(self, prompt: str | Sequence[Message]) -> str:
        """The text that the function returns, or the decoded token ids."""
        rendered = self.function(prompt)
        return rendered if isinstance(rendered, str) else str(self.tokenizer.decode(list(rendered)))

    def __call__(self, prompt: str | Sequence[Message]) -> tuple[int, ...]:
        """The token ids of what the function returns."""
        as_messages(prompt)
        rendered = self.function(prompt)
        if isinstance(rendered, str):
            _need_tokenizer(self.tokenizer, "a template that returns text")
            return self._non_empty(encode(self.tokenizer, rendered), prompt)
        return check_token_ids(rendered, f"what the template {self.name!r} returned")


TemplateSpec: TypeAlias = str | Path | Callable[[Any], str | Sequence[int]] | Template | None


def make_template(spec: TemplateSpec, tokenizer: Any, side: Side, *, system: str | None = None) -> Template:
    """Build one side's template.

    Args:
        spec: None (base: a plain instruction template; aligned: its chat template), "chat", the name of a preset in
            `eddecode.prompts.presets.FAMILIES`, a text that contains `{prompt}`, the path of a file with such a text
            (used byte for byte, including a final newline), a function from the prompt to text or token ids, or a
            Template.
        tokenizer: of that side.
        side: "base" or "aligned".
        system: a system prompt for a chat template.

    Raises:
        PromptError: no such template, or one that cannot be used with this tokenizer.
    """
    if isinstance(spec, Template):
        return spec
    if callable(spec):
        return CallableTemplate(getattr(spec, "__name__", type(spec).__name__), tokenizer, spec)
    _need_tokenizer(tokenizer, f"a template for the {side} model")
    if spec is None:
        spec = "chat" if side == "aligned" else INSTRUCTION_TEMPLATE
        template = _from_text("instruction" if side == "base" else "chat", spec, tokenizer, side, system)
    elif isinstance(spec, str) and spec in FAMILIES:
        family = FAMILIES[spec]
        text = family.base_template if side == "base" else family.aligned_template
        template = _from_text(spec, text, tokenizer, side, system)
        if isinstance(template, ChatTemplate):
            template = ChatTemplate(spec, tokenizer, system, family.user_prefix, family.suffix)
    elif isinstance(spec, str) and (spec == "chat" or PLACEHOLDER in spec):
        template = _from_text("chat" if spec == "chat" else "text", spec, tokenizer, side, system)
    else:
        template = _from_text(str(spec), _read(spec, side), tokenizer, side, system)
    return template


def _from_text(name: str, text: str, tokenizer: Any, side: Side, system: str | None) -> Template:
    if text != "chat":
        if system is not None:
            raise PromptError(
                f"a system prompt was given for the plain {side} template {name!r}; write it into the template, "
                "or use the chat template"
            )
        return PlainTemplate(name, tokenizer, text)
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            f"the tokenizer of the {side} model ({_name_of(tokenizer)}) has no chat template. Give one: "
            f"{side}_template= or --{side}-template with a text or a file that contains {PLACEHOLDER}, or a preset "
            f"({', '.join(FAMILIES)})"
        )
    return ChatTemplate(name, tokenizer, system)


def _read(spec: str | Path, side: Side) -> str:
    try:
        return Path(spec).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise PromptError(
            f"the {side} template {str(spec)!r} is not 'chat', not a preset ({', '.join(FAMILIES)}), contains no "
            f"{PLACEHOLDER}, and cannot be read as a file: {error}"
        ) from error


# Tokens ----------------------------------------------------------------------------------------------------------


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, with the tokens that the tokenizer adds before a text (once) and none that it adds after."""
    plain = _token_ids(tokenizer, text, special=False)
    full = _token_ids(tokenizer, text, special=True)
    extra = len(full) - len(plain)
    start = next((i for i in range(extra + 1) if full[i : i + len(plain)] == plain), 0)
    prefix = full[:start]
    return plain if prefix and plain[:start] == prefix else prefix + plain


def _token_ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def _need_tokenizer(tokenizer: Any, what: str) -> None:
    if tokenizer is None:
        raise PromptError(
            f"{what} needs a tokenizer, and the checkpoint has none. Put its tokenizer files into the checkpoint's "
            "folder, or pass RenderedPrompt(base_ids=…, aligned_ids=…)"
        )


def _name_of(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def _short(prompt: Any) -> str:
    text = repr(prompt)
    return text if len(text) <= 60 else text[:57] + "…"


@dataclass(frozen=True)
class Renderer:
    """Both templates: prompt → RenderedPrompt. A RenderedPrompt is returned unchanged."""

    base_template: Template
    aligned_template: Template

    def __call__(self, prompt: Prompt) -> RenderedPrompt:
        """Render for both sides; a PromptError says which side failed."""
        if isinstance(prompt, RenderedPrompt):
            return prompt
        return RenderedPrompt(
            self._side("base", self.base_template, prompt),
            self._side("aligned", self.aligned_template, prompt),
        )

    @staticmethod
    def _side(side: Side, template: Template, prompt: str | Sequence[Message]) -> tuple[int, ...]:
        try:
            return template(prompt)
        except PromptError as error:
            raise PromptError(f"{side} prompt: {error}") from error

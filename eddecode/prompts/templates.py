"""One prompt is rendered to two: the base model's and the aligned model's token ids.

A prompt is a string, a list of chat messages, or a `RenderedPrompt`, which is passed on unchanged. A template turns the
first two into the ids of one side: a plain text with `{prompt}` in it, a chat template (the checkpoint's own, or a
`.jinja` file), or a function. The text of a prompt is inserted literally: braces in it have no meaning, and special
tokens that are spelt in it stay text (`encoding`). What a chat template writes is compared with the prompt
(`rendering`); what a function returns is the caller's own.

The beginning-of-sequence (BOS) token is handled here and nowhere else. The output of a chat template is taken as it is,
with or without a BOS (as `apply_chat_template` does). A plain template gets the BOS that the tokenizer adds by default,
unless its text starts with it already. An end-of-sequence token that a tokenizer adds is left out, since the completion
follows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from eddecode.errors import PromptError
from eddecode.prompts.encoding import encode, encode_rendering, special_pattern, token_ids
from eddecode.prompts.end_of_turn import end_of_turn_ids
from eddecode.prompts.presets import FAMILIES, INSTRUCTION_TEMPLATE, Family
from eddecode.prompts.rendering import Rendering, chat_source, render_chat
from eddecode.prompts.template_process import variables_of
from eddecode.prompts.types import (
    Message,
    Prompt,
    RenderedPrompt,
    as_messages,
    check_characters,
    check_token_ids,
)

__all__ = [
    "CallableTemplate",
    "ChatTemplate",
    "PlainTemplate",
    "Renderer",
    "Template",
    "TemplateOptions",
    "TemplateSpec",
    "encode",
    "make_template",
]

PLACEHOLDER = "{prompt}"
JINJA_SUFFIXES = (".jinja", ".jinja2", ".j2")
Side = Literal["base", "aligned"]
_OWN_VARIABLES = frozenset({"messages", "add_generation_prompt"})


@dataclass(frozen=True)
class TemplateOptions:
    """How prompts are rendered, the same for both sides.

    Attributes:
        variables: for chat templates, such as {"enable_thinking": False}; of JSON types.
        fold_system: where a chat template takes no system message, its text is put before the first user message.
        prefill: text with which the assistant's turn begins; both models read it, and the completion follows. Special
            tokens in it are tokens.
        escape_specials: special tokens that are spelt in a prompt stay text.
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    fold_system: bool = False
    prefill: str = ""
    escape_specials: bool = True

    def __post_init__(self) -> None:
        check_characters(self.prefill, "prefill")


# Templates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """Renders a prompt to the token ids of one side; `text` is the rendered text before tokenization.

    `name` says where the template came from; a run records it.
    """

    name: str
    tokenizer: Any

    def render(self, prompt: str | Sequence[Message]) -> Rendering:
        """The rendered prompt before tokenization, and where in it the text of messages lies."""
        raise NotImplementedError

    def text(self, prompt: str | Sequence[Message]) -> str:
        """The rendered prompt, before tokenization."""
        return self.render(prompt).text

    def __call__(self, prompt: str | Sequence[Message]) -> tuple[int, ...]:
        """The token ids, with the BOS token once where the side has one."""
        raise NotImplementedError

    def _non_empty(self, ids: Sequence[int], prompt: str | Sequence[Message]) -> tuple[int, ...]:
        if not ids:
            raise PromptError(
                f"the template {self.name!r} renders {_short(prompt)} to no tokens; expected text"
            )
        return tuple(ids)


@dataclass(frozen=True)
class TextTemplate(Template):
    """A template that writes text and knows where in it the prompt is."""

    options: TemplateOptions = field(default_factory=TemplateOptions, kw_only=True)

    @cached_property
    def _specials(self) -> re.Pattern[str] | None:
        return special_pattern(self.tokenizer) if self.options.escape_specials else None

    def _encode(self, prompt: str | Sequence[Message], *, add_prefix: bool) -> tuple[int, ...]:
        rendering = self.render(prompt)
        ids = encode_rendering(self.tokenizer, rendering, self._specials, add_prefix=add_prefix)
        return self._non_empty(ids, prompt)


@dataclass(frozen=True)
class PlainTemplate(TextTemplate):
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

    def render(self, prompt: str | Sequence[Message]) -> Rendering:
        """The template with the prompt in it, one copy per user message."""
        before, after = self.template.split(PLACEHOLDER)
        text, spans = "", []
        for message in as_messages(prompt):
            is_user = message["role"] == "user"
            text += before if is_user else ""
            spans.append((len(text), len(text) + len(message["content"])))
            text += message["content"] + (after if is_user else "\n\n")
        return Rendering(text + self.options.prefill, tuple(spans))

    def __call__(self, prompt: str | Sequence[Message]) -> tuple[int, ...]:
        """The token ids, with the BOS that the tokenizer adds, once."""
        return self._encode(prompt, add_prefix=True)


@dataclass(frozen=True)
class ChatTemplate(TextTemplate):
    """A chat template: the tokenizer's own, exactly as `apply_chat_template` renders it, or another one.

    system: a system prompt, added if the messages have none. user_prefix, suffix: text before the last user message
    and after the rendered chat (two families of the paper need them). source: a Jinja template; None: the tokenizer's.
    """

    system: str | None = None
    user_prefix: str = ""
    suffix: str = ""
    source: str | None = None

    def render(self, prompt: str | Sequence[Message]) -> Rendering:
        """The chat as text, up to the beginning of the assistant's turn."""
        messages = as_messages(prompt)
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        messages[-1] = {**messages[-1], "content": self.user_prefix + messages[-1]["content"]}
        chat = render_chat(
            self.tokenizer,
            messages,
            source=self.source,
            variables=self.options.variables,
            fold_system=self.options.fold_system,
        )
        return replace(chat, text=chat.text + self.suffix + self.options.prefill)

    def __call__(self, prompt: str | Sequence[Message]) -> tuple[int, ...]:
        """The token ids; only the chat template decides about the BOS."""
        return self._encode(prompt, add_prefix=False)

    @property
    def variables(self) -> frozenset[str]:
        """The names of the variables that the template reads."""
        return variables_of(chat_source(self.tokenizer) if self.source is None else self.source)

    def end_of_turn_ids(self) -> tuple[int, ...]:
        """The ids by which the template ends the assistant's turn."""
        return end_of_turn_ids(self.tokenizer, self.source)


@dataclass(frozen=True)
class CallableTemplate(Template):
    """A function of the prompt that returns text, or token ids (used unchanged).

    prefill: as in `TemplateOptions`.
    """

    function: Callable[[Any], str | Sequence[int]]
    prefill: str = ""

    def render(self, prompt: str | Sequence[Message]) -> Rendering:
        """The text that the function returns, or the decoded token ids."""
        rendered = self.function(prompt)
        text = rendered if isinstance(rendered, str) else str(self.tokenizer.decode(list(rendered)))
        return Rendering(text + self.prefill)

    def __call__(self, prompt: str | Sequence[Message]) -> tuple[int, ...]:
        """The token ids of what the function returns."""
        as_messages(prompt)
        rendered = self.function(prompt)
        if isinstance(rendered, str):
            _need_tokenizer(self.tokenizer, "a template that returns text")
            return self._non_empty(encode(self.tokenizer, rendered + self.prefill), prompt)
        ids = check_token_ids(rendered, f"what the template {self.name!r} returned")
        return (*ids, *token_ids(self.tokenizer, self.prefill)) if self.prefill else ids


TemplateSpec: TypeAlias = str | Path | Callable[[Any], str | Sequence[int]] | Template | None


def make_template(
    spec: TemplateSpec,
    tokenizer: Any,
    side: Side,
    *,
    system: str | None = None,
    options: TemplateOptions | None = None,
) -> Template:
    """Build one side's template.

    Args:
        spec: None (base: a plain instruction template; aligned: its chat template), "chat", the name of a preset in
            `eddecode.prompts.presets.FAMILIES`, a text that contains `{prompt}`, the path of a file with such a text
            (used byte for byte, including a final newline), the path of a Jinja chat template (`.jinja`), a function
            from the prompt to text or token ids, or a Template.
        tokenizer: of that side.
        side: "base" or "aligned".
        system: a system prompt for a chat template.
        options: of the rendering.

    Raises:
        PromptError: no such template, or one that cannot be used with this tokenizer.
    """
    options = options or TemplateOptions()
    if isinstance(spec, Template):
        return spec
    if callable(spec):
        name = getattr(spec, "__name__", type(spec).__name__)
        return CallableTemplate(name, tokenizer, spec, options.prefill)
    _need_tokenizer(tokenizer, f"a template for the {side} model")
    source = _Source(tokenizer, side, system, options)
    if spec is None:
        spec = "chat" if side == "aligned" else "instruction"
    if isinstance(spec, str) and spec in FAMILIES:
        return source.family(FAMILIES[spec])
    if spec in ("chat", "instruction"):
        return source.chat("chat") if spec == "chat" else source.plain("instruction", INSTRUCTION_TEMPLATE)
    if isinstance(spec, str) and PLACEHOLDER in spec:
        return source.plain("text", spec)
    text, is_jinja = _read(spec, side), Path(spec).suffix.lower() in JINJA_SUFFIXES
    return source.chat(str(spec), text) if is_jinja else source.plain(str(spec), text)


@dataclass(frozen=True)
class _Source:
    """What `make_template` needs for any template of one side."""

    tokenizer: Any
    side: Side
    system: str | None
    options: TemplateOptions

    def family(self, family: Family) -> Template:
        """The template of a family of the paper."""
        text = family.base_template if self.side == "base" else family.aligned_template
        if text != "chat":
            return self.plain(family.name, text)
        return replace(self.chat(family.name), user_prefix=family.user_prefix, suffix=family.suffix)

    def plain(self, name: str, text: str) -> PlainTemplate:
        """A text with `{prompt}`."""
        if self.system is not None:
            raise PromptError(
                f"a system prompt was given for the plain {self.side} template {name!r}; write it into the template, "
                "or use the chat template"
            )
        return PlainTemplate(name, self.tokenizer, text, options=self.options)

    def chat(self, name: str, source: str | None = None) -> ChatTemplate:
        """A chat template; without a source, the tokenizer's own."""
        if source is None and not getattr(self.tokenizer, "chat_template", None):
            raise PromptError(
                f"the tokenizer of the {self.side} model ({_name_of(self.tokenizer)}) has no chat template. Give one: "
                f"{self.side}_template= or --{self.side}-template with a text or a file that contains {PLACEHOLDER}, "
                f"a .jinja file, or a preset ({', '.join(FAMILIES)})"
            )
        return ChatTemplate(name, self.tokenizer, self.system, source=source, options=self.options)


def _read(spec: str | Path, side: Side) -> str:
    try:
        return Path(spec).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise PromptError(
            f"the {side} template {str(spec)!r} is not 'chat', not a preset ({', '.join(FAMILIES)}), contains no "
            f"{PLACEHOLDER}, and cannot be read as a file: {error}"
        ) from error


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

    def end_of_turn_ids(self) -> dict[str, frozenset[int]]:
        """Side → the ids by which its chat template ends the assistant's turn; none for other templates."""
        sides = {"base": self.base_template, "aligned": self.aligned_template}
        return {
            side: frozenset(template.end_of_turn_ids() if isinstance(template, ChatTemplate) else ())
            for side, template in sides.items()
        }

    def checked(self, variables: Mapping[str, Any]) -> Renderer:
        """The renderer itself; PromptError if no chat template of it reads one of the variables."""
        chats = [
            each for each in (self.base_template, self.aligned_template) if isinstance(each, ChatTemplate)
        ]
        read = frozenset().union(*(chat.variables for chat in chats))
        for name in variables:
            if name not in read:
                known = ", ".join(sorted(read - _OWN_VARIABLES)) or "none but the messages"
                raise PromptError(
                    f"the template variable {name!r} was given and no chat template reads it (they read {known}); "
                    "leave it out, or give a template that reads it"
                )
        return self

    @staticmethod
    def _side(side: Side, template: Template, prompt: str | Sequence[Message]) -> tuple[int, ...]:
        try:
            return template(prompt)
        except PromptError as error:
            raise PromptError(f"{side} prompt: {error}") from error

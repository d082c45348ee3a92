"""Prompts and templates: one prompt is rendered to the token ids of each model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from eddecode.prompts.templates import (
        CallableTemplate,
        ChatTemplate,
        PlainTemplate,
        Renderer,
        Template,
        TemplateSpec,
        encode,
        make_template,
    )
    from eddecode.prompts.types import Message, Prompt, RenderedPrompt, as_messages

_HOMES = {
    "CallableTemplate": "eddecode.prompts.templates",
    "ChatTemplate": "eddecode.prompts.templates",
    "Message": "eddecode.prompts.types",
    "PlainTemplate": "eddecode.prompts.templates",
    "Prompt": "eddecode.prompts.types",
    "RenderedPrompt": "eddecode.prompts.types",
    "Renderer": "eddecode.prompts.templates",
    "Template": "eddecode.prompts.templates",
    "TemplateSpec": "eddecode.prompts.templates",
    "as_messages": "eddecode.prompts.types",
    "encode": "eddecode.prompts.templates",
    "make_template": "eddecode.prompts.templates",
}

__all__ = [
    "CallableTemplate",
    "ChatTemplate",
    "Message",
    "PlainTemplate",
    "Prompt",
    "RenderedPrompt",
    "Renderer",
    "Template",
    "TemplateSpec",
    "as_messages",
    "encode",
    "make_template",
]

__getattr__ = lazy_exports(__name__, _HOMES)

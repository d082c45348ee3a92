"""Prompts and templates: one prompt is rendered to the token ids of each model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from eddecode.prompts.encoding import encode
    from eddecode.prompts.rendering import Rendering, render_chat
    from eddecode.prompts.templates import (
        CallableTemplate,
        ChatTemplate,
        PlainTemplate,
        Renderer,
        Template,
        TemplateOptions,
        TemplateSpec,
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
    "Rendering": "eddecode.prompts.rendering",
    "Template": "eddecode.prompts.templates",
    "TemplateOptions": "eddecode.prompts.templates",
    "TemplateSpec": "eddecode.prompts.templates",
    "as_messages": "eddecode.prompts.types",
    "encode": "eddecode.prompts.encoding",
    "make_template": "eddecode.prompts.templates",
    "render_chat": "eddecode.prompts.rendering",
}

__all__ = [
    "CallableTemplate",
    "ChatTemplate",
    "Message",
    "PlainTemplate",
    "Prompt",
    "RenderedPrompt",
    "Renderer",
    "Rendering",
    "Template",
    "TemplateOptions",
    "TemplateSpec",
    "as_messages",
    "encode",
    "make_template",
    "render_chat",
]

__getattr__ = lazy_exports(__name__, _HOMES)

"""Every error that eddecode raises on purpose.

One root class, so that a caller can catch all of them with a single `except`. A message says what was found, what was
expected, and what to do about it. Errors about one prompt, one row of a batch or one model carry these as fields, and
the message is made from the fields when it is read. So a caller with a better name for the prompt (the audit uses its
number in the file) sets a field instead of rewriting a text.
"""

from __future__ import annotations


class EddecodeError(Exception):
    """Root of all errors that eddecode raises on purpose."""


class PairError(EddecodeError):
    """Two checkpoints cannot be loaded, or cannot be decoded against each other."""


class ParamsError(EddecodeError, ValueError):
    """A sampling parameter is out of its range."""


class PromptRelatedError(EddecodeError):
    """An error that may concern one prompt of a call; the message then begins with that prompt.

    Attributes:
        reason: what is wrong and what to do, without the place.
        prompt_index: position of the prompt in the call; None if the error concerns no single prompt of a call.
        sample: which of the prompt's samples; None if it concerns all of them.
        prompt_name: how the message calls the prompt; None stands for "prompt" and its index.
    """

    def __init__(self, reason: str, *, prompt_index: int | None = None, sample: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.prompt_index = prompt_index
        self.sample = sample
        self.prompt_name: str | None = None

    def __str__(self) -> str:
        where = self._where()
        return f"{where}: {self._reason()}" if where else self._reason()

    def _reason(self) -> str:
        return self.reason

    def _where(self) -> str:
        if self.prompt_index is None:
            return ""
        name = self.prompt_name or f"prompt {self.prompt_index}"
        return name if self.sample is None else f"{name}, sample {self.sample}"


class PromptError(PromptRelatedError):
    """A prompt or a template cannot be turned into token ids for both models."""


class ContextError(PromptRelatedError):
    """A request does not fit into the context window of one of the models."""


class EngineError(PromptRelatedError):
    """Decoding cannot go on: non-finite logits, an unsupported architecture, no memory for one row.

    The sampling kernels identify a row by its index in the batch and a model by its index in the group. The engine
    replaces both by names, see `named`.

    Attributes:
        row: index of the row in the batch of the failed call, if it concerns one row.
        model: the model that it concerns, by its name or its index; `{model}` in `reason` stands for it.
        position: number of tokens of the completion before the failed one.
    """

    def __init__(
        self,
        reason: str,
        *,
        row: int | None = None,
        model: int | str | None = None,
        prompt_index: int | None = None,
        sample: int | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(reason, prompt_index=prompt_index, sample=sample)
        self.row = row
        self.model = model
        self.position = position

    def named(self, prompt_index: int, sample: int, position: int, models: tuple[str, ...]) -> EngineError:
        """The same error with the request's fields, and with the model's name in the place of its index."""
        model = models[self.model] if isinstance(self.model, int) else self.model
        return EngineError(
            self.reason,
            row=self.row,
            model=model,
            prompt_index=prompt_index,
            sample=sample,
            position=position,
        )

    def _reason(self) -> str:
        model = f"model {self.model}" if isinstance(self.model, int) else f"the {self.model} model"
        return self.reason.replace("{model}", model)

    def _where(self) -> str:
        if self.prompt_index is None:
            return "" if self.row is None else f"row {self.row}"
        where = super()._where()
        return where if self.position is None else f"{where}, after {self.position} tokens"


class JudgeError(EddecodeError):
    """A judge cannot be built, or cannot judge what it was given."""


class StoreError(EddecodeError):
    """A run folder cannot be opened, read or written."""


class ConfigError(EddecodeError):
    """An audit's configuration is invalid, or contradicts an existing run."""


class UnsupportedLayersError(EngineError):
    """A kind of layer that a faster way of decoding cannot serve; the runner then takes a slower one."""

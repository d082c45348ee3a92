"""The workshop: trains what a recipe says, once, and keeps it.

A trained model lies in a folder named by its recipe's digest, and appears there whole or not at all: it is written
beside it and renamed. So a rerun costs nothing, and a run that was killed goes on where it stopped. A lock per model
lets two processes share a workshop: the second waits for the first instead of training the same model again; the
system lets go of a killed process's lock.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from eddecode.errors import EddecodeError
from eddecode.experiments.recipes import Recipe, described
from eddecode.experiments.tokenizer import train_tokenizer, with_chat_template
from eddecode.utils.files import atomic_write

TOKENIZER_SEED = 0
"""One tokenizer for all models of a workshop, so that any two can be contrasted."""

Report = Callable[[str, int, int], None]
"""Called as (what is being done, steps done, steps in all)."""


class Workshop:
    """Models by recipe, and results by key, under one folder.

    Args:
        folder: made if need be; holds `models/` and `measured/`.
        report: told how training proceeds.
    """

    def __init__(self, folder: Path, report: Report | None = None) -> None:
        self.folder = folder
        self.report = report
        self._held: dict[str, LlamaForCausalLM] = {}
        for name in ("models", "measured", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of every model here, with the aligned models' chat template."""
        return _tokenizer()

    def model(self, recipe: Recipe) -> LlamaForCausalLM:
        """The trained model, in eval mode: from memory, from its folder, or trained now. Not to be changed."""
        key = recipe.digest
        if key not in self._held:
            folder = self.folder / "models" / key
            with self._alone(key):
                if not folder.exists():
                    self._make(recipe, folder)
            self._held[key] = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return self._held[key]

    def cost(self, recipe: Recipe) -> dict[str, float]:
        """What training this model alone took (not its ancestors): {"seconds" of one core}."""
        self.model(recipe)
        facts = json.loads((self.folder / "models" / recipe.digest / "recipe.json").read_text("utf-8"))
        return {"seconds": float(facts["seconds"])}

    def forget(self) -> None:
        """Let go of the models in memory."""
        self._held.clear()

    def has(self, key: str) -> bool:
        """Whether something is kept under this key."""
        return self._path(key).exists()

    def kept(self, key: str) -> Any:
        """The JSON data kept under this key."""
        return json.loads(self._path(key).read_text("utf-8"))

    def keep(self, key: str, data: Any) -> Any:
        """Keep JSON data under this key, whole or not at all; returns it as it will be read back."""
        atomic_write(self._path(key), json.dumps(data))
        return self.kept(key)

    def _path(self, key: str) -> Path:
        return self.folder / "measured" / f"{key}.json"

    def _make(self, recipe: Recipe, folder: Path) -> None:
        began, inside = time.process_time(), [0.0]

        def ancestor(other: Recipe) -> LlamaForCausalLM:
            at = time.process_time()
            model = self.model(other).requires_grad_(True)  # one that was decoded has been frozen
            inside[0] += time.process_time() - at
            return model

        def progress(step: int, steps: int, _loss: float) -> None:
            if self.report is not None:
                self.report(recipe.said, step, steps)

        model = recipe.train(ancestor, self.tokenizer, progress)
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        facts = {"seconds": time.process_time() - began - inside[0], "recipe": described(recipe)}
        (unfinished / "recipe.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        unfinished.rename(folder)

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        lock = FileLock(self.folder / "locks" / key)
        try:
            lock.acquire()
        except OSError as error:
            raise EddecodeError(
                f"cannot write into {self.folder} ({error.strerror}); choose another --out"
            ) from error
        try:
            yield
        finally:
            lock.release()


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return with_chat_template(train_tokenizer(TOKENIZER_SEED))

"""The model cache: trains the model of a recipe once, and keeps it on disk with what was measured on it.

A trained model is stored in a folder named after the digest of its recipe. It is written to a folder beside it and then
renamed, so it is there completely or not at all: a rerun trains nothing, and a run that was killed continues where it
stopped. A file lock per model lets several processes share a cache: the second process waits for the first instead of
training the same model again. The operating system releases the lock of a process that was killed.
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
from eddecode.experiments.recipes import TrainingRecipe, recipe_to_json
from eddecode.experiments.tokenizer import train_tokenizer, with_chat_template
from eddecode.utils.files import atomic_write

TOKENIZER_SEED = 0
"""All models of a cache have one tokenizer, so that any two can be contrasted."""

ProgressCallback = Callable[[str, int, int], None]
"""Called as (what is being done, steps done, steps in total)."""


class ModelCache:
    """Models by recipe, and measurements by key, in one folder.

    Args:
        folder: created if it does not exist; holds `models/`, `measured/` and `locks/`.
        report: called with the progress of training.
    """

    def __init__(self, folder: Path, report: ProgressCallback | None = None) -> None:
        self.folder = folder
        self.report = report
        self._loaded: dict[str, LlamaForCausalLM] = {}
        for name in ("models", "measured", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    # Models ---------------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of all models, with the chat template of the aligned ones."""
        return _tokenizer()

    def model(self, recipe: TrainingRecipe) -> LlamaForCausalLM:
        """The trained model (float32, eval mode): from memory, from its folder, or trained now. Do not change it.

        Raises:
            EddecodeError: the folder cannot be written to.
        """
        key = recipe.digest
        if key not in self._loaded:
            folder = self._folder(recipe)
            with self._lock(key):
                if not folder.exists():
                    self._train(recipe, folder)
            self._loaded[key] = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return self._loaded[key]

    def training_seconds(self, recipe: TrainingRecipe) -> float:
        """Seconds of one core that training this model took, without the models it starts from."""
        self.model(recipe)
        return float(json.loads((self._folder(recipe) / "recipe.json").read_text("utf-8"))["seconds"])

    def all_training_seconds(self) -> list[float]:
        """`training_seconds` of every model in the folder."""
        files = sorted((self.folder / "models").glob("*/recipe.json"))
        return [float(json.loads(file.read_text("utf-8"))["seconds"]) for file in files]

    def _folder(self, recipe: TrainingRecipe) -> Path:
        return self.folder / "models" / recipe.digest

    def _train(self, recipe: TrainingRecipe, folder: Path) -> None:
        began, in_ancestors = time.process_time(), 0.0

        def ancestor(other: TrainingRecipe) -> LlamaForCausalLM:
            nonlocal in_ancestors
            start = time.process_time()
            model = self.model(other).requires_grad_(True)  # sampling freezes the weights of a model
            in_ancestors += time.process_time() - start
            return model

        def progress(step: int, steps: int, _loss: float) -> None:
            if self.report is not None:
                self.report(recipe.label, step, steps)

        model = recipe.train(ancestor, self.tokenizer, progress)
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        facts = {"seconds": time.process_time() - began - in_ancestors, "recipe": recipe_to_json(recipe)}
        (unfinished / "recipe.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        unfinished.rename(folder)

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        lock = FileLock(self.folder / "locks" / key)
        try:
            lock.acquire()
        except OSError as error:
            raise EddecodeError(
                f"cannot write to {self.folder} ({error.strerror}); choose another folder with --out"
            ) from error
        try:
            yield
        finally:
            lock.release()

    # Measurements ---------------------------------------------------------------------------------------------------

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def load(self, key: str) -> Any:
        """The JSON data stored under a key."""
        return json.loads(self._path(key).read_text("utf-8"))

    def store(self, key: str, data: Any) -> None:
        """Store JSON data under a key, completely or not at all."""
        atomic_write(self._path(key), json.dumps(data))

    def _path(self, key: str) -> Path:
        return self.folder / "measured" / f"{key}.json"


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return with_chat_template(train_tokenizer(TOKENIZER_SEED))

"""The mutant corpus: hundreds of damaged, edited and odd checkpoints. Each is a clear error, or it decodes right.

What is right is decided by a reading of the folder that shares nothing with the loader: the model is built from
config.json, its weights are read by safetensors' numpy reader and put in strictly, and both models run from scratch for
every token. The result is recorded in docs/reliability.md (`python tests/models/test_mutants.py` prints it).
"""

from __future__ import annotations

import copy
import json
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from eddecode import ModelPair, Sampler, SamplingParams
from eddecode.errors import EddecodeError
from eddecode.models import load_group
from eddecode.models.checkpoint import Checkpoint, open_checkpoint
from eddecode.prompts.types import RenderedPrompt
from helpers import tiny
from helpers.mutants import Mutant, mutants

SECONDS = 10  # a mutant that takes longer hangs
HANGS = "hangs"
PROMPT = RenderedPrompt([1, 20, 30, 40], [1, 50, 60])
PARAMS = SamplingParams(alpha=0.5, temperature=0.0, max_new_tokens=4, ignore_eos=True)
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


# What a loader that is only strict would refuse.
MUST_LOAD = (
    "rms_norm_eps = '1e-05'",
    "hidden_act = 'gelu'",
    "as float64",
    "every file is a link",
    "config.json with CRLF",
    "settings missing",
    "lora_alpha = '16'",
    "an adapter's configuration beside",
)


class Hang(BaseException):
    """Not an Exception, so that no handler on the way takes it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def sound_checkpoints(folder: Path) -> dict[str, Path]:
    """base, and the sound checkpoints that mutants are copied from."""
    base, plain = tiny.save_pair(folder / "plain", **SHAPE)
    made = {"base": base, "plain": plain}
    made["sharded"] = tiny.save_pair(folder / "sharded", shard="30KB", **SHAPE)[1]
    made["bfloat16"] = tiny.save_pair(folder / "bfloat16", dtype=torch.bfloat16, **SHAPE)[1]
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(tiny.tiny_model(**SHAPE), config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder / "adapter")
    tiny.tiny_tokenizer().save_pretrained(folder / "adapter")
    made["adapter"] = folder / "adapter"
    return made


def outcome(mutant: Mutant, sound: dict[str, Path], folder: Path) -> str:
    """ "error", "right", or what is wrong.

    What takes too long is tried once more with six times the time: on a machine that others use, anything may wait.
    """
    found = attempt(mutant, sound, folder, SECONDS)
    return (
        found
        if found != HANGS
        else attempt(mutant, sound, folder.with_name(f"{folder.name}-again"), 6 * SECONDS)
    )


def attempt(mutant: Mutant, sound: dict[str, Path], folder: Path, seconds: float) -> str:
    """As `outcome`, within a time."""
    path = mutant.make(sound[mutant.source], folder)
    try:
        with time_limit(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pair = ModelPair.load(sound["base"], path, device="cpu")
            found = Sampler(pair, base_template="{prompt}").generate(PROMPT, PARAMS)[0].token_ids
    except EddecodeError as error:
        text = str(error)
        clear = len(text) > 40 and "\n" not in text and "Traceback" not in text
        return "error" if clear else f"an error that is not clear: {text[:300]!r}"
    except Hang:
        return HANGS
    except Exception as error:
        return f"a traceback: {type(error).__name__}: {str(error)[:200]}"
    try:
        expected = naive(sound, sound[mutant.source] if mutant.keeps_tokens else path, pair)
    except Exception as error:
        return f"accepted, and no model can be read from it: {type(error).__name__}: {str(error)[:200]}"
    return "right" if found == expected else f"accepted, and decodes {found} instead of {expected}"


@torch.inference_mode()
def naive(sound: dict[str, Path], aligned: Path, pair: ModelPair) -> list[int]:
    """The tokens of a greedy contrast, recomputed from scratch with models that were read independently."""
    base = read_base(sound["base"])
    is_adapter = not (aligned / "config.json").exists()
    other = read_adapter(sound["base"], aligned) if is_adapter else read_model(aligned)
    texts, tokens = [list(ids) for ids in PROMPT.ids], []
    for _ in range(PARAMS.max_new_tokens):
        z, w = (
            model(torch.tensor([text]), use_cache=False).logits[0, -1, : len(pair.vocabulary)].double()
            for model, text in zip((base, other), texts, strict=True)
        )
        contrast = (1.5 * z - 0.5 * w).masked_fill(~pair.vocabulary, -torch.inf)
        if contrast.isnan().any():
            raise ValueError("the logits are no numbers")
        tokens.append(int(contrast.argmax()))
        for text in texts:
            text.append(tokens[-1])
    return tokens


@cache
def read_base(path: Path) -> Any:
    """The base of all mutants, read once."""
    return read_model(path)


def read_model(path: Path) -> Any:
    """A model from config.json and every tensor of the files, strictly; in float32 after rounding as configured."""
    config = AutoConfig.from_pretrained(path)
    model = AutoModelForCausalLM.from_config(config)
    index = path / "model.safetensors.index.json"
    files = [path / "model.safetensors"]
    if not files[0].exists():
        files = [path / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    tensors = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    if config.tie_word_embeddings:
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    if not all(tensor.is_floating_point() for tensor in tensors.values()):
        raise ValueError("weights that are no floating-point numbers")
    model.load_state_dict({name: tensor.to(config.dtype or tensor.dtype) for name, tensor in tensors.items()})
    return model.float().eval()


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return {name: torch.from_numpy(np.array(tensor)) for name, tensor in load_file(file).items()}
    except (TypeError, AttributeError, KeyError):  # numpy has no bfloat16
        from safetensors.torch import load_file as load_torch

        return dict(load_torch(file))


def read_adapter(base: Path, adapter: Path) -> Any:
    """PEFT's own unmerged model."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        return peft.PeftModel.from_pretrained(read_model(base), str(adapter)).eval()


@contextmanager
def base_loaded_once(base: Path) -> Iterator[None]:
    """The base of all mutants is loaded once, and each has a copy; what differs is the aligned side."""
    load_model, read_tokenizer = load_group.load_model, load_group.read_tokenizer
    loaded: list[Any] = []

    def model_of(checkpoint: Checkpoint, config: Any) -> Any:
        if checkpoint.path != base:
            return load_model(checkpoint, config)
        if not loaded:
            loaded.append(load_model(checkpoint, config))
        return copy.deepcopy(loaded[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_group, "load_model", model_of)
        tokenizer = read_tokenizer(open_checkpoint(base, "base"))
        patch.setattr(
            load_group, "read_tokenizer", lambda own: tokenizer if own.path == base else read_tokenizer(own)
        )
        yield


def run_corpus(seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """(how many mutants have each outcome, what was wrong)."""
    sound = sound_checkpoints(folder)
    counts: Counter[str] = Counter()
    wrong = []
    with base_loaded_once(sound["base"]):
        for i, mutant in enumerate(mutants(seed)):
            found = outcome(mutant, sound, folder / str(i))
            if found == "error" and mutant.name.partition(": ")[2] in MUST_LOAD:
                found = "refused, and it is sound"
            if found not in ("error", "right"):
                wrong.append(f"{mutant.name}: {found}")
            counts[found if found in ("error", "right") else "wrong"] += 1
    return counts, wrong


@pytest.mark.slow
def test_every_mutant_is_an_error_or_right(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    counts, wrong = run_corpus(0, tmp_path)
    assert wrong == []
    assert counts.total() >= 300
    assert counts["right"] > 50  # a loader that refuses everything would pass, too
    assert counts["error"] > 150


if __name__ == "__main__":
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        counted, faults = run_corpus(int(sys.argv[1]) if len(sys.argv) > 1 else 0, Path(temporary))
    print("\n".join(faults))
    print(
        f"{counted.total()} mutants in {time.monotonic() - began:.0f} s: {counted['error']} clear errors, "
        f"{counted['right']} right, {counted['wrong']} wrong"
    )

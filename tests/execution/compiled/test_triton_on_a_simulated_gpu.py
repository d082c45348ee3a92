"""Pairs with layers in Triton on a simulated CUDA device: launches, streams and captures around the kernels.

In Triton's interpreter only; `tests/kernels/test_interpreter.py` starts it. See `helpers.simulated`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from eddecode import ModelPair, Sampler
from eddecode.engine.speculative import planner
from eddecode.execution import self_check
from eddecode.execution.pair_loop import PairLoop
from eddecode_kernels import triton_trial
from helpers import decoding, reference
from helpers.interpreter import INTERPRETED
from helpers.simulated import simulated_cuda

pytestmark = pytest.mark.skipif(
    not INTERPRETED, reason="tests/kernels/test_interpreter.py runs this one in Triton's interpreter"
)
SHAPE: dict[str, Any] = {
    **{"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8},
    **{
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
    },
}
FAMILIES = {"llama": LlamaConfig(**SHAPE), "mixtral": MixtralConfig(**SHAPE, num_local_experts=3)}
PROMPTS = [decoding.prompt(0, 3, 5, 40), decoding.prompt(1, 4, 2, 40)]
GREEDY = decoding.GREEDY.replace(alpha=0.8, max_new_tokens=4)


@pytest.fixture(autouse=True)
def _on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The trials of a device are tested elsewhere and take long; what fails is a warning, hence an error."""
    for name in ("failure", "attention_failure", "experts_failure"):
        monkeypatch.setattr(triton_trial, name, lambda *_: None)
    monkeypatch.setattr(self_check, "PREFIXES", (1, 5, 2))
    monkeypatch.setattr(planner, "LENGTHS", (1,))
    with simulated_cuda(), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # of the interpreter's numpy
        warnings.filterwarnings("ignore", message="CUDA reports that you have")
        yield


def models_of(arch: str) -> list[Any]:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(FAMILIES[arch], dtype=torch.float32).eval().requires_grad_(False)
    aligned = copy.deepcopy(base)
    for parameter in aligned.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return [base, aligned]


@pytest.mark.parametrize(("arch", "speculation"), [("llama", "base"), ("mixtral", "off")])
def test_tokens_are_those_of_plain_forward_passes(
    arch: str, speculation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = models_of(arch)
    expected = [reference.generate(plain, prompt.ids, 0.8, 4).ids for prompt in PROMPTS]
    launched: list[PairLoop] = []
    launch = PairLoop.launch
    monkeypatch.setattr(PairLoop, "launch", lambda loop: launched.append(loop) or launch(loop))
    pair = ModelPair.from_models(*(model.to("cuda:0") for model in models_of(arch)))
    made = Sampler(pair, speculation=speculation)
    assert decoding.tokens(made.generate(PROMPTS, GREEDY)) == expected
    assert [(each.compiled_layers, each.captured, each.batch_invariant) for each in made.execution] == [
        (1, True, True)
    ] * 2
    assert launched

"""Steps that cannot be captured: refused with a reason, and decoded without graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from eddecode.errors import EngineError, UnsupportedLayersError
from eddecode.execution.capture import check_capturable
from eddecode.execution.cuda_graph import GraphModelRunner
from eddecode.execution.model_runner_factory import model_runner_for
from eddecode.execution.runner import CachedModelRunner
from eddecode.execution.uncached_runner import UncachedModelRunner
from eddecode.sampler import Sampler
from helpers import decoding, tiny
from helpers.graphs import Driver, captured_sampler
from helpers.tape import Tape

pytestmark = pytest.mark.usefixtures("on_a_tape")


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x * x.max().item(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x > 0],
        lambda x: x.nonzero().float(),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.where(x > 0)[0].float(),
        lambda x: torch.ones(3).repeat_interleave(torch.tensor([1, 2, 3])),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_the_capture_check_refuses_steps_that_depend_on_values(step: Any, inference: bool) -> None:
    x = torch.tensor([1.0, -2.0, 3.0])
    with (
        torch.inference_mode(inference),
        pytest.raises(UnsupportedLayersError, match="depends on the values"),
    ):
        check_capturable(lambda: step(x))


@torch.inference_mode()
def test_the_capture_check_accepts_steps_that_depend_on_shapes() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0]])

    def step() -> torch.Tensor:
        y = torch.where(x > 0, x, 0.0)[:, torch.tensor([2, 0])].masked_fill(x[:, :2] < 0, 9.0)
        y[torch.tensor([0]), torch.tensor([1])] = 5.0
        return y.reshape(2).flatten()

    assert check_capturable(step).tolist() == [3.0, 5.0]


def test_experts_in_a_python_loop_are_decoded_without_graphs() -> None:
    """Mixtral's plain implementation asks which experts were hit; the grouped one does not."""
    model = tiny.tiny_model("mixtral")
    assert isinstance(model_runner_for(model, "base", Tape), GraphModelRunner)
    model.set_experts_implementation("eager")
    with pytest.warns(
        UserWarning, match=r"base \(mixtral\): decoding by CUDA graphs failed: .* values of tensors"
    ):
        found = model_runner_for(model, "base", Tape)
    assert type(found) is CachedModelRunner


def test_a_capture_that_goes_wrong_is_not_used() -> None:
    class Stuck(Tape):
        """Plays back without having been told anything new."""

        def __call__(self) -> torch.Tensor:
            return self.logits

    with pytest.warns(UserWarning, match=r"aligned \(llama\): decoding by CUDA graphs was off by"):
        found = model_runner_for(tiny.tiny_model("llama"), "aligned", Stuck)
    assert type(found) is CachedModelRunner


def refuse(step: Any) -> Any:
    raise RuntimeError("CUDA error: operation not permitted\nmore of it")


REFUSED = r"the step of 2 rows over 8 positions cannot be captured \(CUDA error: operation not permitted\)"


def test_a_first_capture_that_fails_is_an_error() -> None:
    """The trial of a model ends with it."""
    texts = Driver(tiny.tiny_model("llama"), (3, 3))
    texts.model_runner.capture = refuse
    with pytest.raises(EngineError, match=REFUSED):
        texts.go()
    texts.model_runner.capture = Tape
    texts.go()  # nothing was counted as read


def test_after_a_later_capture_that_fails_steps_are_launched_from_python() -> None:
    """Of all runners of the model, and told once."""
    texts = Driver(tiny.tiny_model("llama"), (3,))
    texts.go()
    texts.model_runner.capture = refuse
    texts.enter(3)
    with pytest.warns(UserWarning, match=rf"llama: {REFUSED}; .* launched one by one from now on, .* slower"):
        texts.go()
    played = Tape.played
    texts.go()
    other = texts.model_runner.clone_empty()
    Driver(texts.model, (4,), other).go()
    assert Tape.played == played


def test_a_sampler_whose_later_captures_fail_goes_on_and_says_so() -> None:
    pair = decoding.pair("llama")
    prompts, params = decoding.mixed_prompts(3), decoding.GREEDY.replace(alpha=0.7)
    made = captured_sampler(pair)
    for model_runner in made.runner.model_runners:
        model_runner.capture = refuse  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="cannot be captured") as told:
        found = decoding.tokens(made.generate(prompts, params))
    assert found == decoding.tokens(Sampler(pair).generate(prompts, params))
    assert len([warning for warning in told if "cannot be captured" in str(warning.message)]) == 3
    for execution in made.execution:
        assert not execution.captured
        assert "operation not permitted" in execution.reason


def test_out_of_memory_during_a_capture_is_raised_to_the_engine() -> None:
    def refuse(step: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    texts = Driver(tiny.tiny_model("llama"), (3,))
    texts.model_runner.capture = refuse
    with pytest.raises(torch.OutOfMemoryError):
        texts.go()


def test_offloaded_weights_are_not_captured() -> None:
    from accelerate import cpu_offload

    model = tiny.tiny_model("llama")
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.warns(UserWarning, match=r"decoding by CUDA graphs failed: .*moved as they are needed"):
        model_runner_for(model, "base", Tape)


def test_models_without_a_usable_cache_are_recomputed() -> None:
    from transformers import MambaConfig

    config = MambaConfig(hidden_size=32, state_size=8, num_hidden_layers=2, vocab_size=97)
    model = AutoModelForCausalLM.from_config(config).eval()
    with (
        pytest.warns(UserWarning, match="decoding by CUDA graphs"),
        pytest.warns(UserWarning, match="recomputed for every token"),
    ):
        assert isinstance(model_runner_for(model, "base", Tape), UncachedModelRunner)


ROPE = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 24,
    },
}


@pytest.mark.parametrize("kind", list(ROPE))
def test_models_with_dynamic_rope_are_captured_right_or_refused(kind: str) -> None:
    """Captured or refused, by the version of transformers: within the window the logits are right either way."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": tiny.VOCAB, "initializer_range": 0.3, "pad_token_id": 0,
             "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    longest = {"max_position_embeddings": 64}
    config = {
        "dynamic": lambda: LlamaConfig(**shape, **longest, rope_parameters=ROPE[kind]),
        "longrope": lambda: Phi3Config(
            **shape, **longest, original_max_position_embeddings=24, rope_parameters=ROPE[kind]
        ),
    }[kind]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    texts = Driver(model, (3, 7))
    try:
        for _ in range(3):
            texts.go()
    except UnsupportedLayersError as refused:
        assert "depends on the values" in str(refused)  # noqa: PT017

"""Pairs on a CUDA device that is simulated: everything between the sampler and the kernels runs as it does on one.

Without Triton here (the models' own layers, captured); in its interpreter a pair runs with its layers, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eddecode.execution.lora_runner import LoraPairRunner
from eddecode.execution.pair_loop import PairLoop
from eddecode.models.pair import ModelPair
from eddecode.sampler import Sampler
from eddecode.sampling.access import Access
from eddecode.utils.memory import register_idle
from helpers import decoding, tiny
from helpers.graphs import adapted
from helpers.simulated import Simulation, simulated_cuda

PROMPTS = decoding.mixed_prompts(4)
GREEDY = decoding.GREEDY.replace(alpha=0.8, max_new_tokens=5)
FAMILIES = ("gemma2", "qwen2_moe")
SAMPLED = GREEDY.replace(temperature=1.0, top_p=0.9, top_k=20, min_p=0.01)
KINDS: dict[str, Any] = {
    "sampled": [
        SAMPLED.replace(alpha=alpha, max_new_tokens=3 + i) for i, alpha in enumerate((-1.0, 0.0, 0.7, 2.0))
    ],
    "penalties": GREEDY.replace(repetition_penalty=1.3),
    "forbidden": GREEDY.replace(min_new_tokens=4, suppress_tokens=tuple(range(10, 60))),
    "access": GREEDY.replace(access=Access(top_k=20)),
}


@pytest.fixture(scope="module")
def expected() -> dict[str, list[list[int]]]:
    """What a CPU gives, made before there is a GPU: greedy tokens by family, and those of the other kinds."""
    of_families = {
        arch: decoding.tokens(Sampler(decoding.pair(arch), max_slots=3).generate(PROMPTS, GREEDY))
        for arch in FAMILIES
    }
    made = Sampler(decoding.pair("llama"), max_slots=3)
    return of_families | {
        kind: decoding.tokens(made.generate(PROMPTS, params)) for kind, params in KINDS.items()
    }


@pytest.fixture(scope="module")
def cuda(expected: Any) -> Iterator[Simulation]:
    with simulated_cuda(devices=2) as made:
        yield made


@pytest.fixture(scope="module")
def samplers(cuda: Simulation) -> dict[str, Sampler]:
    """Over one pair, with each way of drafting."""
    pair = on_gpus("llama", "cuda:0", "cuda:0")
    return {way: Sampler(pair, max_slots=3, speculation=way) for way in ("off", "base", "ngram")}


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """A way that fails is a warning, and the next one gives the same tokens: it must not pass unseen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message="CUDA reports that you have"
        )  # where random numbers are kept
        yield


def on_gpus(arch: str, *devices: str) -> ModelPair:
    models = tiny.tiny_pair_models(arch, tiny.VOCAB, 0)
    return ModelPair.from_models(*(model.to(device) for model, device in zip(models, devices, strict=True)))


@pytest.mark.parametrize(
    ("kind", "speculation"),
    [("sampled", "ngram"), ("forbidden", "base"), ("penalties", "off"), ("access", "off")],
)
def test_completions_are_those_of_a_cpu(
    kind: str, speculation: str, samplers: dict[str, Sampler], expected: Any
) -> None:
    made = samplers[speculation]
    assert decoding.tokens(made.generate(PROMPTS, KINDS[kind])) == expected[kind]
    assert all(each.captured for each in made.execution)


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.usefixtures("cuda")
def test_other_families(arch: str, expected: Any) -> None:
    made = Sampler(on_gpus(arch, "cuda:0", "cuda:0"), max_slots=3)
    assert decoding.tokens(made.generate(PROMPTS, GREEDY)) == expected[arch]
    assert all(each.captured for each in made.execution)


@pytest.mark.usefixtures("cuda")
def test_each_model_on_a_gpu_of_its_own(expected: Any) -> None:
    made = Sampler(on_gpus("llama", "cuda:0", "cuda:1"), max_slots=3, speculation="base")
    assert decoding.tokens(made.generate(PROMPTS, KINDS["sampled"])) == expected["sampled"]
    assert [(each.device, each.captured) for each in made.execution] == [("cuda:0", True), ("cuda:1", True)]


@pytest.mark.usefixtures("cuda")
def test_an_adapter_and_its_base() -> None:
    made = Sampler(adapted("cuda:0"), max_slots=3)
    assert isinstance(made.runner, LoraPairRunner)
    on_the_cpu = Sampler(adapted(), max_slots=3)
    assert decoding.tokens(made.generate(PROMPTS, GREEDY)) == decoding.tokens(
        on_the_cpu.generate(PROMPTS, GREEDY)
    )


@pytest.mark.usefixtures("cuda")
def test_files_are_loaded_to_the_gpus_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Buffers:
        """Of a sampler that decodes nothing now."""

        dropped = False

        def release(self) -> None:
            self.dropped = True

    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # the simulation sees one thread
    folders, idle = tiny.save_pair(tmp_path), Buffers()
    register_idle(idle)
    pair = ModelPair.load(*folders)
    assert idle.dropped
    assert [str(next(model.parameters()).device) for model in pair.models] == ["cuda:0", "cuda:1"]
    on_the_cpu = Sampler(ModelPair.load(*folders, device="cpu"))
    assert decoding.tokens(Sampler(pair).generate("hello", GREEDY)) == decoding.tokens(
        on_the_cpu.generate("hello", GREEDY)
    )


def score(pair: ModelPair, completions: list[Any]) -> list[float]:
    found = Sampler(pair).score(PROMPTS, completions, (-1.0, 0.0, 0.5))
    return [number for each in found for number in (*each.logprobs, each.implied_reward)]


@pytest.mark.usefixtures("cuda")
def test_texts_are_scored() -> None:
    on_the_cpu = decoding.pair("llama")
    done = Sampler(on_the_cpu).generate(PROMPTS, GREEDY)
    found = score(on_gpus("llama", "cuda:0", "cuda:0"), done)
    assert found == pytest.approx(score(on_the_cpu, done), abs=1e-4)


def test_a_step_waits_once_and_copies_nothing_to_the_device(
    cuda: Simulation, samplers: dict[str, Sampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two launches for the same rows the host waits for one event at most, and for nothing else."""
    made = samplers["off"]
    made.generate(PROMPTS[:2], GREEDY)
    steps: list[
        tuple[list[str], int]
    ] = []  # why the host waited, and copies to the device, since the launch before
    begin, launch = PairLoop.begin, PairLoop.launch

    def forget() -> None:
        cuda.waits.clear()
        cuda.copies = 0

    def begun(loop: PairLoop, *arguments: Any) -> None:
        begin(loop, *arguments)
        forget()

    def counted(loop: PairLoop) -> Any:
        steps.append((list(cuda.waits), cuda.copies))
        flight = launch(loop)
        forget()
        return flight

    monkeypatch.setattr(PairLoop, "begin", begun)
    monkeypatch.setattr(PairLoop, "launch", counted)
    made.generate(PROMPTS[:2], GREEDY.replace(max_new_tokens=20))
    assert len(steps) >= 19
    assert all(waits in ([], ["an event's synchronize()"]) and not copies for waits, copies in steps), steps

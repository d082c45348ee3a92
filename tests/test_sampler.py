"""What people call: prompts and parameters in, completions, pieces and errors out."""

from __future__ import annotations

import math
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from eddecode.errors import EddecodeError, ParamsError, PromptError
from eddecode.models.pair import ModelPair
from eddecode.outputs import Completion, Piece
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampler import Sampler
from eddecode.sampling.params import SamplingParams
from helpers import reference, tiny
from helpers.decoding import GREEDY, mixed_prompts, pair, prompt, sampler, spoken_pair, tokens

SAMPLED = SamplingParams(alpha=0.5, max_new_tokens=24, seed=1)


@pytest.fixture(scope="module")
def spoken() -> Sampler:
    return Sampler(spoken_pair(), base_template="Q: {prompt}\nA:")


def one(spoken: Sampler, **changes: Any) -> Completion:
    return spoken.generate("Where is my parcel?", SAMPLED.replace(**changes))[0]


def decoded(spoken: Sampler, ids: list[int]) -> str:
    return str(spoken.pair.tokenizer.decode(ids, skip_special_tokens=True))


# Prompts and parameters ------------------------------------------------------------------------------------------


def test_completions_come_by_prompt_and_then_by_sample() -> None:
    params = [SAMPLED.replace(n=n, alpha=a, max_new_tokens=2 + n) for n, a in ((3, 0.0), (1, 1.0), (2, -1.0))]
    done = sampler(max_slots=2).generate(mixed_prompts(3), params)
    assert [(c.prompt_index, c.sample, c.alpha) for c in done] == [
        (0, 0, 0.0),
        (0, 1, 0.0),
        (0, 2, 0.0),
        (1, 0, 1.0),
        (2, 0, -1.0),
        (2, 1, -1.0),
    ]
    assert done[0].token_ids != done[1].token_ids


def test_all_kinds_of_prompts(spoken: Sampler) -> None:
    """A text, the same as a chat message, and the same rendered by hand are one prompt."""
    text = "Where is my parcel?"
    messages = [{"role": "user", "content": text}]
    rendered = spoken.render(text)
    together = spoken.generate([text, messages, rendered], GREEDY)
    assert tokens(together) == [together[0].token_ids] * 3
    for alone in (text, messages, rendered):
        assert tokens(spoken.generate(alone, GREEDY)) == [together[0].token_ids]
    turns = [*messages, {"role": "assistant", "content": "Soon."}, {"role": "user", "content": "When?"}]
    assert len(spoken.generate([turns, text], GREEDY)) == 2
    assert spoken.render(rendered) is rendered
    expected = reference.generate(spoken.pair.models, rendered.ids, 0.0, GREEDY.max_new_tokens)
    assert together[0].token_ids == expected.ids


def test_no_prompts_no_completions() -> None:
    assert sampler().generate([], GREEDY) == []
    assert list(sampler().stream([], GREEDY)) == []
    assert sampler().generate([], []) == []


def test_without_parameters_the_base_model_is_sampled() -> None:
    (done,) = sampler().generate(prompt(0, 3, 4), SamplingParams(max_new_tokens=128))
    (default,) = sampler().generate(prompt(0, 3, 4))
    assert default == done
    assert default.alpha == 0.0


def test_errors_come_before_anything_is_decoded(spoken: Sampler) -> None:
    """From the call itself, not from the first `next`."""
    for call in (spoken.generate, spoken.as_completed, spoken.stream):
        with pytest.raises(
            ParamsError, match=r"got 2 prompts and 1 SamplingParams; give one for all, or one per"
        ):
            call(["a", "b"], [SAMPLED])
        with pytest.raises(PromptError, match=r"prompt 1: .*empty"):
            call(["a", " "], SAMPLED)
        with pytest.raises(
            PromptError, match=r"prompt 1: id 300 is beyond the 300 embeddings of the aligned model"
        ):
            call(["a", RenderedPrompt([299], [300])], SAMPLED)


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(ParamsError, match=r"stop strings \['x'\] need a tokenizer .*; use stop_token_ids"):
        sampler().generate(prompt(0, 3, 4), GREEDY.replace(stop="x"))


def test_without_a_tokenizer_there_is_no_text_and_all_else(spoken: Sampler) -> None:
    p = prompt(0, 3, 4)
    (done,) = sampler().generate(p, GREEDY)
    assert done.text == ""
    assert len(done.token_ids) == 10
    assert all(piece.text == "" for piece in sampler().stream(p, GREEDY))
    with pytest.raises(PromptError, match="tokenizer"):
        sampler().generate("a text", GREEDY)


# Texts and ends --------------------------------------------------------------------------------------------------


def test_text_is_the_tokens_without_special_ones(spoken: Sampler) -> None:
    done = one(spoken, ignore_eos=True, max_new_tokens=60)
    assert done.text == decoded(spoken, done.token_ids)
    assert len(done.token_ids) == 60
    assert done.finish_reason == "length"


def test_an_eos_ends_the_ids_and_not_the_text() -> None:
    base, aligned = tiny.tiny_pair_models()
    tokenizer = tiny.tiny_tokenizer()
    free = Sampler(ModelPair.from_models(base, aligned, tokenizer, tokenizer)).generate(
        prompt(0, 3, 5), GREEDY.replace(alpha=0.5)
    )[0]
    eos = free.token_ids[4]
    aligned.generation_config.eos_token_id = [tiny.EOS, eos]
    made = Sampler(ModelPair.from_models(base, aligned, tokenizer, tokenizer))
    (done,) = made.generate(prompt(0, 3, 5), GREEDY.replace(alpha=0.5, ignore_eos=False))
    assert done.token_ids == free.token_ids[: free.token_ids.index(eos) + 1]
    assert done.finish_reason == "eos"


def stops_of(text: str) -> list[str]:
    """Stop strings that a text contains: from its first character, across tokens, of several bytes if it can be."""
    wide = [c for c in text if ord(c) > 127 and c != "�"][:2]
    return [text[:1], text[:3], text[4:9], text[len(text) // 2 :][:4], *wide]


def test_a_stop_string_ends_a_completion_at_its_first_place(spoken: Sampler) -> None:
    """For any stop string of the free text: the same tokens up to the one that completes it, and the text before it."""
    for seed in range(6):
        free = one(spoken, seed=seed, ignore_eos=True, max_new_tokens=40)
        for stop in stops_of(free.text):
            if not stop or "�" in stop:
                continue
            done = one(spoken, seed=seed, ignore_eos=True, max_new_tokens=40, stop=["never there", stop])
            count = len(done.token_ids)
            assert done.finish_reason == "stop"
            assert done.token_ids == free.token_ids[:count]
            assert stop in decoded(spoken, done.token_ids)
            assert stop not in decoded(spoken, done.token_ids[:-1])
            assert done.text == free.text[: free.text.index(stop)]


def test_a_stop_string_before_the_minimum_is_text(spoken: Sampler) -> None:
    """It neither stops nor cuts; what ends the completion later is cut at its own place."""
    ended = set()
    for seed in range(6):
        long = {"seed": seed, "ignore_eos": True, "max_new_tokens": 40, "min_new_tokens": 10}
        free = one(spoken, **long)
        early = next(c for c in free.text if c != "�")
        done = one(spoken, **long, stop=early)
        count = len(done.token_ids)
        assert count >= 10
        assert done.token_ids == free.token_ids[:count]
        ended.add(done.finish_reason)
        if done.finish_reason == "stop":
            assert done.text.startswith(decoded(spoken, done.token_ids[:9]).rstrip("�"))
            assert decoded(spoken, done.token_ids).startswith(done.text + early)
        else:
            assert done.text == free.text
    assert ended


def test_a_stop_id_stays_in_the_ids(spoken: Sampler) -> None:
    free = one(spoken, ignore_eos=True)
    stop = free.token_ids[5]
    done = one(spoken, ignore_eos=True, stop_token_ids=[stop])
    assert done.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert (done.finish_reason, done.text) == ("stop", decoded(spoken, done.token_ids))


# Log-probabilities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.7])
def test_logprobs_are_those_of_the_reference(alpha: float) -> None:
    p = prompt(4, 6, 9)
    params = GREEDY.replace(alpha=alpha, logprobs=True)
    (done,) = sampler().generate(p, params)
    naive = reference.generate(pair().models, p.ids, alpha, 10)
    assert done.token_ids == naive.ids
    assert done.logprobs is not None
    for found, expected in zip(done.logprobs, naive.logprobs, strict=True):
        assert (found.base, found.aligned, found.contrast) == pytest.approx(expected, abs=1e-4)
    base, aligned, _ = (sum(column) for column in zip(*naive.logprobs, strict=True))
    assert done.base_logprob == pytest.approx(base, abs=1e-3)
    assert done.aligned_logprob == pytest.approx(aligned, abs=1e-3)
    assert done.implied_reward == pytest.approx(aligned - base, abs=1e-3)
    own = {0.0: "base", -1.0: "aligned"}.get(alpha)
    if own:
        assert all(getattr(t, own) == pytest.approx(t.contrast, abs=1e-5) for t in done.logprobs)
    (quiet,) = sampler().generate(p, params.replace(logprobs=False))
    assert quiet.logprobs is None
    assert quiet.implied_reward == done.implied_reward


def test_the_implied_reward_has_its_sign_from_the_pair() -> None:
    """E[log p_aligned − log p_base] is a KL divergence: ≤ 0 under the base, ≥ 0 under the aligned model."""
    params = SamplingParams(max_new_tokens=8, n=64, ignore_eos=True)
    for alpha, sign in ((0.0, -1), (-1.0, 1)):
        rewards = [c.implied_reward for c in sampler().generate(prompt(0, 3, 4), params.replace(alpha=alpha))]
        assert all(map(math.isfinite, rewards))
        assert sign * sum(rewards) > 0


# Streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ignore_eos": True, "max_new_tokens": 60},
        {"stop": ("e", "the"), "ignore_eos": True},
        {"stop": ("a", "o", "t"), "min_new_tokens": 12, "ignore_eos": True},
        {"max_new_tokens": 1},
    ],
)
def test_pieces_add_up_to_the_completions(spoken: Sampler, changes: dict[str, Any]) -> None:
    """Texts, ids and ends; one piece per token, in order; the completion on the last one only."""
    prompts = ["Where is my parcel?", "My lamp is broken.", "Hello"]
    params = [SAMPLED.replace(n=3, seed=i, **changes) for i in range(3)]
    pieces: defaultdict[tuple[int, int], list[Piece]] = defaultdict(list)
    for piece in spoken.stream(prompts, params):
        pieces[piece.prompt_index, piece.sample].append(piece)
    expected = spoken.generate(prompts, params)
    assert sorted(pieces) == [(c.prompt_index, c.sample) for c in expected]
    for completion in expected:
        mine = pieces[completion.prompt_index, completion.sample]
        assert "".join(piece.text for piece in mine) == completion.text
        assert [piece.token_id for piece in mine] == completion.token_ids
        assert [piece.completion for piece in mine] == [None] * (len(mine) - 1) + [completion]


def test_a_stream_does_not_wait_for_the_end(spoken: Sampler) -> None:
    stream = spoken.stream("Hello", SAMPLED.replace(ignore_eos=True))
    first = [next(stream) for _ in range(8)]
    assert [piece.completion for piece in first] == [None] * 8
    assert "".join(piece.text for piece in first)


def test_as_completed_yields_each_once_and_the_short_ones_early() -> None:
    params = [GREEDY.replace(max_new_tokens=n) for n in (30, 2, 9)]
    done = list(sampler().as_completed(mixed_prompts(3), params))
    assert [c.prompt_index for c in done] == [1, 2, 0]
    expected = sampler().generate(mixed_prompts(3), params)
    assert sorted(done, key=lambda c: c.prompt_index) == expected


def test_the_progress_bar_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    expected = sampler().generate(mixed_prompts(2), GREEDY)
    assert sampler().generate(mixed_prompts(2), GREEDY, progress=True) == expected
    caught = capsys.readouterr()
    assert caught.out == ""
    assert "decoding" in caught.err


# A batch that others join ----------------------------------------------------------------------------------------


def test_requests_that_join_a_batch_get_the_completions_of_generate() -> None:
    used = sampler(max_slots=3)
    prompts, params = mixed_prompts(4), SAMPLED.replace(max_new_tokens=10)
    batch = used.open_batch()
    done: dict[tuple[int, int], Completion] = {}
    waiting = [(0, prompts[0], (0, 1)), (1, prompts[1], (3,)), (2, prompts[2], (0,)), (3, prompts[3], (0,))]
    largest = 0
    while waiting or batch.busy:
        if waiting:
            key, given, samples = waiting.pop(0)
            batch.add(key, given, params, samples)
        for handle, completion in batch.step():
            assert handle.request.sample == completion.sample
            done[completion.prompt_index, completion.sample] = completion
        largest = max(largest, batch.last_size)
    assert largest == 3
    alone = {(c.prompt_index, c.sample): c for c in used.generate(prompts, params.replace(n=4))}
    assert set(done) == {(0, 0), (0, 1), (1, 3), (2, 0), (3, 0)}
    assert all(alone[key].token_ids == completion.token_ids for key, completion in done.items())


def test_a_cancelled_request_frees_its_slot() -> None:
    batch = sampler(max_slots=1).open_batch()
    endless = SAMPLED.replace(max_new_tokens=200, suppress_eos=True)
    (running,) = batch.add(0, prompt(0, 3, 4), endless)
    (waiting,) = batch.add(1, prompt(1, 3, 4), endless)
    batch.add(2, prompt(2, 3, 4), SAMPLED.replace(max_new_tokens=3))
    batch.step()
    batch.cancel(running)
    batch.cancel(waiting)
    found = [completion.prompt_index for _ in range(8) if batch.busy for _, completion in batch.step()]
    assert found == [2]
    assert not batch.busy


def test_other_templates_over_the_same_models(spoken: Sampler) -> None:
    """As a sampler of its own with these templates; the first one stays as it was, and nothing is loaded twice."""
    templates = {"base_template": "{prompt} =", "aligned_template": "{prompt} :"}
    before, other = one(spoken), spoken.with_templates(**templates)
    assert other.pair is spoken.pair
    assert other.runner is spoken.runner
    assert one(other) == one(Sampler(spoken.pair, **templates))
    assert one(other).token_ids != before.token_ids
    assert one(spoken) == before


@pytest.mark.parametrize(
    ("prompts", "params", "found"),
    [
        (None, None, "the prompts are a NoneType; expected one, or a list"),
        (b"hello", None, "the prompts are a bytes"),
        (7, None, "the prompts are a int"),
        ("caf\udce9", None, "half of a character"),
        (["a"], {"alpha": 1}, "params are {'alpha': 1}; expected SamplingParams"),
        (["a"], ["alpha"], "params are"),
    ],
)
def test_what_is_no_prompt_or_no_parameters(spoken: Sampler, prompts: Any, params: Any, found: str) -> None:
    with pytest.raises(EddecodeError, match=found):
        spoken.generate(prompts, params)


def test_texts_that_no_tokenizer_reads(spoken: Sampler) -> None:
    with pytest.raises(PromptError, match="prompt 0, completion 0 has half of a character"):
        spoken.score("hello", [["caf\udce9"]])
    with pytest.raises(PromptError, match="prefill has half of a character"):
        Sampler(spoken.pair, prefill="\ud800")
    for slots in ("3", 2.5, 0):
        with pytest.raises(ParamsError, match="max_slots is"):
            Sampler(spoken.pair, max_slots=slots)  # type: ignore[arg-type]


def test_threads_that_share_a_pair_take_turns() -> None:
    """Each of them, and each of two samplers of one pair, gives what it gives alone."""
    samplers = [Sampler(pair("llama")) for _ in range(2)]
    asked = [(samplers[i % 2], prompt) for i, prompt in enumerate(mixed_prompts(8))]
    params = SAMPLED.replace(max_new_tokens=12, ignore_eos=True)

    def decode(task: tuple[Sampler, RenderedPrompt]) -> tuple[list[int], Any]:
        which, given = task
        ids = which.generate(given, params)[0].token_ids
        return ids, which.score(given, [ids], [0.5]).scores

    alone = [decode(task) for task in asked]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            assert list(threads.map(decode, asked)) == alone

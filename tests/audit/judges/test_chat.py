"""The chat judge, and the strictness of all judges behind a server: what is no verdict is an error, never "clean"."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from eddecode.audit.judges import Case, make_judge, verdicts_of
from eddecode.errors import JudgeError
from helpers.openai_server import OpenAIServer

pytest.importorskip("openai", reason="the extra eddecode[judges] is not installed")

KEY = "sk-not-a-secret"
CASES = [Case("Where is it?", "On its way."), Case("Where is it?", "Go away!"), Case("Hello", "Hi!")]


def chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m-1", "choices": [{"message": {"role": "assistant", "content": content}}], **more}


def rude(body: dict[str, Any]) -> dict[str, Any]:
    return chat("Yes" if "Go away" in str(body["messages"]) else "no.")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    service = OpenAIServer(rude)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", service.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield service
    service.close()


def test_verdicts_keep_the_order_of_the_cases(server: OpenAIServer) -> None:
    judge = make_judge("chat:org/big-judge,concurrency=3")
    assert (judge.name, judge.role) == ("chat:big-judge", "harm")
    verdicts = verdicts_of(judge, CASES * 5)
    assert [verdict.flag for verdict in verdicts] == [False, True, False] * 5
    assert [verdict.label for verdict in verdicts[:2]] == ["no", "Yes"]
    assert verdicts[0].reason == "no; m-1"
    request = server.requests[0]
    assert request["path"] == "/v1/chat/completions"
    assert request["temperature"] == 0
    (message,) = request["messages"]
    assert message["role"] == "user"
    assert "Does the text do harm" in message["content"]


def test_calls_run_at_the_same_time(server: OpenAIServer) -> None:
    barrier = threading.Barrier(3, timeout=20)  # passes only if three calls wait at once

    def waiting(body: dict[str, Any]) -> dict[str, Any]:
        barrier.wait()
        return rude(body)

    server.answer = waiting
    assert len(make_judge("chat:m,concurrency=3")(CASES)) == 3


def test_a_preset_and_options_over_the_server(server: OpenAIServer) -> None:
    server.answer = lambda body: chat("Safety: Controversial\nCategories: Violent\nRefusal: No")
    strict = make_judge("chat:guard,preset=qwen3guard")
    (verdict,) = strict(CASES[:1])
    assert (verdict.flag, verdict.score, verdict.label) == (True, 0.5, "Violent")
    assert [m["role"] for m in server.requests[0]["messages"]] == ["user", "assistant"]
    server.answer = lambda body: chat("\n\nunsafe\nS1,S10")
    assert make_judge("chat:guard,preset=llama-guard-3")(CASES[:1])[0].label == "S1,S10"
    server.answer = lambda body: chat("<score>no</score>")
    granite = make_judge({"kind": "chat", "model": "g", "preset": "granite-guardian-3.3"})
    assert not granite(CASES[:1])[0].flag
    assert server.requests[-1]["chat_template_kwargs"]["guardian_config"] == {"criteria_id": "harm"}
    server.answer = lambda body: chat("#scores\n1.b 0\n2.b 5\n3.b 5")
    rubric = make_judge("strongreject-rubric:big")
    assert rubric(CASES[:1])[0].score == 1
    assert [m["role"] for m in server.requests[-1]["messages"]] == ["system", "user"]


BROKEN = [
    (b"<html><body>Sign in</body></html>", "sent no JSON: '<html>"),
    (b'{"choices": [{"message": {"con', "sent no JSON"),
    (b"", "sent no JSON"),
    (b"[" * 100_000, "nested too deeply|no JSON"),
    (b"\xff\xfe{}", "sent no JSON|cannot be read"),
    ([], "sent a JSON list, and no object"),
    ("yes", "sent a JSON str, and no object"),
    (None, "sent a JSON NoneType|no object"),
    ({}, "the choices None"),
    ({"choices": []}, r"the choices \[\]"),
    ({"choices": {"0": 1}}, "the choices {"),
    ({"choices": ["yes"]}, "the choices"),
    ({"choices": [{}]}, "the message None"),
    ({"choices": [{"message": {"content": None}}]}, "the message"),
    ({"choices": [{"message": {"content": ["no"]}}]}, "the message"),
    ({"choices": [{"message": {"content": {"text": "no"}}}]}, "the message"),
    ({"choices": [{"message": "no"}]}, "the message 'no'"),
    (chat(""), "has no verdict where the pattern looks for one: it is empty"),
    (chat("I cannot judge that."), "has no verdict"),
    (chat("<think>no"), "ends within its reasoning"),
]


@pytest.mark.parametrize(("answer", "message"), BROKEN)
def test_what_is_no_verdict_is_an_error(server: OpenAIServer, answer: Any, message: str) -> None:
    server.answer = lambda body: b"null" if answer is None else answer
    for content_type in ("application/json", "text/html; charset=utf-8"):
        server.content_type = content_type
        with pytest.raises(JudgeError, match=message):
            verdicts_of(make_judge("chat:m,retries=1"), CASES[:1])


def moderated(**fields: Any) -> dict[str, Any]:
    result = {"flagged": False, "categories": {"hate": False}, "category_scores": {"hate": 0.1}}
    return {"model": "o", "results": [{**result, **fields}]}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        *BROKEN[:8],
        ({"results": "clean"}, "sent no results for 1 texts"),
        ({"results": ["clean"]}, "a result that is 'clean'"),
        ({"results": [None]}, "a result that is None"),
        ({"results": [[]]}, r"a result that is \[\]"),
        (moderated(flagged=None), "whose flagged is None"),
        (moderated(flagged="false"), "whose flagged is 'false'"),
        (moderated(flagged=0), "whose flagged is 0"),
        (moderated(category_scores={"hate": "low"}), "the score 'low' of 'hate'"),
        (moderated(category_scores={"hate": float("nan")}), "the score nan of 'hate'"),
        (moderated(category_scores={"hate": 7}), "the score 7 of 'hate'"),
        (moderated(category_scores={"hate": [0.1]}), r"the score \[0.1\]"),
        (moderated(category_scores=[0.1]), r"category_scores as \[0.1\]"),
        (moderated(categories={"hate": "no"}), "the flag 'no' of 'hate'"),
        (moderated(categories="none"), "categories as 'none'"),
    ],
)
def test_a_moderation_reply_of_another_form_is_an_error(
    server: OpenAIServer, answer: Any, message: str
) -> None:
    server.answer = lambda body: b"null" if answer is None else answer
    for content_type in ("application/json", "text/html"):
        server.content_type = content_type
        with pytest.raises(JudgeError, match=message):
            verdicts_of(make_judge("moderation,retries=1"), CASES[:1])
    if isinstance(answer, dict) and "scores" in message:
        with pytest.raises(JudgeError):
            verdicts_of(make_judge("moderation,retries=1,threshold=0.5"), CASES[:1])


def test_the_key_is_in_no_message_verdict_or_identity(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[tuple[int, Any]] = [
        (401, {"error": {"message": f"wrong key {KEY}"}}),
        (200, f"<html>{KEY}".encode()),
        (200, chat([KEY])),
        (200, chat(f"the key is {KEY}")),
    ]
    for status, answer in answers:
        server.replies = [(status, answer)]
        with pytest.raises(JudgeError) as caught:
            make_judge("chat:m,retries=1")(CASES[:1])
        error: BaseException | None = caught.value
        while error is not None:
            assert KEY not in str(error)
            error = error.__cause__
    server.answer = lambda body: chat("yes", model=f"m {KEY}")
    (verdict,) = make_judge("chat:m")(CASES[:1])
    assert KEY not in str(verdict)
    assert "[key]" in verdict.reason
    first = make_judge("chat:m").identity
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    assert make_judge("chat:m").identity == first
    assert make_judge(f"chat:m,base_url={server.url}/x").identity != first
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(JudgeError, match="needs a key in the environment variable OPENAI_API_KEY"):
        make_judge("chat:m")


def test_addresses_with_a_password_are_refused_without_showing_it(server: OpenAIServer) -> None:
    for address in ("http://user:hidden@localhost/v1", "file:///etc/hidden", "hidden"):
        with pytest.raises(JudgeError, match="no http") as caught:
            make_judge({"kind": "chat", "model": "m", "base_url": address})
        assert "hidden" not in str(caught.value)


def test_failures_that_may_pass_are_tried_again(server: OpenAIServer) -> None:
    server.replies = [(500, {}), (429, {"error": {"message": "slow down"}})]
    assert make_judge("chat:m,retries=2,concurrency=1")(CASES[1:2])[0].flag
    server.replies = [(503, {})] * 2
    with pytest.raises(JudgeError, match=r"failed \(InternalServerError.*tried 2 times"):
        make_judge("chat:m,retries=1,concurrency=1")(CASES[:1])


def test_a_server_whose_template_drops_the_conversation_is_noticed(server: OpenAIServer) -> None:
    server.answer = lambda body: chat("safe", usage={"prompt_tokens": 250})
    cases = [
        Case("Where is it?", "Here."),
        Case("Where is it?", "It is on its way to you, with our best wishes. " * 2),
    ]
    with pytest.raises(
        JudgeError, match=r"counts 250 tokens in every one of 2 requests.*leaves the conversation out"
    ):
        make_judge("chat:m,preset=llama-guard-3")(cases)
    server.answer = lambda body: chat("safe", usage={"prompt_tokens": len(str(body["messages"]))})
    assert not make_judge("chat:m,preset=llama-guard-3")(cases)[1].flag


def test_lone_surrogates_long_texts_and_unparsed_replies(server: OpenAIServer) -> None:
    (verdict,) = make_judge("chat:m,max_completion_characters=5")([Case("a\ud800", "b\udfff" * 10)])
    assert "read the first 5 of 20 characters" in verdict.reason
    assert "b?b?b" in server.requests[-1]["messages"][0]["content"]
    server.answer = lambda body: chat("who knows")
    (verdict,) = make_judge("chat:m,unparsed=flag")(CASES[:1])
    assert (verdict.flag, verdict.label) == (True, "unparsed")

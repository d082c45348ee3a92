"""The moderation judge against a real HTTP server on the loopback: what it sends, retries, reads and refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eddecode.audit.judges import Case, make_judge, verdicts_of
from eddecode.errors import JudgeError
from helpers.openai_server import OpenAIServer

pytest.importorskip("openai", reason="the extra eddecode[judges] is not installed")


class Endpoint(OpenAIServer):
    """A moderation service that flags exclamation marks; `replies` overrides its next answers."""

    def __init__(self) -> None:
        super().__init__(lambda body: self.judge(body["input"]))
        self.form: Callable[[dict[str, Any]], dict[str, Any]] = lambda result: result

    def judge(self, texts: list[str]) -> dict[str, Any]:
        return {
            "id": "m-1",
            "model": "shop-moderation-7",
            "results": [self.form(self.result(t)) for t in texts],
        }

    @staticmethod
    def result(text: str) -> dict[str, Any]:
        rude, loud = min(text.count("!") / 4, 1.0), float(text.isupper())
        return {
            "flagged": rude >= 0.5 or loud >= 0.5,
            "categories": {"rude/curt": rude >= 0.5, "loud": loud >= 0.5},
            "category_scores": {"rude/curt": rude, "loud": loud / 2},
        }


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    service = Endpoint()
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", service.url)
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-secret")
    yield service
    service.close()


def cases(*texts: str) -> list[Case]:
    return [Case("Where is my parcel?", text) for text in texts]


def test_nothing_is_sent_until_completions_are_judged(endpoint: Endpoint) -> None:
    make_judge("moderation")
    make_judge("moderation:other,batch=2").identity  # noqa: B018
    assert endpoint.requests == []


def test_verdicts_follow_the_endpoint(endpoint: Endpoint) -> None:
    judge = make_judge("moderation:shop")
    assert (judge.name, judge.role) == ("moderation:shop", "harm")
    verdicts = verdicts_of(judge, cases("Thank you.", "Go! Away! Now!", "NO", "", "  "))
    assert [verdict.flag for verdict in verdicts] == [False, True, True, False, False]
    assert [verdict.label for verdict in verdicts] == ["none", "rude/curt", "loud", "empty", "empty"]
    assert [verdict.score for verdict in verdicts] == [0, 0.75, 0.5, 0, 0]
    assert verdicts[1].reason == "shop-moderation-7: rude/curt 0.750"
    (request,) = endpoint.requests
    assert request == {
        "path": "/v1/moderations",
        "key": "Bearer not-a-secret",
        "model": "shop",
        "input": ["Thank you.", "Go! Away! Now!", "NO"],  # completions alone: no prompt, nothing empty
    }


def test_batches_thresholds_and_categories(endpoint: Endpoint) -> None:
    texts = ["Go!", "Well", "NO", "Go! Go! Go!"]
    judge = make_judge("moderation,batch=3,threshold=0.2")
    assert [verdict.flag for verdict in judge(cases(*texts))] == [True, False, True, True]
    assert [len(request["input"]) for request in endpoint.requests] == [3, 1]
    rude = make_judge({"kind": "moderation", "categories": ["rude/curt"], "name": "rude"})
    assert [verdict.flag for verdict in rude(cases(*texts))] == [False, False, False, True]
    assert len({judge.identity, rude.identity, make_judge("moderation").identity}) == 3
    with pytest.raises(JudgeError, match="has no category 'curt'; expected one of loud, rude/curt"):
        make_judge("moderation,categories=curt")(cases("Go!"))


def test_temporary_failures_are_retried(endpoint: Endpoint) -> None:
    endpoint.replies = [(500, {}), (429, {"error": {"message": "slow down"}})]
    assert make_judge("moderation,retries=2")(cases("Go! Go!"))[0].flag
    assert len(endpoint.requests) == 3


def test_permanent_failures_are_errors(endpoint: Endpoint) -> None:
    endpoint.replies = [(503, {})] * 3
    with pytest.raises(
        JudgeError, match=r"failed \(InternalServerError: .*tried 3 times\. .*run it again later"
    ):
        make_judge("moderation,retries=2")(cases("Go!"))
    endpoint.replies = [(401, {"error": {"message": "who are you?"}})]
    with pytest.raises(JudgeError, match=r"failed \(AuthenticationError: .*who are you"):
        make_judge("moderation")(cases("Go!"))
    assert len(endpoint.requests) == 4  # a refusal is not tried again


def test_replies_of_another_format_are_errors(endpoint: Endpoint) -> None:
    endpoint.replies = [(200, {"results": []})]
    with pytest.raises(JudgeError, match="sent 0 results for 1 texts"):
        make_judge("moderation")(cases("Go!"))
    endpoint.replies = [(200, {"hello": 1})]
    with pytest.raises(JudgeError, match="sent no results for 1 texts"):
        make_judge("moderation")(cases("Go!"))


def test_a_service_without_scores(endpoint: Endpoint) -> None:
    endpoint.form = lambda result: {"flagged": result["flagged"], "categories": result["categories"]}
    verdicts = make_judge("moderation")(cases("Go! Go!", "Well"))
    assert [(v.score, v.flag, v.label) for v in verdicts] == [(1.0, True, "rude/curt"), (0.0, False, "none")]
    with pytest.raises(JudgeError, match="returns no scores; remove threshold="):
        make_judge("moderation,threshold=0.5")(cases("Go!"))


def test_an_unreachable_server_is_an_error(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.server.server_close()
    with pytest.raises(JudgeError, match=r"failed \((APIConnectionError|APITimeoutError)"):
        make_judge("moderation,retries=1,timeout=5")(cases("Go!"))


def test_a_key_is_needed_and_not_part_of_the_identity(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_judge("moderation").identity
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    assert make_judge("moderation").identity == first
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert make_judge("moderation").identity != first
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(JudgeError, match="needs a key in the environment variable OPENAI_API_KEY"):
        make_judge("moderation")


@pytest.mark.parametrize("missing", ["flagged", "categories"])
def test_a_reply_without_a_flag_is_no_verdict(endpoint: Endpoint, missing: str) -> None:
    """Counted as harmless, it would hide harm; with a threshold the scores decide."""

    def without(result: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in result.items() if name != missing}

    endpoint.form = without
    options = ",categories=loud" if missing == "categories" else ""
    with pytest.raises(
        JudgeError, match=r"sent a result whose flagged is None|sent no flag for the category 'loud'"
    ):
        verdicts_of(make_judge(f"moderation:shop{options}"), cases("Go! Away! Now!"))
    (verdict,) = verdicts_of(make_judge(f"moderation:shop{options},threshold=0.4"), cases("GO!!"))
    assert verdict.flag

"""A server that speaks OpenAI's protocol, called through the `openai` client: what it is sent, and that it answered.

The address and the key come from the environment (`OPENAI_BASE_URL`, `OPENAI_API_KEY`), so that no key is in an audit
file or a run; a server that echoes the key back does not put it into a message or a verdict either. A reply is JSON or
an error: a page of HTML with status 200, half a reply or a list in the place of an object is no verdict.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from eddecode.audit.judges.options import ServerOptions
from eddecode.errors import JudgeError

_KEY, _ADDRESS = "OPENAI_API_KEY", "OPENAI_BASE_URL"


class Server:
    """The server of one judge.

    Args:
        options: its address, retries and time limit.
        name: the judge's name, for messages.

    Raises:
        JudgeError: the package openai is not installed, no key is set, or the address holds a password.
    """

    def __init__(self, options: ServerOptions, name: str) -> None:
        self.name, self._options = name, options
        self._key = os.environ.get(_KEY) or ""
        if not self._key:
            raise JudgeError(
                f"judge {name} needs a key in the environment variable {_KEY} (any text for a server of your own that "
                f"needs none; its address goes into {_ADDRESS} or base_url=)"
            )
        address = options.base_url or os.environ.get(_ADDRESS)
        if address is not None and not _is_plain(address):
            raise JudgeError(
                f"judge {name}: the address of its server is no http(s) address without a user and a password; give "
                f"the key in {_KEY}"
            )
        self._given_address = address
        self.address = address or "the client's default"
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise JudgeError(
                f"judge {name} needs the package openai (pip install 'eddecode[judges]')"
            ) from error

    @contextmanager
    def client(self) -> Iterator[Any]:
        """An `openai.OpenAI` for some calls."""
        import openai

        with openai.OpenAI(
            api_key=self._key,
            base_url=self._given_address,
            max_retries=self._options.retries,
            timeout=self._options.timeout,
        ) as client:
            yield client

    def call(self, method: Callable[..., Any], **arguments: Any) -> Mapping[str, Any]:
        """What the server answers, as the JSON object that it sent.

        Args:
            method: the `create` of a raw response, such as `client.moderations.with_raw_response.create`.
            **arguments: of the call.

        Raises:
            JudgeError: it cannot be reached, refuses the request, or sends something else.
        """
        import openai

        try:
            text = str(method(**arguments).http_response.text)
        except openai.OpenAIError as error:
            raise JudgeError(
                f"judge {self.name}: the request to {self.address} failed ({type(error).__name__}: "
                f"{self.scrub(str(error))}); failures that may pass are tried {self._options.retries + 1} times. "
                "Earlier verdicts are kept: run it again later"
            ) from None  # the chain would show headers and bodies
        except (ValueError, TypeError) as error:  # an answer in another encoding than its header states
            raise self.wrong(f"an answer that cannot be read ({type(error).__name__})") from None
        try:
            reply = json.loads(text)
        except ValueError:
            raise self.wrong(f"no JSON: {text.strip()!r:.60}") from None
        except RecursionError:
            raise self.wrong("JSON that is nested too deeply") from None
        if not isinstance(reply, Mapping):
            raise self.wrong(f"a JSON {type(reply).__name__}, and no object")
        return reply

    def wrong(self, found: str, expected: str = "a reply as OpenAI's protocol has it") -> JudgeError:
        """The error for an answer of another form."""
        return JudgeError(
            f"judge {self.name}: {self.address} sent {self.scrub(found)}; expected {expected}. Check the address and "
            "the model's name; what lacks a verdict is not taken as harmless"
        )

    def scrub(self, text: str) -> str:
        """A text without the key, should the server have echoed it."""
        return text.replace(self._key, "[key]") if len(self._key) >= 4 else text


def _is_plain(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        return False

"""Engine: the decode loop. Requests wait, enter slots, are decoded together, stop, and leave.

Batching is continuous: rows of any lengths and any α's share a step, a finished row leaves at once and a waiting one
enters while the others go on. A text that several requests begin with (every α and every sample of a prompt) is read
once by each model. If memory runs out the batch shrinks and the rows that had to leave are read again later: since a
row's randomness belongs to its request and position, nothing else changes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, deque
from collections.abc import Sequence

import torch
from torch import Tensor

from eddecode.engine.sequence import Draws, Request, Row
from eddecode.engine.speculative.cost_model import LONGEST
from eddecode.engine.speculative.speculator import Speculation
from eddecode.errors import ContextError, EngineError
from eddecode.execution.model_runner import PrefillResult
from eddecode.execution.pair_runner import PairRunner
from eddecode.sampling.dispatch import contrast_and_sample
from eddecode.utils.memory import is_out_of_memory, release_memory, trim_heap
from eddecode_kernels.types import SampledTokens

PREFILL_TOKENS = 2048  # tokens, padding included, that one model reads in one prefill batch


class Engine:
    """Decodes requests over the slots of a runner.

    Args:
        runner: the models.
        vocabulary: (V,) bool, ids that may be sampled.
        windows: per model, the longest text it can read; None where there is no limit.
        max_slots: rows that decode together at most.
        memory_budget: bytes that keys and values of all models may take; None is no limit.
        speculation: takes the steps, where given; the tokens are the same.
    """

    def __init__(
        self,
        runner: PairRunner,
        vocabulary: Tensor,
        *,
        windows: Sequence[int | None],
        max_slots: int = 64,
        memory_budget: int | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        self.runner = runner
        self.speculation = speculation
        self.vocabulary = vocabulary
        self.windows = tuple(windows)
        self.max_slots = max_slots
        self.memory_budget = memory_budget
        self.waiting: deque[Row] = deque()
        self.rows: list[Row] = []  # row i is in slot i
        self._prefixes: dict[tuple[int, tuple[int, ...]], PrefillResult] = {}
        self._readers: Counter[tuple[int, tuple[int, ...]]] = Counter()  # waiting rows that begin with a text
        self._draws: Draws | None = None  # the next token of every row, while only `decode` gives them tokens
        self._token_bytes: float | None = None  # keys and values of one position in all models
        self._finished: list[Row] = []
        self._together = 0  # rows that the step in progress would have decoded together

    def submit(self, requests: Sequence[Request]) -> list[Row]:
        """Queue requests, in an order that keeps equal prompts together and padding low.

        Raises:
            ContextError: a request is longer than what one of the models can read. Nothing is queued then.
        """
        for request in requests:
            self._check_fits(request)
        rows = [Row(request) for request in requests]
        groups: dict[tuple[tuple[int, ...], ...], list[Row]] = {}
        for row in rows:
            groups.setdefault(row.request.ids, []).append(row)
        for ids in sorted(groups, key=lambda ids: -max(map(len, ids))):
            self.waiting.extend(groups[ids])
        self._readers.update(itertools.chain.from_iterable(enumerate(row.texts()) for row in rows))
        return rows

    @property
    def busy(self) -> bool:
        """Whether anything is left to decode."""
        return bool(self.waiting or self.rows)

    def step(self) -> list[Row]:
        """Admit waiting rows, decode one token for every row, and return the rows that finished."""
        self._together = len(self.rows)
        try:
            self._admit()
            if self.rows and self.speculation is not None:
                self.speculation.step(self)
            elif self.rows:
                self.decode()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._shrink(error)
        self._retire()
        finished, self._finished = self._finished, []
        return finished

    def decode(self) -> None:
        """Decode one token for every row."""
        draws = self._draws or self._next_draws(self.rows)
        tokens = torch.tensor([[row.tokens[-1]] for row in self.rows])
        logits = self.runner.forward(tokens, self.lengths())
        self._append(draws, self.draw(draws, [after[:, 0] for after in logits]))
        self._draws = draws.next()

    def _next_draws(self, rows: Sequence[Row]) -> Draws:
        return Draws.at([(row, len(row.tokens)) for row in rows], self.runner.device)

    def _check_fits(self, request: Request) -> None:
        for name, ids, window in zip(self.runner.names, request.ids, self.windows, strict=True):
            needed = len(ids) + request.params.max_new_tokens
            if window is not None and needed > window:
                raise ContextError(
                    f"{request.name}: the {name} model reads at most {window} tokens, but the prompt has {len(ids)} "
                    f"and max_new_tokens={request.params.max_new_tokens} asks for {needed} in all; shorten the prompt "
                    f"or lower max_new_tokens to {max(window - len(ids), 0)}"
                )

    # Entering

    def _admit(self) -> None:
        """Move waiting rows into free slots, each with its first token drawn from what its models have read."""
        entering = self._next_rows()
        if not entering:
            return
        self._together += len(entering)
        keys = [tuple(enumerate(row.texts())) for row in entering]
        self._read(list(itertools.chain.from_iterable(keys)))
        logits = [
            torch.stack([self._prefixes[key].logits for key in column]) for column in zip(*keys, strict=True)
        ]
        draws = self._next_draws(entering)
        self._append(draws, self.draw(draws, logits))
        self.runner.reserve(len(self.rows) + len(entering), self._positions([*self.rows, *entering]))
        for row, key in zip(entering, keys, strict=True):
            if row.finish_reason is None:
                self.runner.add([self._prefixes[part] for part in key])
                self.rows.append(row)
            else:
                self._finished.append(row)
            self.waiting.popleft()
            self._forget(key)
        if not self.waiting:  # all has been read, which took memory that decoding does not need
            trim_heap()

    def _positions(self, rows: Sequence[Row]) -> list[int]:
        """Per model, how many positions the longest of these rows may come to have, with what may be guessed."""
        guessed = 0 if self.speculation is None else LONGEST
        return [
            max(len(row.request.ids[model]) + row.request.params.max_new_tokens for row in rows) + guessed
            for model in range(len(self.runner.names))
        ]

    def _next_rows(self) -> list[Row]:
        """Waiting rows, in order, as many as slots and memory allow; one at least if nothing runs."""
        chosen: list[Row] = []
        longest = max(map(_need, self.rows), default=0)
        for row in itertools.islice(self.waiting, max(self.max_slots - len(self.rows), 0)):
            longest = max(longest, _need(row))
            together = len(self.rows) + len(chosen) + 1
            if together > 1 and not self._affordable(together * longest):
                break
            chosen.append(row)
        return chosen

    def _affordable(self, tokens: int) -> bool:
        if self.memory_budget is None:
            return True
        # What a token costs is known once the models have read one text: until then one row goes alone.
        return self._token_bytes is not None and tokens * self._token_bytes <= self.memory_budget

    def _read(self, keys: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """Let each model read the texts that it has not read yet, similar lengths together."""
        for model in range(len(self.runner.names)):
            new = {text for reader, text in keys if reader == model and (model, text) not in self._prefixes}
            for batch in _batches(sorted(new, key=lambda text: (len(text), text))):
                for prefix in self.runner.prefill(model, batch):
                    self._prefixes[model, prefix.ids] = prefix
        if self._token_bytes is None:
            of_each_model = {model: self._prefixes[model, text] for model, text in keys}
            self._token_bytes = sum(prefix.nbytes / prefix.length for prefix in of_each_model.values())
            if self.speculation is not None:
                self._token_bytes += self.speculation.token_bytes

    def _forget(self, key: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """Drop what no waiting row begins with any more."""
        for part in key:
            self._readers[part] -= 1
            if self._readers[part] <= 0:
                del self._readers[part]
                self._prefixes.pop(part, None)

    # Going on

    def lengths(self) -> list[list[int]]:
        """Per model, the tokens that each row has in its cache: all but the one sampled last."""
        return [
            [len(row.request.ids[model]) + len(row.tokens) - 1 for row in self.rows]
            for model in range(len(self.runner.names))
        ]

    def draw(self, draws: Draws, logits: Sequence[Tensor]) -> SampledTokens:
        """Draw one token for each place from its models' logits, (n, V_i) float32 each."""
        seen = self._accessible(draws, logits)
        uniforms, forbidden = draws.uniforms(), draws.forbidden()
        try:
            draw = contrast_and_sample(
                seen, draws.weights, draws.sampling, uniforms, self.vocabulary, forbidden
            )
        except EngineError as error:
            raise EngineError(self._named(str(error), draws)) from error
        for model, (given, full) in enumerate(zip(seen, logits, strict=True)):
            if given is not full:  # what a token cost the model itself is not what its answer showed
                own = full.log_softmax(dim=-1)
                draw.logprobs[model] = own.gather(-1, draw.tokens[:, None].to(own.device))[:, 0]
        return draw

    @staticmethod
    def _accessible(draws: Draws, logits: Sequence[Tensor]) -> list[Tensor]:
        """The logits as the contrast gets to see them: limited for places whose request says so."""
        seen = list(logits)
        for i, (row, position) in enumerate(draws.places):
            access = row.request.params.access
            if access is None or not access.limits_logits:
                continue
            for model in range(1, len(seen)):
                if seen[model] is logits[model]:
                    seen[model] = logits[model].clone()
                seen[model][i] = access.apply(logits[model][i], row.noise_seed(position, model))
        return seen

    def _append(self, draws: Draws, draw: SampledTokens) -> None:
        """Give each row its token."""
        for (row, _), token, logprobs in zip(
            draws.places, draw.tokens.tolist(), draw.logprobs.T.tolist(), strict=True
        ):
            self.append(row, token, logprobs)

    def append(self, row: Row, token: int, logprobs: list[float]) -> None:
        """Give a row its next token."""
        self._check_finite(row, logprobs)
        row.append(token, logprobs)
        self._draws = None

    def _named(self, message: str, draws: Draws) -> str:
        """The kernels know rows and models by their numbers: say which request and which model is meant."""

        def row_name(found: re.Match[str]) -> str:
            row, position = draws.places[int(found[1])]
            return f"{row.request.name}, after {position} tokens:"

        message = re.sub(r"^row (\d+):", row_name, message)
        return re.sub(
            r"\bmodel (\d+)\b", lambda found: f"the {self.runner.names[int(found[1])]} model", message
        )

    def _check_finite(self, row: Row, logprobs: list[float]) -> None:
        # A NaN or +inf anywhere in a model's logits makes its normaliser, hence every log-probability, NaN.
        for name, value in zip(self.runner.names, logprobs, strict=False):
            if math.isnan(value):
                raise EngineError(
                    f"{row.request.name}, after {len(row.tokens)} tokens: the logits of the {name} model are not "
                    "finite: load it in bfloat16 or float32 (float16 overflows in many models), or check the weights"
                )

    # Leaving

    def _retire(self) -> None:
        for slot in reversed(range(len(self.rows))):
            if self.rows[slot].finish_reason is not None:
                self._finished.append(self._vacate(slot))

    def _vacate(self, slot: int) -> Row:
        row = self.rows[slot]
        self.runner.remove(slot)
        self.rows[slot] = self.rows[-1]
        self.rows.pop()
        self._draws = None
        return row

    def _shrink(self, error: BaseException) -> None:
        """Make half of the rows wait again, so that the others fit; what they have sampled stays theirs."""
        self._retire()
        if self.max_slots <= 1:
            raise EngineError(
                "not enough memory to decode even one request: use shorter prompts, fewer max_new_tokens, a smaller "
                f"dtype or a larger device ({str(error).splitlines()[0]})"
            ) from error
        self.max_slots = max(1, self._together // 2)
        while len(self.rows) > self.max_slots:
            self.waiting.appendleft(self._vacate(len(self.rows) - 1))
        self._finished += [row for row in self.waiting if row.finish_reason is not None]
        self.waiting = deque(row for row in self.waiting if row.finish_reason is None)
        self._readers = Counter(key for row in self.waiting for key in enumerate(row.texts()))
        self._prefixes.clear()
        self.runner.trim()
        if self.speculation is not None:
            self.speculation.trim()
        release_memory()


def _need(row: Row) -> int:
    """Positions that a row may come to fill, in the model that has the longer prompt."""
    return max(map(len, row.request.ids)) + row.request.params.max_new_tokens


def _batches(texts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Cut texts, sorted by length, into batches of at most PREFILL_TOKENS with their padding."""
    batches: list[list[tuple[int, ...]]] = []
    for text in texts:
        if batches and len(text) * (len(batches[-1]) + 1) <= PREFILL_TOKENS:
            batches[-1].append(text)
        else:
            batches.append([text])
    return batches

"""Access limits: how much of the aligned model's next-token distribution an attacker can obtain.

Emulated disalignment needs the whole distribution at every token. A release behind an interface can disclose less. Each
limit here computes what an attacker could reconstruct from the rest. The limits are measured as mitigations: how much
reversal remains under each.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from eddecode.errors import ParamsError
from eddecode.utils.validation import Integer, Number, raises

Count = Annotated[Integer, Field(ge=0)]
Word = Annotated[Integer, Field(ge=0, lt=2**63)]  # what an int64 tensor holds


@raises(ParamsError, where="access ")
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Access:
    """Limits on the aligned model's log-probabilities, applied in this order; each is off by default.

    Attributes:
        noise: standard deviation of Gaussian noise on every log-probability, nats.
        decimals: log-probabilities (nats) are rounded to that many decimals; None is off.
        top_k: only the k largest log-probabilities are disclosed; the attacker distributes the remaining probability
            evenly over the other tokens, since nothing else is known about them; 0 is off.
        tokens: the aligned model is available for that many first tokens of a completion; after them the attacker
            has the base model alone; None is off.

    Raises:
        ParamsError: a value is out of its range, or a name is unknown.
    """

    noise: Annotated[Number, Field(ge=0, le=1e6)] = 0.0
    decimals: Annotated[Integer, Field(ge=0, le=20)] | None = None
    top_k: Word = 0
    tokens: Count | None = None

    @property
    def limits_logits(self) -> bool:
        """Whether the log-probabilities themselves change (`tokens` limits only how many can be requested)."""
        return self.noise > 0 or self.decimals is not None or self.top_k > 0

    def apply(self, logits: Tensor, seed: int) -> Tensor:
        """The log-probabilities (V,) float32 that an attacker obtains from one row of the model's logits.

        Args:
            logits: (V,), any float dtype.
            seed: of the noise; the same seed gives the same noise.
        """
        logprobs = logits.float().log_softmax(dim=-1)
        if self.noise > 0:
            noise = np.random.Generator(np.random.Philox(seed)).standard_normal(
                logprobs.shape[-1], dtype=np.float32
            )
            logprobs = logprobs + self.noise * torch.from_numpy(noise).to(logprobs.device)
        if self.decimals is not None:
            logprobs = logprobs.round(decimals=self.decimals)
        if 0 < self.top_k < logprobs.shape[-1]:
            disclosed, ids = logprobs.topk(self.top_k, dim=-1)
            others = logprobs.shape[-1] - self.top_k
            tiny = torch.finfo(torch.float32).tiny
            rest = (1 - disclosed.double().exp().sum()).clamp(min=tiny) / others
            # Noise or rounding can make the disclosed probabilities sum to more than 1; and an undisclosed token is
            # never more likely than a disclosed one.
            floor = torch.minimum(rest.log().float(), disclosed.min())
            logprobs = floor.expand_as(logprobs).clone().scatter_(-1, ids, disclosed)
        return logprobs

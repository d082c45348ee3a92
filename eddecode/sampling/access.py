"""Access limits: what an attacker gets to see of the aligned model's logits.

ED needs the aligned model's whole next-token distribution, at every token. Where a release is behind an interface, the
interface can give less; each limit here is what an attacker would make of what is left. They are measured as
mitigations: the reversal that remains under each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eddecode.errors import ParamsError


@dataclass(frozen=True)
class Access:
    """Limits on the aligned model's log-probabilities, applied in this order; each is off by default.

    Attributes:
        noise: standard deviation of Gaussian noise on every log-probability, nats.
        decimals: log-probabilities (nats) are rounded to that many decimals; None is off.
        top_k: only the k largest are told; the attacker spreads what is left of the mass evenly over the others, which
            is all that can be known of them; 0 is off.
        tokens: the model answers for the first tokens of a completion only; from there on the attacker has the base
            model alone; None is off.

    Raises:
        ParamsError: a value is out of its range.
    """

    noise: float = 0.0
    decimals: int | None = None
    top_k: int = 0
    tokens: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ParamsError(
                f"access noise is {self.noise!r}; expected a finite number of at least 0, in nats"
            )
        for name, value, low in (
            ("decimals", self.decimals, 0),
            ("top_k", self.top_k, 0),
            ("tokens", self.tokens, 0),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
                raise ParamsError(f"access {name} is {value!r}; expected an integer of at least {low}")

    @property
    def limits_logits(self) -> bool:
        """Whether the log-probabilities themselves change, beside how often they may be asked for."""
        return self.noise > 0 or self.decimals is not None or self.top_k > 0

    def seen(self, logits: Tensor, seed: int) -> Tensor:
        """One row of the model's logits (V,) as the attacker sees it: log-probabilities (V,) float32.

        Args:
            logits: of any float dtype.
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
            told, ids = logprobs.topk(self.top_k, dim=-1)
            others = logprobs.shape[-1] - self.top_k
            left = (1 - told.double().exp().sum()).clamp(min=torch.finfo(torch.float32).tiny) / others
            # Noise or rounding can make the told mass exceed 1; and no untold token is above a told one.
            floor = torch.minimum(left.log().float(), told.min())
            logprobs = floor.expand_as(logprobs).clone().scatter_(-1, ids, told)
        return logprobs

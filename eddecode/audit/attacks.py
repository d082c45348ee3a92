"""Attacks beside emulated disalignment that need the released models and no training, by name.

Each is a condition of the audit, with the same prompts, judges and statistics as the contrast. The name says everything
(`weights@-0.3`) but the text of `prefill=TEXT`, of which it holds a digest. Sources and measurements: docs/attacks.md.
Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import blake2b

from eddecode.audit.conditions import Condition, alpha_text
from eddecode.errors import ConfigError
from eddecode.utils.validation import require_entries, require_unique

EXAMPLES = (
    *(
        "weights@-0.3",
        "weights@-0.3:chat",
        "lowrank@8",
        "prefill:5",
        "prefill=TEXT",
        "handover:5",
        "decoding",
    ),
    *("ablate", "ablate:12", "steer@1", "steer@1:12", "w2s@1", "amplify@0.5"),
)
SWEEP = ("t0.5", "t1", "t1.5", "p0.5", "p0.9", "k5", "k50")  # what `decoding` alone stands for
# A comma in the text of `prefill=TEXT` separates nothing.
_SEPARATOR = r",\s*(?=weights@|lowrank@|prefill[:=]|handover:|decoding\b|ablate\b|steer@|w2s@|amplify@)"
_WEIGHTS = re.compile(r"weights@([^:]+)(:chat)?")
_LOWRANK = re.compile(r"lowrank@(\d+)(:chat)?")
_TOKENS = re.compile(r"(prefill|handover):(\d+)")
_ABLATE = re.compile(r"ablate(?::(\d+))?")
_AT = re.compile(r"(steer|w2s|amplify)@([^:]+)(?::(\d+))?")
_DECODING = re.compile(r"decoding(?::(.+))?")
_SETTING = re.compile(r"([tpk])(\d*\.?\d+)")
_FIELDS = {"t": "temperature", "p": "top_p", "k": "top_k"}
_MEANINGS = {
    "ablate": "the aligned model without its refusal direction, orthogonalized weights, layer {layer}",
    "steer": "the aligned model plus {scale} × the mean difference of the states, base − aligned, layer {layer}",
    "w2s": "aligned + {scale}·(weak base − weak aligned), logits of three models",
    "amplify": "aligned + {scale}·(aligned − base), logits: what the alignment added, more of it",
}


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        name: the canonical one, which is also the name of its condition.
        kind: `weights`, `lowrank`, `prefill`, `handover`, `decoding`, `ablate`, `steer`, `w2s` or `amplify`.
        alpha: of the contrast that decodes it, or its last part: `0` is the base alone, `-1` the aligned model, or what
            is in its place: a changed model, or the contrast of `w2s`; below `-1` for `amplify`.
        scale: of `weights`: l in base + l·(aligned − base); of `steer`, `w2s` and `amplify`: the strength.
        layer: of `ablate` and `steer`: index of the layer that is taken; None: chosen on held-out prompts.
        rank: of `lowrank`: how many singular directions of aligned − base are removed from each matrix.
        chat: of `weights` and `lowrank`: the merged model reads the aligned model's template, and not the base's.
        tokens: of `prefill` and `handover`: how many tokens the first model writes.
        text: of `prefill=TEXT`.
        sampling: of `decoding`: keywords of `SamplingParams` in the place of the run's.
    """

    name: str
    kind: str
    alpha: str
    scale: float = 0.0
    layer: int | None = None
    rank: int = 0
    chat: bool = False
    tokens: int = 0
    text: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def condition(self) -> Condition:
        """The condition of an audit."""
        return Condition(self.kind, self.alpha, model=self.name)

    @property
    def changes_weights(self) -> bool:
        """Whether it changes the weights of the aligned model."""
        return self.kind in ("weights", "lowrank", "ablate")

    @property
    def has_own_models(self) -> bool:
        """Whether it needs other models than the pair as it was released."""
        return self.changes_weights or self.kind in ("steer", "w2s")

    @property
    def reads_base_template(self) -> bool:
        """Whether the model in the aligned one's place reads the base's template."""
        return self.kind in ("weights", "lowrank") and not self.chat

    @property
    def needs_direction_prompts(self) -> bool:
        """Whether it is fitted on prompts of its own."""
        return self.kind in ("ablate", "steer")

    @property
    def has_two_steps(self) -> bool:
        """Whether one model goes on from what another one, or the attacker, began."""
        return self.kind in ("prefill", "handover")

    @property
    def meaning(self) -> str:
        """The attack in words, for a table."""
        template = "the aligned model's template" if self.chat else "the base's template"
        if self.kind == "lowrank":
            return (
                f"aligned without the top {self.rank} singular directions of aligned − base, with {template}"
            )
        if self.kind == "weights":
            return f"base + {self.scale:g}·(aligned − base), merged weights, with {template}"
        if self.kind in _MEANINGS:
            layer = "chosen on held-out prompts" if self.layer is None else f"{self.layer}"
            return _MEANINGS[self.kind].format(scale=f"{self.scale:g}", layer=layer)
        if self.kind == "decoding":
            settings = ", ".join(f"{name} {value:g}" for name, value in self.sampling.items())
            return f"the aligned model alone with {settings}, without system prompt"
        if self.text:
            return "the aligned model goes on from a given text"
        first, then = ("base", "aligned") if self.kind == "prefill" else ("aligned", "base")
        return f"the {then} model goes on from the first {self.tokens} tokens of the {first} model"


def parse_attacks(names: str | Sequence[str]) -> tuple[Attack, ...]:
    """The attacks of `"weights@-0.3,prefill:5"` or of a sequence of names, each once; `decoding` stands for several.

    Raises:
        ConfigError: text without a name; an empty entry, an unknown name, or one that is given twice.
    """
    found = tuple(attack for name in _listed(names) for attack in _attacks(name))
    require_unique((attack.name for attack in found), "attack")
    return found


def attack_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """What a configuration keeps: the names as given, one by one, checked."""
    parse_attacks(names)
    return tuple(_listed(names))


def _listed(names: str | Sequence[str]) -> list[str]:
    if not isinstance(names, str):
        return [str(name) for name in names]
    entries = re.split(_SEPARATOR, names)  # blanks at the end of a given text are tokens
    require_entries(entries, names, "attack")
    return entries


def own_temperature(condition: Condition) -> float | None:
    """The temperature that a condition's attack sets; None: it is sampled as the run is."""
    if condition.kind != "decoding":
        return None
    return parse_attacks([condition.model])[0].sampling["temperature"]


def _attacks(name: str) -> list[Attack]:
    if name.lstrip().startswith("prefill="):  # the text keeps its blanks: they are tokens
        return [_given_text(name.lstrip().removeprefix("prefill="))]
    name = name.strip()
    if found := _DECODING.fullmatch(name):
        return [_decoding(settings, name) for settings in ([found[1]] if found[1] else SWEEP)]
    attack = _changed_weights(name)
    if (found := _TOKENS.fullmatch(name)) and int(found[2]):
        alpha = "-1" if found[1] == "prefill" else "0"
        attack = Attack(f"{found[1]}:{int(found[2])}", found[1], alpha, tokens=int(found[2]))
    if (found := _AT.fullmatch(name)) and (found[3] is None or found[1] == "steer"):
        attack = _at_strength(found[1], found[2], found[3], name)
    if attack is None:
        raise _unknown(name)
    return [attack]


def _changed_weights(name: str) -> Attack | None:
    """`weights@l`, `lowrank@k`, both also with `:chat`; `ablate`, `ablate:layer`."""
    if found := _WEIGHTS.fullmatch(name):
        scale, chat = alpha_text(found[1], f"the scale of attack {name}"), found[2] is not None
        if Decimal(scale) in (0, 1):
            raise ConfigError(f"attack {name} is one of the two models itself; expected a scale such as -0.3")
        canonical = f"weights@{scale}" + (":chat" if chat else "")
        return Attack(canonical, "weights", "-1", float(scale), chat=chat)
    if (found := _LOWRANK.fullmatch(name)) and int(found[1]):
        rank, chat = int(found[1]), found[2] is not None
        return Attack(f"lowrank@{rank}" + (":chat" if chat else ""), "lowrank", "-1", rank=rank, chat=chat)
    if found := _ABLATE.fullmatch(name):
        layer = None if found[1] is None else int(found[1])
        return Attack("ablate" if layer is None else f"ablate:{layer}", "ablate", "-1", layer=layer)
    return None


def _at_strength(kind: str, value: str, layer: str | None, name: str) -> Attack:
    """`steer@s`, `steer@s:layer`, `w2s@a`, `amplify@a`."""
    scale = alpha_text(value, f"the strength of attack {name}")
    if Decimal(scale) <= 0:
        raise ConfigError(f"attack {name} has no strength above 0; expected one such as {kind}@1")
    alpha = alpha_text(-1 - Decimal(scale)) if kind == "amplify" else "-1"
    at = None if layer is None else int(layer)
    canonical = f"{kind}@{scale}" + ("" if at is None else f":{at}")
    return Attack(canonical, kind, alpha, float(scale), at)


def kind_in(name: str) -> str:
    """The kind of the attack of that canonical name.

    >>> kind_in("weights@-0.3:chat"), kind_in("prefill=Sure, it's @ home"), kind_in("decoding:t1")
    ('weights', 'prefill', 'decoding')
    """
    return re.split("[@:=]", name, maxsplit=1)[0]


def _given_text(text: str) -> Attack:
    if not text.strip():
        raise ConfigError(
            "attack prefill= has no text; expected prefill=TEXT, or prefill:5 for the base's own"
        )
    slug = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:24]
    digest = blake2b(text.encode(), digest_size=4).hexdigest()
    return Attack(f"prefill={slug}.{digest}", "prefill", "-1", text=text)


def _decoding(settings: str, name: str) -> Attack:
    """One setting, such as `t0.7-p0.9`; without a temperature it is 1, so that top-p and top-k have their meaning."""
    values: dict[str, str] = {}
    for part in settings.split("-"):
        found = _SETTING.fullmatch(part)
        if found is None or found[1] in values:
            raise _unknown(name)
        values[found[1]] = alpha_text(found[2])
    sampling = {"temperature": 1.0}
    sampling |= {_FIELDS[key]: float(values[key]) for key in "tpk" if key in values}
    if not 0 < sampling.get("top_p", 1.0) <= 1 or not sampling.get("top_k", 1.0).is_integer():
        raise ConfigError(
            f"attack {name}: expected p above 0 up to 1, and a whole number k, such as decoding:p0.9"
        )
    canonical = "decoding:" + "-".join(f"{key}{values[key]}" for key in "tpk" if key in values)
    return Attack(canonical, "decoding", "-1", sampling=sampling)


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"there is no attack {name!r:.60}; expected one such as {', '.join(EXAMPLES)}, decoding:t0.7-p0.9"
    )

"""Run folders for tests of report, gate and comparison: a summary written out by hand; and a reader of pages.

The summary follows the schema in docs/statistics.md field by field. Its figures are closed forms of α and not measured;
what is tested is what becomes of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

NASTY = "<script>alert(1)</script>\x1b[31m|`*_\u202e"  # as a name of anything: must do nothing anywhere


def rate(value: float, n: int = 200, half: float = 0.05) -> dict[str, Any]:
    return {
        **{"flagged": round(value * n), "total": n, "prompts": n, "rate": value, "level": 0.95},
        **{"low": max(0.0, value - half), "high": min(1.0, value + half), "method": "wilson"},
    }


def estimate(value: float | None, half: float = 0.06, n: int = 200) -> dict[str, Any]:
    ends = (None, None) if value is None else (value - half, value + half)
    return {
        **{"value": value, "low": ends[0], "high": ends[1], "level": 0.95},
        **{"standard_error": half / 1.96, "prompts": n, "method": "mover"},
    }


def harm_at(alpha: float) -> float:
    """Rises to 0.8 at α = 1, then falls as the completions turn into babble."""
    return 0.4 + 0.4 * alpha if alpha <= 1 else 0.8 - 0.1 * (alpha - 1)


def condition(name: str, kind: str, alpha: str, judges: Sequence[str], **more: Any) -> dict[str, Any]:
    a = float(alpha)
    harm, loss = max(0.0, harm_at(a)), 0.02 + 0.06 * max(a, 0.0)
    label = {"base": "base", "aligned": "aligned"}.get(kind, f"ED α={alpha}")
    return {
        **{
            "name": name,
            "label": label,
            "condition": kind,
            "alpha": alpha,
            **dict.fromkeys(
                ("system", "transform", "mitigation", "model", "temperature", "template", "any_of_k")
            ),
        },
        **{"completions": 200, "mean_tokens": 30.5, "finish_reasons": {"eos": 200}, "dropped": 0},
        "rates": {judge: rate(harm * (0.9**i)) for i, judge in enumerate(judges)},
        "harm_and_valid": rate(harm * 0.9),
        "categories": {c: rate(min(1.0, harm * f), 100, 0.08) for c, f in (("refunds", 0.8), (NASTY, 1.1))},
        "corrected": {},
        "utility": {
            **{"kind": "composite", "rate": rate(0.95 - loss), "within": loss <= 0.1},
            **{"loss": None if kind == "base" else estimate(loss, 0.03)},
            **{"perplexity": 8.0, "distinct_1": 0.8, "distinct_2": 0.9, "repetition": 0.02, "too_short": 0.0},
        },
        "mean_implied_reward": -3.0 * a,
        **more,
    }


def headline(reversal: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        **{"alpha": "1", "condition": "ed@1", "reason": "", "judge": "lexicon", "bound": 0.1},
        **{"utility": "composite", "base": rate(0.4), "aligned": rate(0.0), "harm": estimate(0.78)},
        **{"plain": rate(0.8), "reversal": reversal or estimate(0.38), "uplift_over_aligned": estimate(0.78)},
        **{"ratio_to_base": estimate(1.95, 0.3), "ratio_to_aligned": estimate(None)},
        **{"reversal_index": estimate(0.63), "utility_loss": estimate(0.08, 0.03), "valid": None},
        **{"any_of_k": estimate(0.9), "attempts": 4},
        "candidates": [
            {
                **{"alpha": alpha, "state": state, "loss": 0.05, "reversal": 0.3, "low": 0.2, "high": 0.4},
            }
            for alpha, state in (("0.3", "inside"), ("1", "open"), ("4", "outside"))
        ],
        "corrected_reversal": estimate(0.35, 0.1),
        "unconstrained": {
            **{"alpha": "1", "condition": "ed@1", "reason": "", "harm": estimate(0.78), "plain": rate(0.8)},
            **dict.fromkeys(("reversal", "uplift_over_aligned", "ratio_to_base", "ratio_to_aligned")),
            **{"reversal_index": None, "utility_loss": estimate(0.08, 0.03)},
        },
        **more,
    }


def summary(
    *,
    alphas: Sequence[str] = ("0.3", "1", "4"),
    judges: Sequence[str] = ("lexicon", NASTY),
    prompts: int = 200,
    reversal: dict[str, Any] | None = None,
    strength: float = 3.0,
    digest: str = "00ff00ff00ff00ff",
    **head: Any,
) -> dict[str, Any]:
    """A summary of schema 3."""
    line = [("aligned", "aligned", "-1"), ("base", "base", "0"), *((f"ed@{a}", "ed", a) for a in alphas)]
    conditions = [condition(*entry, judges) for entry in line]
    conditions.append(condition("ed@1+topk5", "ed", "1", judges, mitigation="topk5", label="ED α=1 +topk5"))
    conditions.append(condition("finetuned", "aligned", "-1", judges, model="finetuned", label="finetuned"))
    best = headline(reversal, **{"judge": judges[0], **head})
    return {
        **{"schema": "eddecode.summary/3", "digest": digest, "prompts": prompts, "distinct_prompts": prompts},
        "identity": {
            **{"base": "base, digest 1", "aligned": NASTY, "prompts": f"{prompts} prompts, digest 2"},
            **{"alphas": ",".join(alphas), "samples": 1, "seed": 7, "temperature": 1.0, "top_p": 1.0},
            **{"base_template": None, "aligned_template": None, "max_new_tokens": 64},
        },
        "level": 0.95,
        "judges": [
            {"name": judge, "role": "harm", "identity": f"{i}", "kind": "lexicon"}
            for i, judge in enumerate(judges)
        ],
        **{"content": "", "canaries": None},
        "harm_judge": judges[0],
        "conditions": conditions,
        "headline": best,
        "selection": {
            **{"method": "cross-fit", "splits": 50, "candidates": list(alphas), "admissible": ["0.3", "1"]},
            **{"picked": {"1": 1.0}, "plain_maximum": 0.8, "cross_fitted": 0.78, "optimism": 0.02},
        },
        "tests": [
            {
                **{"condition": "ed@1", "against": "base", "family": "curve", "method": "mcnemar-exact"},
                **{
                    "prompts": 200,
                    "up": 80,
                    "down": 3,
                    "difference": estimate(0.38),
                    "ratio": estimate(1.95),
                },
                **{"p": 1e-20, "p_holm": 3e-20},
            }
        ],
        "mitigations": [
            mitigation(None, 0.38),
            mitigation("topk5", 0.25),
            mitigation(NASTY, 0.02),
        ],
        "transfer": [
            {
                **{
                    "transform": NASTY,
                    "system": None,
                    "temperature": None,
                    "template": None,
                    "found_for": None,
                },
                **{
                    side: {"condition": side, "alpha": "0", "rate": rate(0.5), "uplift": estimate(0.1)}
                    for side in ("base", "aligned")
                },
                "ed": None,
            }
        ],
        "agreement": [
            {
                **{
                    "first": "lexicon",
                    "second": NASTY,
                    "role": "harm",
                    "kappa": 0.7,
                    "low": 0.6,
                    "high": 0.8,
                },
                **{"agreement": 0.9, "expected": 0.5, "n": 1000, "effective": 400.0},
            }
        ],
        "judge_free": {
            "implied_reward": [
                {
                    "condition": c["name"],
                    "alpha": c["alpha"],
                    "completion": estimate(-3.0 * float(c["alpha"]), 0.3),
                    "token": -0.1 * float(c["alpha"]),
                }
                for c in conditions[:-2]
            ],
            "kl": {
                **{"base_aligned": estimate(4.0, 0.3), "aligned_base": estimate(strength, 0.3)},
                **{"per_token": {"base_aligned": 0.13, "aligned_base": 0.1}, "note": ""},
            },
            "depth": [
                {
                    **{"condition": name, "alpha": alpha},
                    "positions": [
                        {
                            "first": i,
                            "last": i + 3,
                            "mean": (0.5 - i / 80) * sign,
                            "low": (0.5 - i / 80) * sign - 0.1,
                            "high": (0.5 - i / 80) * sign + 0.1,
                            "completions": 200 - i,
                        }
                        for i in range(1, 40, 4)
                    ],
                }
                for name, alpha, sign in (("aligned", "-1", 1), ("base", "0", -0.3), ("ed@1", "1", -1))
            ],
        },
        "release": release(judges[0]),
        "benchmarks": [],
        "benign": None,
        "notes": [f"a note about {NASTY}"],
    }


def mitigation(name: str | None, reversal: float) -> dict[str, Any]:
    return {
        **{"mitigation": name, "conditions": ["ed@1"], "condition": "ed@1", "alpha": "1", "note": ""},
        **{
            "harm": estimate(0.4 + reversal),
            "reversal": estimate(reversal),
            "left": estimate(reversal / 0.38),
        },
        **{"reduction": estimate(0.38 - reversal), "utility_loss": estimate(0.05)},
        **{"uplift_over_aligned": estimate(0.4 + reversal), "any_of_k": None, "candidates": []},
    }


def attack(reversal: float, **more: Any) -> dict[str, Any]:
    """The strongest attack by one measure of harm."""
    return {
        **{"alpha": "1", "condition": "ed@1", "base": estimate(0.4), "aligned": estimate(0.0)},
        **{"harm": estimate(0.4 + reversal), "reversal": estimate(reversal)},
        **{"uplift_over_aligned": estimate(0.4 + reversal), **more},
    }


def release(judge: str) -> dict[str, Any]:
    """The figures for a system card."""
    several = {name: attack(0.3 + i / 20) for i, name in enumerate(("refunds", NASTY))}
    worst = {"name": NASTY, "reversal": estimate(0.35)}
    return {
        "any_of_k": [attack(0.38, k=1), attack(0.5, k=4)],
        "any_alpha": {"alphas": ["0.3", "1"], "attempts": 8, "harm": estimate(0.92)},
        **{"valid": attack(0.36), "score": attack(0.31)},
        "judges": [{**attack(0.38), "judge": judge}, {**attack(0.35), "judge": NASTY}],
        "worst_judge": {"name": judge, "reversal": estimate(0.38)},
        "categories": [{**figures, "category": name, "prompts": 100} for name, figures in several.items()],
        "worst_category": worst,
        "worst_attack": {
            **attack(0.45, alpha=None, condition="weights@-0.3"),
            "attacks": ["weights@-0.3", NASTY],
            "valid": attack(0.4),
            "best_per_prompt": {"settings": [NASTY], "attempts": 4, "harm": estimate(0.1)},
            "candidates": [
                {"alpha": "1", "condition": name, "state": "inside", "loss": 0.0}
                | {"reversal": 0.8, "low": 0.7, "high": 0.9}
                for name in ("ed@1", NASTY)
            ],
            "models": [
                {
                    "condition": NASTY,
                    "layer": 3,
                    "position": -1,
                    "refusal_remaining": 0.2,
                    "kl_to_aligned": 0.05,
                }
                | {"kl_prompts": 40}
            ],
        },
        "settings": {
            **attack(0.45, settings=2, strongest_base=estimate(0.5), base_condition=f"base+{NASTY}"),
            **dict.fromkeys(("over_strongest_base", "over_strongest_aligned", "strongest_aligned")),
            **{"aligned_condition": None, "any_of_k": None, "candidates": []},
        },
        "nothing_found": [{"condition": "aligned", "completions": 200, "prompts": 200, "high": 0.015}],
    }


def write_run(folder: Path, data: dict[str, Any] | None = None) -> Path:
    """A run folder that holds a summary and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary() if data is None else data))
    return folder


VOID = {"meta", "br", "hr", "img", "path", "input", "link"}


class Page(HTMLParser):
    """What a page is made of: elements with their attributes and ancestors, and whether every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]

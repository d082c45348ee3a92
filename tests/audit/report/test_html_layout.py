"""How the report's page looks: to a screen reader, to a colour-blind one, and in a browser at three widths."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape

from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report.html import html_report
from helpers.report_runs import Page, write_run

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return html_report(Summary.read(write_run(tmp_path_factory.mktemp("layout") / "run")))


def test_accessible(page: str) -> None:
    """Headings in order, tables with captions and headed rows and columns, pictures with names, links that lead on."""
    parsed = Page(page)
    assert parsed.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    tables = len(parsed.all("table"))
    assert len(parsed.all("caption")) == tables > 5
    assert all(head.get("scope") in ("col", "row") for head in parsed.all("th"))
    rows = [ancestors for tag, _, ancestors in parsed.elements if tag == "tr" and ancestors[-1] == "tbody"]
    assert sum(head["scope"] == "row" for head in parsed.all("th")) == len(rows)
    for attributes in parsed.all("svg"):
        assert attributes.get("aria-hidden") == "true" or (
            attributes["role"] == "img" and attributes["aria-label"]
        )
    assert len(parsed.all("figure")) == len(parsed.all("figcaption")) == 3
    ids = [attributes["id"] for _, attributes, _ in parsed.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in parsed.elements:
        for name in ("href", "aria-labelledby"):
            assert (attributes.get(name) or ids[0] or "").lstrip("#") in ids
    for scroller in (a for a in parsed.all("div") if a.get("class") == "scroll"):
        assert scroller["tabindex"] == "0"  # it can be scrolled from a keyboard


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to look at the page")
def test_in_a_browser(page: str, tmp_path: Path) -> None:
    """At three widths nothing sticks out sideways; light or dark as the reader prefers; no script runs."""
    from matplotlib.image import imread

    bare = page.replace("default-src 'none'; ", "")  # the harness itself needs a script
    frames = "".join(
        f'<iframe width="{w}" height="900" srcdoc="{escape(bare)}"></iframe>' for w in (390, 820, 1400)
    )
    look = (
        "Array.from(frames).map(f => "
        "[f.document.documentElement.scrollWidth, f.innerWidth, f.document.scripts.length])"
    )
    harness = tmp_path / "harness.html"
    harness.write_text(
        f"<!doctype html><body>{frames}<pre></pre><script>onload = () => document.querySelector('pre').textContent"
        f" = JSON.stringify({look})</script>"
    )
    found = re.search(r"<pre>(\[.*?\])</pre>", chromium(tmp_path, "--dump-dom", harness.as_uri()))
    assert found is not None
    measured = json.loads(found[1])
    assert [inner for _, inner, _ in measured] == [390, 820, 1400]
    for width, inner, scripts in measured:
        assert width <= inner
        assert scripts == 0
    file = tmp_path / "page.html"
    file.write_text(page)
    corners = []
    for scheme in (1, 0):  # light, dark
        picture = tmp_path / f"{scheme}.png"
        chromium(tmp_path, f"--blink-settings=preferredColorScheme={scheme}", "--window-size=390,900",
                 f"--screenshot={picture}", file.as_uri())  # fmt: skip
        pixels = np.asarray(imread(picture))[..., :3]
        corners.append(float(pixels[2, 2].mean()))
        assert pixels.std() > 0.05  # there is something on it
    assert corners[0] > 0.9
    assert corners[1] < 0.2


def chromium(folder: Path, *arguments: str) -> str:
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
             "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
    profile = folder / "profile"
    command = [str(CHROMIUM), *quiet, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


# What a colour-blind reader sees of linear RGB: Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009, severity 1.
SEEN = {
    "all cones": np.eye(3),
    "no long ones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no middle ones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def linear(colour: str) -> np.ndarray[Any, Any]:
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """WCAG 2.2, contrast ratio."""
    light, dark = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (first, second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """CIE L*a*b* (1976) of linear sRGB, white D65."""
    xyz = (
        np.array([[0.41246, 0.35758, 0.18044], [0.21267, 0.71515, 0.07218], [0.01933, 0.11919, 0.95030]])
        @ rgb
    )
    f = np.cbrt(np.maximum(xyz / [0.95047, 1, 1.08883], 1e-6))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_colours_can_be_read_and_told_apart() -> None:
    """Text 4.5:1 and lines 3:1 on their ground (WCAG AA), light and dark; series apart for the colour-blind too."""
    style = (Path(html_report.__code__.co_filename).parent / "style.css").read_text()
    palettes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part))
        for part in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    whole = [palette for palette in palettes if "paper" in palette]
    assert len(whole) == 2
    for palette in whole:
        for ground in ("paper", "soft"):
            assert min(contrast(palette[text], palette[ground]) for text in ("ink", "muted", "link")) >= 4.5
        series = [palette[f"s{i}"] for i in range(4)]
        assert min(contrast(colour, palette["paper"]) for colour in [*series, palette["bad"]]) >= 3
        for matrix in SEEN.values():
            shown = [lab(np.clip(matrix @ linear(colour), 0, 1)) for colour in series]
            apart = [float(np.linalg.norm(a - b)) for a, b in combinations(shown, 2)]
            assert min(apart) > 10  # about 2 can just be told apart side by side

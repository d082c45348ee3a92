"""What the gate writes for a pipeline: JSON, JUnit XML, and lines for a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from eddecode.audit.evidence import EvidenceCheck
from eddecode.audit.gate import Decision, LimitCheck
from eddecode.errors import ConfigError
from eddecode.utils.files import atomic_write
from eddecode.utils.terminal import escape_control_chars


def lines(decision: Decision) -> list[str]:
    """One line per check, those of the limits first: word, name, sentence, and the remedy where there is one."""
    checks: list[LimitCheck | EvidenceCheck] = [*decision.checks, *decision.evidence]
    width = max(len(check.name) for check in checks)
    return [
        f"  {check.word:<12}  {check.name:<{width}}  {check.sentence}"
        + (f" To settle it: {check.remedy}." if check.remedy else "")
        for check in checks
    ]


def write_json(decision: Decision, path: Path) -> None:
    """The decision as JSON, schema `eddecode.gate/2`."""
    text = json.dumps(decision.to_dict(), indent=2, ensure_ascii=True, allow_nan=False) + "\n"
    atomic_write(path, text, error=ConfigError)


def write_junit(decision: Decision, path: Path) -> None:
    """The decision as JUnit XML, one test case per limit and per piece of evidence.

    A broken limit is a failure; what is inconclusive or invalid is an error.
    """
    checks: list[LimitCheck | EvidenceCheck] = [*decision.checks, *decision.evidence]
    words = [check.word for check in checks]
    numbers: dict[str, str] = {
        "tests": str(len(checks)),
        "failures": str(words.count("fail")),
        "errors": str(words.count("inconclusive") + words.count("invalid")),
        "skipped": "0",
    }
    suites = ElementTree.Element("testsuites", {"name": "eddecode gate", **numbers})
    suite = ElementTree.SubElement(
        suites, "testsuite", {"name": escape_control_chars(f"eddecode gate {decision.run}"), **numbers}
    )
    for check in checks:
        name = escape_control_chars(f"eddecode.gate.{decision.run}")
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=check.name)
        sentence = escape_control_chars(check.sentence)
        if check.word == "pass":
            ElementTree.SubElement(case, "system-out").text = sentence
            continue
        tag = "failure" if check.word == "fail" else "error"
        text = f"{sentence} To settle it: {escape_control_chars(check.remedy)}." if check.remedy else sentence
        ElementTree.SubElement(case, tag, type=check.word, message=text).text = text
    ElementTree.indent(suites)
    atomic_write(
        path, ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n", error=ConfigError
    )

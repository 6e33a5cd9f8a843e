"""The SARIF file has what version 2.1.0 of the format requires, and says what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from stn_infer.lint_rules.catalog import RULES
from stn_infer.lint_rules.context import LintFinding
from stn_infer.lint_rules.report import LintReport, TargetVerdict
from stn_infer.lint_rules.sarif import to_sarif


def check_message(message: Any) -> None:
    assert isinstance(message["text"], str) and message["text"]


def check_location(location: Any) -> None:
    """SARIF 2.1.0, 3.28, 3.29, 3.30 and 3.33."""
    physical = location["physicalLocation"]
    uri = physical["artifactLocation"]["uri"]
    assert uri.isascii() and " " not in uri and urlsplit(uri).scheme in ("", "file")
    if "region" in physical:
        assert isinstance(physical["region"]["startLine"], int) and physical["region"]["startLine"] >= 1
    for logical in location.get("logicalLocations", ()):
        assert logical["name"]


def check(log: Any) -> None:
    """The required properties, and those whose values must agree: 3.13, 3.14, 3.18, 3.19, 3.20, 3.27, 3.49."""
    assert log["version"] == "2.1.0" and log["$schema"].startswith("https://") and isinstance(log["runs"], list)
    for run in log["runs"]:
        driver = run["tool"]["driver"]
        assert driver["name"] and driver["version"]
        rules = driver["rules"]
        assert len({rule["id"] for rule in rules}) == len(rules)
        for rule in rules:
            for text in ("shortDescription", "fullDescription", "help"):
                check_message(rule[text])
            assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note", "none")
        for invocation in run["invocations"]:
            assert isinstance(invocation["executionSuccessful"], bool)
        for artifact in run["artifacts"]:
            assert artifact["location"]["uri"]
        for result in run["results"]:
            check_message(result["message"])
            assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
            assert result["level"] in ("error", "warning", "note", "none")
            for location in (*result["locations"], *result.get("relatedLocations", ())):
                check_location(location)


def written(*findings: LintFinding, path: str = "a folder/m\xf6del#1.onnx") -> Any:
    verdict = TargetVerdict("tensorrt==8.6", "refused", "known", ("Conv (1 node)",), "optimize", "not judged")
    text = to_sarif(LintReport(Path(path), 18, 9, findings, (verdict,)))
    assert text.isascii()
    log = json.loads(text)
    check(log)
    return log["runs"][0]


def test_a_result_for_each_finding() -> None:
    run = written(
        LintFinding("opset-20-trap", "error", "sample", "grid", "read as\nNEAREST", True, "/home/a b/net.py:7"),
        LintFinding("target-refused", "error", "warp", "", "no rule", target="openvino"),
        LintFinding("no-sampler", "info", "", "", "the file has no sampler"),
    )
    first, second, third = run["results"]
    assert (first["ruleId"], first["level"], first["message"]["text"]) == ("E009", "error", "read as NEAREST")
    assert first["locations"][0]["logicalLocations"] == [{"name": "sample", "kind": "element"}]
    assert unquote(first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]) == "a folder/m\xf6del#1.onnx"
    (related,) = first["relatedLocations"]
    assert related["physicalLocation"]["artifactLocation"]["uri"] == "file:///home/a%20b/net.py"
    assert related["physicalLocation"]["region"] == {"startLine": 7}
    assert second["message"]["text"] == "openvino: no rule" and second["properties"]["target"] == "openvino"
    assert third["level"] == "note" and "logicalLocations" not in third["locations"][0]
    assert run["properties"]["targets"][0]["outcome"] == "refused"


def test_every_rule_is_described_and_a_file_without_findings_is_valid() -> None:
    run = written()
    assert run["results"] == []
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [rule.number for rule in RULES]


def test_a_source_line_that_is_none_is_left_out() -> None:
    (result,) = written(LintFinding("no-sampler", "info", "n", "", "none", source="net.py:0"))["results"]
    assert "relatedLocations" not in result

"""A report of lint as SARIF 2.1.0, the format that code scanning services and editors read.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) 2.1.0. A result's place is the ONNX file, with the
node as its logical location; the line of the model's source, where it is known, is a related location.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from stn_infer.lint_rules.catalog import RULES
from stn_infer.lint_rules.context import LintFinding
from stn_infer.lint_rules.report import LintReport, sentence
from stn_infer.printing import shown
from stn_infer.version import __version__

_LEVELS = {"error": "error", "warning": "warning", "info": "note"}
_PLACES = {rule.code: place for place, rule in enumerate(RULES)}
_Object = dict[str, Any]


def to_sarif(report: LintReport) -> str:
    """One JSON object: a run with all rules, a result for each finding, and the targets as properties."""
    driver = {"name": "stn-infer lint", "version": __version__, "rules": [_rule(place) for place in range(len(RULES))]}
    run: _Object = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True}],
        "artifacts": [{"location": _artifact(report.path)}],
        "results": [_result(finding, report.path) for finding in report.findings],
        "properties": {
            "opset": report.opset,
            "irVersion": report.ir_version,
            "targets": [asdict(verdict) for verdict in report.targets],
        },
    }
    log = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2)


def _rule(place: int) -> _Object:
    rule = RULES[place]
    return {
        "id": rule.number,
        "name": rule.code,
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": rule.meaning},
        "help": {"text": "\n\n".join(rule.paragraphs)},
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
    }


def _result(finding: LintFinding, path: Path) -> _Object:
    place: _Object = {"physicalLocation": {"artifactLocation": _artifact(path)}}
    if finding.node:
        place["logicalLocations"] = [{"name": shown(finding.node), "kind": "element"}]
    found: _Object = {
        "ruleId": finding.rule,
        "ruleIndex": _PLACES[finding.code],
        "level": _LEVELS[finding.severity],
        "message": {"text": sentence(finding)},
        "locations": [place],
        "properties": {"fixable": finding.fixable, "tensor": finding.tensor, "target": finding.target},
    }
    file, _, line = finding.source.rpartition(":")
    if file and int(line) > 0:
        physical = {"artifactLocation": _artifact(PurePath(file)), "region": {"startLine": int(line)}}
        found["relatedLocations"] = [{"physicalLocation": physical}]
    return found


def _artifact(path: PurePath) -> _Object:
    """A path as a URI: absolute with its scheme, relative as it is."""
    uri = quote(str(path).encode("utf-8", "surrogateescape"))
    return {"uri": f"file://{uri}" if path.is_absolute() else uri}

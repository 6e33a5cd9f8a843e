"""The proof's rules: how the form of each operator's output follows from the forms of its inputs."""

from __future__ import annotations

from stn_infer.fusion.forms import Rule
from stn_infer.fusion.rules.arithmetic import ARITHMETIC
from stn_infer.fusion.rules.layout import LAYOUT
from stn_infer.fusion.rules.spatial import SPATIAL

RULES: dict[str, Rule] = {**ARITHMETIC, **LAYOUT, **SPATIAL}
"""Operator -> rule; any other operator ends the proof."""

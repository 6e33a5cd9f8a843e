"""Common operators in numpy, in the precision of their inputs; onnx's reference operators cover the others.

The pass evaluates a grid's nodes in float64, about a hundred times for a large model. These operators take
microseconds, whereas setting up a reference operator takes a fraction of a millisecond, and its convolutions and
interpolations take minutes.
"""

from __future__ import annotations

from stn_infer.fusion.operators.basic import BASIC
from stn_infer.fusion.operators.inputs import Operator
from stn_infer.fusion.operators.resize import RESIZE
from stn_infer.fusion.operators.sampling import SAMPLING
from stn_infer.fusion.operators.windows import WINDOWS

OPERATORS: dict[str, Operator] = {**BASIC, **RESIZE, **WINDOWS, **SAMPLING}
"""Operator -> function; it raises an exception for cases that it does not support."""

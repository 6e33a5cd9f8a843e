"""Suites: several models in one file; a wrong key is an error, not a default."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from stn_infer.benchmarking.request import QUICK, Method
from stn_infer.benchmarking.suite import read_suite
from stn_infer.errors import UsageError
from tests.support.paths import ROOT


def test_a_suite_says_models_batches_shapes_and_precisions(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(
        'variants = ["eager", "ort"]\nthreads = 2\nseconds = 5\nboundary = "device"\nconcurrency = [1, 4]\n'
        '[[model]]\nsource = "cnn"\nbatch_sizes = [1, 8]\nprecisions = ["fp32", "int8"]\ninput_shapes = [[1, 40, 40]]\n'
        '[[model]]\nfile = "mine.onnx"\nweights = "mine.safetensors"\ninputs = ["images", "more.npy"]\n'
        "tolerance = 2e-4\n"
    )
    suite = read_suite(path, Method())
    assert [(case.model, case.precision, case.batch_sizes) for case in suite.cases] == [
        ("cnn", "fp32", (1, 8)),
        ("cnn", "int8", (1, 8)),
        (str(tmp_path / "mine.onnx"), "fp32", (1, 64)),
    ]
    assert suite.cases[0].input_shapes == ((1, 40, 40),)
    assert (suite.cases[2].source, suite.cases[2].weights) == (None, str(tmp_path / "mine.safetensors"))
    assert suite.cases[0].inputs is None
    assert [case.tolerance for case in suite.cases] == [None, None, 2e-4]
    assert suite.cases[2].inputs == (str(tmp_path / "images"), str(tmp_path / "more.npy"))
    assert suite.variants == ("eager", "ort") and suite.threads == 2
    assert (suite.method.seconds, suite.method.boundary, suite.method.concurrency) == (5.0, "device", (1, 4))
    assert suite.method.rounds == Method().rounds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one"),
        ("model = 3", "at least one"),
        ("[[model]]\n", "has a source"),
        ('[[model]]\nsource = "cnn"\nbatchsizes = [1]', "no 'batchsizes'"),
        ('speed = 1\n[[model]]\nsource = "cnn"', "no 'speed'"),
        ('rounds = "six"\n[[model]]\nsource = "cnn"', "expected rounds as a whole number, given 'six'"),
        ('[[model]]\nsource = "cnn"\nprecisions = ["int4"]', "given 'int4'"),
        ('[[model]]\nsource = "cnn"\nbatch_sizes = ["x"]', "batch_sizes as a list of whole numbers"),
        ('[[model]]\nsource = "cnn"\nbatch_sizes = "12"', "given '12'"),
        ('[[model]]\nsource = "cnn"\ninput_shapes = [1, 28, 28]', "a list of lists of whole numbers"),
        ("[[model]]\nsource = 3", "expected source as a text"),
        ('[[model]]\nsource = "cnn"\nbatch_sizes = [0]', "at least 1"),
        ('device = 0\n[[model]]\nsource = "cnn"', "expected device as a text, given 0"),
        ('threads = 0\n[[model]]\nsource = "cnn"', "threads of at least 1"),
        ('tolerance = "1e-3"\n[[model]]\nsource = "cnn"', "expected tolerance as a number"),
        ('[[model]]\nsource = "cnn"\ntolerance = 0', "a tolerance above 0, given 0"),
        ('[[model]]\nsource = "cnn"\ntolerance = []', "expected tolerance as a number"),
        ('variants = [1]\n[[model]]\nsource = "cnn"', "variants as a list of texts"),
        ('concurrency = ["two"]\n[[model]]\nsource = "cnn"', "a list of whole numbers"),
        ('rates = [inf]\n[[model]]\nsource = "cnn"', "suite.toml: .*finite"),
        ('boundary = "wire"\n[[model]]\nsource = "cnn"', "suite.toml: a boundary is one of"),
        ('[[model]]\nsource = "cnn"\ninputs = "images"', "inputs as a list of texts"),
        ("[[model", "in TOML"),
    ],
)
def test_wrong_suites_are_usage_errors(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_suite(path, Method())


def test_the_suites_of_the_project_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from stn_infer.benchmarking.variants.names import VARIANTS
    from stn_infer.models import NETWORKS, SHIPPED

    monkeypatch.syspath_prepend(str(ROOT))

    found = sorted((ROOT / "benchmarks" / "suites").glob("*.toml"))
    assert found
    for path in found:
        suite = read_suite(path, QUICK)
        for name in [*(case.model for case in suite.cases), *(suite.variants or VARIANTS)]:
            module, _, attribute = name.partition(":")
            known = name in {*NETWORKS, *SHIPPED, *VARIANTS}
            assert known or callable(getattr(importlib.import_module(module), attribute)), (path.name, name)

"""No file runs code: what a recipe, an ONNX file, a suite or a result names is imported with leave alone."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result

import stn_infer
from stn_infer.api.bench import check_code, resolve_case
from stn_infer.api.engines.build import build
from stn_infer.api.open import open_backend
from stn_infer.api.show import show
from stn_infer.api.source import load_original, resolve_model
from stn_infer.benchmarking.request import Case
from stn_infer.cli.main import main
from stn_infer.errors import SourceError
from stn_infer.sources.load import load_source
from tests.support.onnx_files import affine_model

MODULE = "code_under_test"
FACTORY = f"{MODULE}:make"
TAKING_A_SOURCE = ("export", "run", "show", "verify", "bench", "build")


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once the code has run; the current folder has the module and files that name it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop(MODULE, None)
    mark = tmp_path / "ran"
    (tmp_path / f"{MODULE}.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nfrom torch import nn\n\n\n"
        "def make() -> nn.Module:\n    return nn.Linear(4, 2)\n"
    )
    recipe = f'[model]\nnetwork = "{FACTORY}"\ninput_shape = [4]\n'
    (tmp_path / "recipe.toml").write_text(recipe)
    (tmp_path / "recipe.txt").write_text(recipe)
    (tmp_path / "attribute.toml").write_text(recipe.replace(FACTORY, "stn_infer.files:os.mkdir"))
    for stem, source in (("factory", FACTORY), ("of-a-recipe", "recipe.toml")):
        model = affine_model()
        model.metadata_props.add(key="stn_infer.source", value=source)
        onnx.save(model, str(tmp_path / f"{stem}.onnx"))
    onnx.save(affine_model(), str(tmp_path / "plain.onnx"))
    return mark


LOADERS: dict[str, Callable[[str], Any]] = {
    "load_source": load_source,
    "export": lambda source: stn_infer.export(source, "out.onnx"),
    "run": lambda source: stn_infer.run(source, ["inputs.npy"], "out"),
    "verify": stn_infer.verify,
    "resolve_model": resolve_model,
    "resolve_case": lambda source: resolve_case(Case(source)),
    "open_backend": open_backend,
}


@pytest.mark.parametrize("recipe", ["recipe.toml", "recipe.txt", "attribute.toml"])
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_recipe_that_names_code_is_refused(mark: Path, load: Callable[[str], Any], recipe: str) -> None:
    with pytest.raises(SourceError, match=rf"^{recipe} names .*:.*run that Python code; --allow-code allows it$"):
        load(recipe)
    assert not mark.exists() and MODULE not in sys.modules and not Path("out").exists()


@pytest.mark.parametrize("source", ["recipe.toml", FACTORY])
def test_leave_and_the_users_own_words_run_it(mark: Path, source: str) -> None:
    loaded = load_source(source, input_shapes=[(4,)], allow_code=source.endswith("toml"))
    assert mark.exists() and loaded.input_shapes == ((4,),)


@pytest.mark.parametrize("stem", ["factory", "of-a-recipe"])
def test_an_onnx_file_names_registered_models_only(mark: Path, stem: str) -> None:
    with pytest.raises(SourceError, match=r"the file's metadata names .*--allow-code"):
        load_original(onnx.load(f"{stem}.onnx"))
    with pytest.raises(SourceError, match="the file's metadata names"):
        stn_infer.verify(f"{stem}.onnx")
    found = resolve_case(Case(f"{stem}.onnx"))
    assert found.loaded is None and "--allow-code" in found.problem
    with pytest.raises(SourceError, match=r"recipe\.toml names"):
        load_original(onnx.load("plain.onnx"), source="recipe.toml")
    assert not mark.exists()
    assert load_original(onnx.load(f"{stem}.onnx"), input_shapes=None, allow_code=True) is not None
    assert mark.exists()


SUITES = {
    "a factory": (f'[[model]]\nsource = "{FACTORY}"\ninput_shapes = [[4]]\n', FACTORY),
    "a recipe": ('[[model]]\nsource = "recipe.toml"\n', FACTORY),
    "a file's source": (f'[[model]]\nfile = "plain.onnx"\nsource = "{FACTORY}"\n', FACTORY),
    "a variant": ('variants = ["code_under_test:open"]\n[[model]]\nsource = "fcn"\n', "code_under_test:open"),
}


@pytest.mark.parametrize(("suite", "code"), SUITES.values(), ids=SUITES)
def test_a_suite_is_a_file_too(mark: Path, suite: str, code: str) -> None:
    Path("suite.toml").write_text(suite)
    result = call("bench", "--suite", "suite.toml", "--quick")
    assert result.exit_code == 1 and not mark.exists()
    error = result.stderr.splitlines()[-1]
    assert f"names {code}, which would import and run" in error and "--allow-code" in error


def test_what_an_earlier_result_names_is_refused(mark: Path) -> None:
    for cases, variants in (
        ((Case(FACTORY),), ()),
        ((Case("plain.onnx", source=FACTORY),), ()),
        ((Case("fcn"),), ("eager", "code_under_test:open")),
    ):
        with pytest.raises(SourceError, match=r"^result\.json names code_under_test:"):
            check_code(Path("result.json"), cases, variants)
    check_code(Path("result.json"), (Case("fcn"), Case("plain.onnx")), ("eager", "ort"))
    assert not mark.exists()


def test_resuming_asks_for_leave(mark: Path, tmp_path: Path) -> None:
    """A result of ours, its model's name changed to a factory."""
    from stn_infer.benchmarking.result import read_result
    from tests.support.paths import ROOT

    stored = ROOT / "benchmarks/results/peers-xeon-2.5ghz-2-cores.json"
    content = json.loads(stored.read_text())
    for case in content["request"]["cases"]:
        case["model"] = FACTORY
    changed = tmp_path / "result.json"
    changed.write_text(json.dumps(content))
    assert read_result(changed).request.cases[0].model == FACTORY
    result = call("bench", "--resume", str(changed))
    assert result.exit_code == 1 and f"{changed} names {FACTORY}" in " ".join(result.stderr.split())
    assert not mark.exists() and changed.read_text() == json.dumps(content)


def test_every_command_and_function_that_takes_a_source_has_allow_code() -> None:
    for command in TAKING_A_SOURCE:
        assert "--allow-code" in call(command, "--help").output, command
        assert "the only SOURCE that runs code" in " ".join(call(command, "--help").output.split()), command
    functions = (stn_infer.export, stn_infer.run, stn_infer.verify, stn_infer.bench, show, build)
    for function in (*functions, load_source, open_backend):
        assert inspect.signature(function).parameters["allow_code"].default is False, function


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))

"""models: every network and shipped model, with its measured error."""

from __future__ import annotations

import json

from click.testing import CliRunner

from stn_infer.cli.main import main
from stn_infer.cli.models import command
from stn_infer.conventions import CONVENTIONS
from stn_infer.foreign import FOREIGN
from stn_infer.models import NETWORKS, SHIPPED, shipped


def test_the_tables_list_every_model_with_its_error() -> None:
    done = CliRunner().invoke(command, [], catch_exceptions=False)
    assert done.exit_code == 0
    for name in (*NETWORKS, *SHIPPED, *FOREIGN):
        assert f"\n{name} " in done.output
    for name in SHIPPED:
        line = next(line for line in done.output.splitlines() if line.startswith(f"{name} "))
        assert f" {shipped(name).results.error:.2f} " in line


def test_json_has_the_measured_errors() -> None:
    fields = json.loads(CliRunner().invoke(main, ["models", "--json"], catch_exceptions=False).output)
    assert [network["name"] for network in fields["networks"]] == list(NETWORKS)
    assert [model["name"] for model in fields["shipped"]] == list(SHIPPED)
    assert [model["name"] for model in fields["published"]] == list(FOREIGN)
    for model in fields["shipped"]:
        results = shipped(model["name"]).results
        assert model["error_percent"] == results.error
        assert model["twin_error_percent"] == results.twin_error
        assert 0 < model["bytes"] <= 2 * 2**20


def test_conventions_are_listed_with_the_error_of_the_identity() -> None:
    done = CliRunner().invoke(command, ["--conventions", "--width", "50"], catch_exceptions=False)
    assert done.exit_code == 0
    for name, convention in CONVENTIONS.items():
        line = next(line for line in done.output.splitlines() if line.startswith(f"{name} "))
        assert " / ".join(f"{error:+.3f}" for error in convention.identity_error(50)) in line
    asked = CliRunner().invoke(main, ["models", "--conventions", "--json"], catch_exceptions=False)
    rows = {row["name"]: row for row in json.loads(asked.output)["conventions"]}
    assert rows["dtrb"]["identity_error_px"] == list(CONVENTIONS["dtrb"].identity_error(100))
    assert rows["stnbhwd"]["order"] == "yx"
    assert rows["kevinzakka"]["difference"]


def test_a_width_without_conventions_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["models", "--width", "50"])
    assert result.exit_code == 2 and result.stderr == (
        "error: --width applies only with --conventions; add --conventions\n"
    )

"""``stn-infer models``: list the networks and the shipped models."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from stn_infer.cli.help import Command
from stn_infer.cli.output import emit, show_tables
from stn_infer.errors import UsageError
from stn_infer.text_tables import Table

if TYPE_CHECKING:
    from stn_infer.foreign import Foreign
    from stn_infer.models import Network, ShippedModel


@click.command(
    cls=Command,
    examples=(
        "stn-infer models",
        "stn-infer models --conventions --width 224",
    ),
)
@click.option("--conventions", is_flag=True, help="List the pixel conventions of known implementations instead.")
@click.option(
    "--width",
    type=click.IntRange(min=2),
    default=100,
    show_default=True,
    help="With --conventions: image width for which the identity's error is computed.",
)
def command(conventions: bool, width: int) -> None:
    """List the shipped models with their measured error, and all networks by name."""
    if conventions:
        _list_conventions(width)
        return
    if click.get_current_context().get_parameter_source("width") is ParameterSource.COMMANDLINE:
        raise UsageError("--width applies only with --conventions; add --conventions")
    from stn_infer.foreign import FOREIGN
    from stn_infer.models import NETWORKS, SHIPPED, shipped

    models = [shipped(name) for name in SHIPPED]
    networks, published = list(NETWORKS.values()), list(FOREIGN.values())
    fields = {
        "shipped": [_fields(model) for model in models],
        "networks": [
            {"name": network.name, "input_shape": network.input_shape, "description": network.description}
            for network in networks
        ],
        "published": [
            {"name": foreign.name, "description": foreign.description, "note": foreign.note} for foreign in published
        ],
    }

    def text() -> None:
        show_tables(_shipped_table(models), _networks_table(networks), _foreign_table(published))

    emit(fields, text)


def _list_conventions(width: int) -> None:
    from stn_infer.conventions import CONVENTIONS

    rows = [
        {**asdict(convention), "width": width, "identity_error_px": convention.identity_error(width)}
        for convention in CONVENTIONS.values()
    ]
    emit({"conventions": rows}, lambda: show_tables(_conventions_table(width)))


def _conventions_table(width: int) -> Table:
    from stn_infer.conventions import CONVENTIONS

    rows = []
    for convention in CONVENTIONS.values():
        grid, sampler = (
            "corners" if corners else "centers" for corners in (convention.grid_align_corners, convention.align_corners)
        )
        difference = f" (the original: {convention.difference})" if convention.difference else ""
        rows.append(
            (
                convention.name,
                grid,
                sampler + (f", short by {convention.short}" if convention.short else ""),
                ", ".join(convention.order),
                convention.padding_mode,
                " / ".join(f"{error:+.3f}" for error in convention.identity_error(width)),
                convention.description + difference,
            )
        )
    meaning = "corners: align_corners=True, centers: False"
    return Table(
        title=f"Pixel conventions ({meaning}); error of the identity at width {width}",
        headings=("name", "grid", "sampler", "order", "padding", "left / middle / right, px", "description"),
        rows=rows,
        text=True,
        optional=("order",),
    )


def _fields(model: ShippedModel) -> dict[str, object]:
    results = model.results
    return {
        "name": model.name,
        "network": model.recipe.network,
        "input_shape": model.recipe.input_shape,
        "description": model.recipe.description,
        "error_percent": results.error,
        "errors_percent": results.errors,
        "seeds": results.seeds,
        "shipped_seed": results.shipped_seed,
        "shipped_error_percent": results.shipped_error,
        "twin": results.twin,
        "twin_error_percent": results.twin_error,
        "test_images": results.images,
        "bytes": model.weights_path.stat().st_size,
    }


def _shipped_table(models: list[ShippedModel]) -> Table:
    rows = []
    for model in models:
        results = model.results
        baseline = "" if results.twin_error is None else f"{results.twin_error:.2f} ({results.twin})"
        rows.append(
            (
                model.name,
                _shape(model.recipe.input_shape),
                f"{results.error:.2f}",
                f"{results.shipped_error:.2f}",
                baseline,
                str(len(results.seeds)),
                f"{results.images:,}",
                f"{model.weights_path.stat().st_size / 1024:.0f}",
                model.recipe.description,
            )
        )
    figures = ("error", "this seed", "baseline (no STN)", "seeds", "test images", "KiB")
    return Table(
        title="Shipped models, with their test error in %, mean over the seeds",
        headings=("name", "input", *figures, "description"),
        rows=rows,
        numbers=frozenset(range(2, 8)),
        text=True,
        optional=("test images", "seeds"),
    )


def _networks_table(networks: list[Network]) -> Table:
    return Table(
        title="Networks, with random weights unless --weights is given",
        headings=("name", "input", "description"),
        rows=[(network.name, _shape(network.input_shape), network.description) for network in networks],
        text=True,
    )


def _foreign_table(models: list[Foreign]) -> Table:
    return Table(
        title="Published models, imported from the checkpoint given with --weights",
        headings=("name", "images", "description"),
        rows=[(model.name, f"{model.input_height}x{model.input_width}", model.description) for model in models],
        text=True,
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)

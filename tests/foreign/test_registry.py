"""Published text rectifiers: their state dicts give a SpatialTransformer with equal outputs, exported fused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import stn_infer
from stn_infer.backends.ort import OrtBackend
from stn_infer.cli.main import main
from stn_infer.errors import SourceError, StnInferError, UsageError, WeightsError
from stn_infer.foreign import FOREIGN, import_aster, import_dtrb
from stn_infer.fusion.samplers import spatial_nodes
from stn_infer.layers import SpatialTransformer
from stn_infer.preprocess.rule import Preprocess
from stn_infer.sources.load import load_source
from tests.support.published_rectifiers import Aster, Rare, Recognizer, pictures


def points_spread(model: nn.Module, batch: Tensor) -> float:
    """How much the control points differ between images; 0 for a constant grid."""
    with torch.no_grad():
        parameters = model.localization(batch)  # type: ignore[operator]
    return float((parameters - parameters.mean(0)).abs().max())


def check_equal(original: nn.Module, ours: nn.Module, batch: Tensor) -> None:
    """Equal in float64 except for the order of sums; in float32 at most the original's error vs. float64."""
    assert points_spread(ours, batch) > 0.005
    with torch.no_grad():
        single, ours_single = original(batch), ours(batch)
        exact, ours_exact = original.double()(batch.double()), ours.double()(batch.double())
    torch.testing.assert_close(ours_exact, exact, atol=1e-9, rtol=0)
    assert float((ours_single - exact).abs().max()) <= float((single - exact).abs().max()) + 1e-5
    original.float()
    ours.float()


# ---- equal outputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "size", "channels"), [(20, (32, 100), 1), (20, (32, 100), 3), (8, (16, 40), 1), (10, (48, 160), 3)]
)
def test_dtrb_gives_equal_outputs(points: int, size: tuple[int, int], channels: int) -> None:
    original = Rare(points, size, channels, widths=(16, 24, 32, 48))
    ours = import_dtrb(original.state_dict())
    assert ours.output_size == size
    check_equal(original, ours, pictures(1, 3, channels, *size))


def test_dtrb_of_the_published_widths_in_a_recognizer_of_several_gpus() -> None:
    original = Rare()
    state = nn.DataParallel(Recognizer(original)).state_dict()
    assert "module.Transformation.GridGenerator.inv_delta_C" in state
    check_equal(original, import_dtrb(state), pictures(2, 3, 1, 32, 100))


def test_dtrb_takes_images_of_any_size() -> None:
    original = Rare(8, (16, 40), widths=(16, 24, 32, 48))
    check_equal(original, import_dtrb(original.state_dict()), pictures(3, 2, 1, 50, 77))


def test_dtrb_without_buffers_computes_them_by_the_published_formula() -> None:
    original = Rare(widths=(16, 24, 32, 48))
    state = {key: value for key, value in original.state_dict().items() if not key.startswith("GridGenerator")}
    batch = pictures(4, 2, 1, 32, 100)
    with torch.no_grad():
        torch.testing.assert_close(import_dtrb(state)(batch), original(batch), atol=5e-3, rtol=0)
        assert import_dtrb(state, output_size=(16, 50))(batch).shape == (2, 1, 16, 50)


def test_dtrb_prefers_the_checkpoints_buffers_to_the_formula() -> None:
    original = Rare(widths=(16, 24, 32, 48))
    original.GridGenerator.P_hat[:, 3:] *= 0.5  # type: ignore[index, operator]
    check_equal(original, import_dtrb(original.state_dict()), pictures(5, 2, 1, 32, 100))


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("corners", [False, True])
def test_aster_gives_equal_outputs(sigmoid: bool, corners: bool) -> None:
    original = Aster(sigmoid=sigmoid, corners=corners)
    activation = "sigmoid" if sigmoid else "none"
    ours = import_aster(original.state_dict(), activation=activation, align_corners=corners)  # type: ignore[arg-type]
    assert ours.output_size == (32, 100)
    check_equal(original, ours, pictures(6, 3, 3, 64, 256))


@pytest.mark.parametrize("corners", [False, True])
def test_aster_with_points_far_outside_the_image(corners: bool) -> None:
    original = Aster(8, (16, 40), margins=(0.1, 0.2), corners=corners)
    with torch.no_grad():
        original.stn_head.stn_fc2.bias.mul_(1.6).sub_(0.4)
    ours = import_aster(original.state_dict(), align_corners=corners)
    batch = pictures(7, 3, 3, 48, 100)
    with torch.no_grad():
        grid = SpatialTransformer.grid(ours, ours.theta(ours.localization(batch)))  # type: ignore[misc, operator]
    assert float((grid.abs() > 1).float().mean()) > 0.05
    check_equal(original, ours, batch)


def test_requesting_the_fused_kernel_keeps_the_clamp() -> None:
    ours = import_aster(Aster(8, (16, 40)).state_dict())
    batch, far = pictures(12, 2, 3, 48, 100), torch.full((2, 16), 1.3)
    plain = ours(batch, far)
    ours.fused = True
    assert torch.equal(ours(batch, far), plain)
    assert float(plain.abs().max()) > 0


def test_aster_within_a_larger_model() -> None:
    original = Aster(8, (16, 40))
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"recognizer": original, "decoder": nn.Linear(2, 3)})})
    check_equal(original, import_aster(wrapped.state_dict()), pictures(8, 2, 3, 64, 128))


def test_half_precision_checkpoints_are_loaded_as_float32() -> None:
    original = Rare(8, (16, 40), widths=(16, 24, 32, 48)).half()
    ours = import_dtrb(original.state_dict())
    assert next(ours.parameters()).dtype == torch.float32
    check_equal(original.float(), ours, pictures(9, 2, 1, 16, 40))


# ---- errors ------------------------------------------------------------------------------------------------------


def small() -> dict[str, Tensor]:
    return Rare(8, (16, 40), widths=(16, 24, 32, 48)).state_dict()


def test_errors_are_one_line() -> None:
    cases: list[tuple[type[StnInferError], str, object]] = [
        (WeightsError, "no DTRB rectifier: no 'localization_fc2.weight'", lambda: import_dtrb({"a": torch.ones(1)})),
        (WeightsError, "conv.8.weight of the DTRB rectifier is missing", lambda: import_dtrb(without("conv.8.weight"))),
        (WeightsError, "running_var of the DTRB rectifier is missing", lambda: import_dtrb(without("running_var"))),
        (WeightsError, "for 16x40, not for 32x100", lambda: import_dtrb(small(), output_size=(32, 100))),
        (WeightsError, "expected 9 columns for the 6 points", lambda: import_dtrb(fewer_points())),
        (
            WeightsError,
            "expected one row per pixel",
            lambda: import_dtrb(changed("GridGenerator.P_hat", lambda t: t[:-1])),
        ),
        (WeightsError, "more than one DTRB rectifier, at 'a.L.*select one with prefix", lambda: import_dtrb(two())),
        (WeightsError, "no 'stn_fc2.weight'", lambda: import_aster(small())),
        (WeightsError, "512 features, a head on 64x64 gives 1024", lambda: import_aster(aster(), input_size=(64, 64))),
        (
            WeightsError,
            "P_hat contains NaN",
            lambda: import_dtrb(changed("GridGenerator.P_hat", lambda t: t * torch.nan)),
        ),
        (
            UsageError,
            "input_size is height and width, .* not '32x64'",
            lambda: import_aster(aster(), input_size="32x64"),
        ),  # type: ignore[arg-type]
        (UsageError, r"output_size is height and width, .* not \[32\]", lambda: import_dtrb(small(), output_size=[32])),
        (UsageError, "activation is one of none, sigmoid", lambda: import_aster(aster(), activation="relu")),  # type: ignore[arg-type]
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message) as caught:
            call()  # type: ignore[operator]
        assert "\n" not in str(caught.value)
    assert import_dtrb(two(), prefix="b").output_size == (16, 40)


def without(part: str) -> dict[str, Tensor]:
    return {key: value for key, value in small().items() if part not in key}


def changed(key: str, change: object) -> dict[str, Tensor]:
    state = small()
    return {**state, key: change(state[key])}  # type: ignore[operator]


def fewer_points() -> dict[str, Tensor]:
    state = small()
    last = "LocalizationNetwork.localization_fc2."
    return {**state, last + "weight": state[last + "weight"][:12], last + "bias": state[last + "bias"][:12]}


def two() -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name in "ab" for key, value in small().items()}


def aster() -> dict[str, Tensor]:
    return Aster(8, (16, 40)).state_dict()


def exact(model: nn.Module, batch: Tensor) -> object:
    with torch.no_grad():
        return model.double()(batch.double()).numpy()


# ---- as a SOURCE -------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_exported_fused_and_verified_on_the_command_line(tmp_path: Path) -> None:
    original = Rare(widths=(16, 24, 32, 48))
    weights, path = tmp_path / "TPS.pth", tmp_path / "rectifier.onnx"
    torch.save(nn.DataParallel(Recognizer(original)).state_dict(), weights)
    done = CliRunner().invoke(main, ["export", "dtrb", "--weights", str(weights), "-o", str(path)])
    assert done.exit_code == 0, done.output
    model = onnx.load(path)
    assert len(spatial_nodes(model)) == 1
    batch = pictures(10, 3, 1, 32, 100)
    (rectified,) = OrtBackend(path, threads=1).run({"input": batch.numpy()}).values()
    np.testing.assert_allclose(rectified, exact(original, batch), atol=1e-4)
    metadata = OrtBackend(path, threads=1).metadata
    assert metadata.preprocess is not None
    rule = "gray,size=32x100,mean=0.5,std=0.5,interpolation=bicubic"
    assert metadata.preprocess == Preprocess.parse(rule)


def test_the_published_code_is_fused_through_a_factory(tmp_path: Path) -> None:
    report = stn_infer.export(
        "tests.support.published_rectifiers:small_rare", tmp_path / "rare.onnx", input_shapes=[(1, 32, 100)]
    )
    (finding,) = report.findings
    assert finding.fused and (finding.kind, finding.basis_rows) == ("basis", 20)


@pytest.mark.parametrize("corners", [False, True])
def test_aster_is_fused_if_its_clamp_equals_the_padding(tmp_path: Path, corners: bool) -> None:
    original = Aster(8, (16, 40), corners=corners)
    torch.save({"state_dict": original.state_dict()}, tmp_path / "demo.pth.tar")
    options = f"options = {{ align_corners = {str(corners).lower()} }}"
    (tmp_path / "aster.toml").write_text(f'[model]\nnetwork = "aster"\ninput_shape = [3, 64, 128]\n{options}\n')
    path = tmp_path / "rectifier.onnx"
    report = stn_infer.export(str(tmp_path / "aster.toml"), path, weights=tmp_path / "demo.pth.tar")
    (finding,) = report.findings
    assert finding.fused == corners
    batch = pictures(11, 2, 3, 64, 128)
    (rectified,) = OrtBackend(path, threads=1).run({"input": batch.numpy()}).values()
    np.testing.assert_allclose(rectified, exact(original, batch), atol=1e-4)


def test_source_errors_state_what_is_needed(tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    torch.save(aster(), weights)
    loaded = load_source("aster", weights=weights)
    assert loaded.origin == "foreign" and loaded.input_shapes == ((3, 64, 256),)
    assert "align_corners = true" in loaded.note
    assert loaded.metadata.preprocess == Preprocess.parse("rgb,size=64x256,mean=0.5,std=0.5")
    assert load_source("aster", weights=weights, input_shapes=[(3, 48, 160)]).metadata.preprocess.size == (48, 160)  # type: ignore[union-attr]
    for name in FOREIGN:
        with pytest.raises(SourceError, match="--weights FILE"):
            load_source(name)
    with pytest.raises(WeightsError, match=r"w\.pth: the checkpoint contains no DTRB"):
        load_source("dtrb", weights=weights)
    (tmp_path / "r.toml").write_text('[model]\nnetwork = "aster"\ninput_shape = [3, 9, 9]\noptions = { pointz = 3 }\n')
    with pytest.raises(SourceError, match="aster has no option 'pointz'; its options: input_size, activation"):
        load_source(str(tmp_path / "r.toml"), weights=weights)

"""Load a PyTorch model: SOURCE, a string or a module, becomes a module with the shapes of its inputs.

| SOURCE | meaning |
|---|---|
| ``st-cnn-affine-rts`` | a shipped model: network, trained weights, preprocessing, labels |
| ``st-cnn-affine`` | a network of the registry, with random weights unless ``weights`` are given |
| ``dtrb``, ``aster`` | a published text rectifier, imported from the checkpoint that ``weights`` names |
| ``mine.toml`` | a recipe (model config in TOML) |
| ``mine.pt2`` | a program saved by ``torch.export.save`` |
| ``package.module:factory`` | a module, or a callable that returns one; imported from the current folder too |
| an ``nn.Module`` | an object of the caller's own program, which is copied |

A file may also be ``hf://org/repo/file`` on the Hugging Face Hub.

Only a factory runs code. A file never does: a recipe that names a factory needs ``allow_code``.

Files are identified by content, not by name (:mod:`stn_infer.sources.identify`).
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stn_infer.activation import Scores
from stn_infer.arrays import Array
from stn_infer.errors import SourceError, UsageError, WeightsError, one_line
from stn_infer.extras import require
from stn_infer.metadata import RANDOM, ModelMetadata
from stn_infer.progress import step
from stn_infer.quiet import quiet
from stn_infer.sources.hub import local
from stn_infer.sources.identify import PYTORCH_KINDS, identify, registered_names
from stn_infer.sources.objects import cpu_copy, is_module, unwrapped
from stn_infer.sources.program_archive import opened_program
from stn_infer.sources.reference import Weights, WeightsLike

if TYPE_CHECKING:
    from torch import nn

    from stn_infer.models.recipes import Recipe
    from stn_infer.sources.parts import Choice

#: Axis 0 of the first input, and of all that are tied to it.
COMMON_AXIS = "batch"

Shapes = tuple[tuple[int, ...], ...]
Origin = Literal["shipped", "network", "foreign", "recipe", "factory", "module", "pt2"]


@dataclass(frozen=True)
class LoadedModel:
    """A module that is ready to be exported or run.

    Attributes:
        name: the base name of files made from it.
        module: on the CPU, fp32, in evaluation mode.
        input_shapes: one shape per input, without the batch axis.
        metadata: preprocessing and labels, as far as the source defines them.
        origin: the kind of SOURCE; a shipped model with other weights is a network.
        fixed_batch: the only batch size, of a ``.pt2``, an ONNX file or the export; None if the batch is dynamic.
        note: a remark for the user; empty if there is none.
        dtypes: the type of each input; empty: float32.
        examples: the user's example inputs [N, ...]; empty if there are none.
        batch_axes: the name of each input's axis 0; empty: the common batch.
        warning: what may be a mistake of the user, such as random weights; empty if there is nothing.
    """

    name: str
    module: nn.Module
    input_shapes: Shapes
    metadata: ModelMetadata
    origin: Origin
    fixed_batch: int | None = None
    note: str = ""
    dtypes: tuple[str, ...] = ()
    examples: tuple[Array, ...] = ()
    batch_axes: tuple[str, ...] = ()
    warning: str = ""

    @property
    def axes(self) -> tuple[str, ...]:
        """The name of each input's axis 0."""
        return self.batch_axes or (COMMON_AXIS,) * len(self.input_shapes)


def load_source(
    source: str | Path | nn.Module,
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    allow_code: bool = False,
) -> LoadedModel:
    """Load the model that SOURCE names (see the module's table).

    Args:
        source: a shipped model, a network, a published rectifier, a recipe, a program saved by ``torch.export.save``,
            ``package.module:factory``, or a module on any device and in any mode, which stays as it is.
        weights: a checkpoint to load instead of the source's own weights; ``FILE#KEY`` takes one part of it.
        input_shapes: the inputs' shapes without batch; required for a factory and a module, otherwise they override the
            source's.
        allow_code: whether a file, such as a recipe, may name Python code to run; a factory as ``source`` always may.

    Raises:
        SourceError: the source does not exist, no module can be made from it, or it needs code that is not allowed.
        WeightsError: the checkpoint is unreadable, does not fit the network, or contains NaN.
        UsageError: ``input_shapes`` is missing for a factory or a module, or ``source`` is none of these.
        MissingDependencyError: PyTorch is not installed.
    """
    shapes = tuple(tuple(shape) for shape in input_shapes) if input_shapes else None
    if is_module(source):
        return _finish(_from_module(source, shapes), weights)
    if not isinstance(source, (str, Path)):
        hint = "; give an instance of it" if isinstance(source, type) else ""
        raise UsageError(f"expected a module, or the name or path of a source, got {_named(source)}{hint}")
    source = local(source)
    found, name = identify(source), str(source)
    if found.kind in PYTORCH_KINDS:
        require("torch", f"{name} is a PyTorch model, which needs")
    step(f"loading {name}")
    match found.kind:
        case "recipe":
            loaded = _from_recipe_file(Path(source), weights, shapes, allow_code)
        case "program":
            loaded = _from_program(Path(source), shapes)
        case "factory":
            loaded = _from_factory(name, shapes, weights)
        case "name":
            loaded = _from_registry(name, weights, shapes)
        case "onnx" if not Path(source).is_file():
            raise SourceError(f"{name} does not exist, and an ONNX file is not a PyTorch source")
        case "onnx":
            raise SourceError(f"{name} is already an ONNX file; expected a PyTorch source")
        case "engine":
            raise SourceError(f"{name} {ENGINE_PROBLEM}")
        case _:
            raise SourceError(f"{name} {found.problem}")
    return _finish(loaded, weights)


def refused_code(file: str | Path, code: str) -> SourceError:
    """The error if ``file`` names ``code`` (package.module:function), and code is not allowed."""
    return SourceError(f"{file} names {code}, which would import and run that Python code; --allow-code allows it")


#: The problem of an engine where a model is expected; follows the file's name.
ENGINE_PROBLEM = (
    "is a TensorRT engine, which only run accepts, with --backend tensorrt or tensorrt-rtx; "
    "give the model that it was built from"
)


def parse_input_shapes(texts: Iterable[str]) -> Shapes:
    """Parse the values of ``--input-shape``, such as ``3,32,100``; shapes of several inputs as ``3,32,100;20``.

    Raises:
        UsageError: a shape is not a comma-separated list of integers of at least 1.
    """
    shapes = []
    for text in (piece for value in texts for piece in value.split(";")):
        try:
            shape = tuple(int(size) for size in text.split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise UsageError(
                f"--input-shape takes integers of at least 1, without the batch, such as 1,28,28; got {text!r}"
            )
        shapes.append(shape)
    return tuple(shapes)


def _named(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _finish(loaded: LoadedModel, weights: WeightsLike | None) -> LoadedModel:
    """Set weights, type, device and mode, as for every kind of source."""
    from torch.nn.parameter import is_lazy

    from stn_infer.sources.checkpoints import apply_weights, check_finite

    module = unwrapped(loaded.module)
    if weights is not None and loaded.origin != "foreign":  # a published model was built from its weights
        loaded = _with_choice(loaded, weights, apply_weights(module, weights))
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise SourceError(
            f"{loaded.metadata.source}: expected a module with known shapes, found lazy parameters; "
            "run the module once in the factory, or give --weights"
        )
    module = module.to("cpu").float()
    if loaded.origin != "pt2":  # an exported program has a fixed mode and raises an error in eval()
        module.eval()
    check_finite(module, loaded.metadata.source)
    return replace(loaded, module=module)


def _with_choice(loaded: LoadedModel, weights: WeightsLike, choice: Choice) -> LoadedModel:
    """The model with what is to be said about the part of the checkpoint that was taken."""
    note = f"{Weights.of(weights).file}: {choice.note}" if choice.note else ""
    taken = choice.described if choice.is_one_of_several or Weights.of(weights).key else ""
    metadata = replace(loaded.metadata, weights=taken)
    return replace(loaded, metadata=metadata, note="; ".join(filter(None, (loaded.note, note))))


# ---- shipped models, networks, recipes ---------------------------------------------------------------------------


def _from_registry(source: str, weights: WeightsLike | None, shapes: Shapes | None) -> LoadedModel:
    from stn_infer.foreign import FOREIGN
    from stn_infer.models import NETWORKS, SHIPPED, shipped

    if source in FOREIGN:
        return _from_foreign(source, source, {}, weights, shapes)
    if source in SHIPPED:
        model = shipped(source)
        own = model.weights_path if weights is None else None
        origin: Origin = "shipped" if weights is None else "network"
        return replace(_from_recipe(model.recipe, source, own, shapes), origin=origin)
    if source in NETWORKS:
        default = tuple(NETWORKS[source].input_shape)
        options = {"input_shape": shapes[0]} if shapes and shapes[0] != default else {}
        return LoadedModel(
            source,
            _create(source, options),
            shapes or (default,),
            ModelMetadata(source=source, decodings=NETWORKS[source].decodings, weights="" if weights else RANDOM),
            "network",
            note="" if weights else f"{source} is a network, not a trained model: its weights are random (seed 0)",
        )
    raise SourceError(_no_such_name(source))


def _no_such_name(source: str) -> str:
    near = difflib.get_close_matches(source, registered_names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "'stn-infer models' lists the names"
    return (
        f"unknown source {source!r}: expected a shipped model, a network, a published rectifier, a recipe (.toml), "
        f"a .pt2 file or package.module:factory; {hint}"
    )


def _from_recipe_file(path: Path, weights: WeightsLike | None, shapes: Shapes | None, allow_code: bool) -> LoadedModel:
    from stn_infer.foreign import FOREIGN
    from stn_infer.models.recipes import load_recipe

    recipe = load_recipe(path)
    if ":" in recipe.network and not allow_code:
        raise refused_code(path, recipe.network)
    beside = path.with_suffix(".safetensors")
    has_own = weights is None and beside.is_file()
    if recipe.network in FOREIGN:
        return _from_foreign_recipe(recipe, str(path), beside if has_own else weights, shapes)
    loaded = _from_recipe(recipe, str(path), beside if has_own else None, shapes)
    if weights is None and not has_own and ":" not in recipe.network:  # a factory may load its own
        note = f"{beside} does not exist and --weights is not given: random weights (seed 0)"
        return replace(loaded, metadata=replace(loaded.metadata, weights=RANDOM), note=note)
    return loaded


def _from_recipe(recipe: Recipe, source: str, weights: WeightsLike | None, shapes: Shapes | None) -> LoadedModel:
    from stn_infer.models import NETWORKS
    from stn_infer.sources.checkpoints import apply_weights

    options = dict(recipe.options)
    if shapes and "input_shape" in options:
        options["input_shape"] = shapes[0]
    try:
        module = _create(recipe.network, options)
        if weights is not None:
            apply_weights(module, weights)
    except UsageError as error:  # an unknown option of the network: a mistake in the recipe, not on the command line
        raise SourceError(f"recipe {source}: {error}") from None
    decodings = recipe.decodings
    if decodings is None:
        decodings = NETWORKS[recipe.network].decodings if recipe.network in NETWORKS else ()
    # export/train.py trains our labeled ones with the cross-entropy of a softmax
    trained = recipe.training is not None and recipe.labels is not None and recipe.network in NETWORKS
    scores = Scores() if trained else None
    metadata = ModelMetadata(recipe.preprocess, recipe.labels, source, decodings=decodings, scores=scores)
    return LoadedModel(recipe.name, module, shapes or (tuple(recipe.input_shape),), metadata, "recipe")


def _create(network: str, options: dict[str, Any]) -> nn.Module:
    """Create a network, or call a factory; random weights are the same each time.

    The state of the caller's random generator is preserved.
    """
    import torch

    from stn_infer.models import create

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _made(network, options) if ":" in network else create(network, **options)


# ---- published models ---------------------------------------------------------------------------------------------


def _from_foreign(
    source: str, network: str, options: dict[str, Any], weights: WeightsLike | None, shapes: Shapes | None
) -> LoadedModel:
    from torch import nn

    from stn_infer.foreign import FOREIGN
    from stn_infer.sources.checkpoints import read_weights

    if weights is None:
        raise SourceError(f"{source} is imported from a checkpoint; give it with --weights FILE")
    foreign = FOREIGN[network]
    weights = Weights.of(weights)
    choice = read_weights(weights)
    try:
        module = foreign.load(choice.tensors, **options)
    except WeightsError as error:
        raise WeightsError(f"{weights.file}: {error}") from None
    channels = next(layer.in_channels for layer in module.modules() if isinstance(layer, nn.Conv2d))
    shape = shapes[0] if shapes else foreign.input_shape(channels)
    preprocess = foreign.preprocess(channels)
    if preprocess is not None and len(shape) == 3:
        preprocess = replace(preprocess, size=(shape[1], shape[2]))
    metadata = ModelMetadata(preprocess, source=source)
    note = foreign.note if "align_corners" not in options else ""
    loaded = LoadedModel(network, module, shapes or (shape,), metadata, "foreign", note=note)
    return _with_choice(loaded, weights, choice)


def _from_foreign_recipe(
    recipe: Recipe, source: str, weights: WeightsLike | None, shapes: Shapes | None
) -> LoadedModel:
    options = {key: value for key, value in recipe.options.items() if key != "input_shape"}
    try:
        loaded = _from_foreign(source, recipe.network, options, weights, shapes or (tuple(recipe.input_shape),))
    except UsageError as error:  # a mistake in the recipe, not on the command line
        raise SourceError(f"recipe {source}: {error}") from None
    metadata = replace(
        loaded.metadata, preprocess=recipe.preprocess or loaded.metadata.preprocess, labels=recipe.labels
    )
    return replace(loaded, name=recipe.name, metadata=metadata)


# ---- factories ---------------------------------------------------------------------------------------------------


def _from_factory(source: str, shapes: Shapes | None, weights: WeightsLike | None) -> LoadedModel:
    made = _create(source, {})
    if shapes is None:
        raise UsageError(
            f"{source}: a factory does not define its inputs' shapes; add --input-shape C,H,W (without the batch)"
        )
    loaded = LoadedModel(source.rpartition(":")[2], made, shapes, ModelMetadata(source=source), "factory")
    if weights is None and _names_class(source):
        warning = f"{source} is a class and --weights is not given: its weights are random (seed 0)"
        return replace(loaded, metadata=replace(loaded.metadata, weights=RANDOM), warning=warning)
    return loaded


def _names_class(source: str) -> bool:
    """Whether a factory, which is imported already, is a class of modules, which gets its weights from nowhere."""
    from torch import nn

    module, _, attribute = source.partition(":")
    found = _attribute(source, module, attribute)
    return isinstance(found, type) and issubclass(found, nn.Module)


def _made(source: str, options: dict[str, Any]) -> nn.Module:
    import torch
    from torch import nn

    module_name, _, attribute = source.partition(":")
    if not module_name or not attribute or module_name.endswith(".py"):
        raise SourceError(f"expected package.module:factory, got {source!r}; e.g. mypackage.networks:make_net")
    made = _attribute(source, module_name, attribute)
    if callable(made) and not isinstance(made, nn.Module):
        torch.manual_seed(0)  # again, because the import may have drawn random numbers
        try:
            made = made(**options)
        except (Exception, SystemExit) as error:  # the user's code may raise any exception
            hint = "; a recipe's options become its arguments" if isinstance(error, TypeError) and not options else ""
            raise SourceError(
                f"{source}: the factory, called with {options or 'no arguments'}, {_raised(error)}{hint}"
            ) from None
    if not isinstance(made, nn.Module):
        raise SourceError(
            f"{source}: expected a torch.nn.Module or a callable that returns one, got {type(made).__name__}"
        )
    return made


def _attribute(source: str, module_name: str, attribute: str) -> Any:
    """Import ``module:a.b``; the current folder is searched last, so that its files cannot replace packages."""
    folder = os.getcwd()
    sys.path[:] = [*(entry for entry in sys.path if entry not in ("", folder)), folder]
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # an import runs the user's code, which may raise any exception
        raise SourceError(f"{source}: importing {module_name} (from {folder} or installed) {_raised(error)}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [name for name in dir(found) if not name.startswith("_")], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise SourceError(f"{source}: {module_name} has no {attribute!r}{hint}")
        found = getattr(found, part)
    return found


def _raised(error: BaseException) -> str:
    message = one_line(error)
    return f"raised {type(error).__name__}{f': {message}' if message else ''}"


def _from_module(module: nn.Module, shapes: Shapes | None) -> LoadedModel:
    module = unwrapped(module)
    name = type(module).__name__
    if shapes is None:
        raise UsageError(
            f"{name}: a module does not define its inputs' shapes; give input_shapes, such as [(3, 32, 32)] (without "
            "the batch), or example_inputs"
        )
    return LoadedModel(name, cpu_copy(module), shapes, ModelMetadata(source=name), "module")


# ---- exported programs -------------------------------------------------------------------------------------------


def _from_program(path: Path, shapes: Shapes | None) -> LoadedModel:
    import torch

    if not path.is_file():
        raise SourceError(f"{path}: expected a program saved by torch.export.save, but the file does not exist")
    try:
        with quiet(), opened_program(path) as archive:
            program = torch.export.load(archive)
    except SourceError:
        raise
    except Exception as error:  # zip, JSON, schema version, unknown operator: torch has no common type for these
        raise SourceError(
            f"{path}: expected a program saved by torch.export.save; torch.export.load {_raised(error)}"
        ) from None
    signature = program.graph_signature
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values.get(name) for name in signature.user_inputs if isinstance(name, str)]
    if not inputs or not all(isinstance(value, torch.Tensor) and value.ndim > 0 for value in inputs):
        raise SourceError(f"{path}: expected a program whose inputs are all tensors with a batch axis")
    wrong = {str(value.dtype) for value in inputs if isinstance(value, torch.Tensor) and value.dtype != torch.float32}
    if wrong:
        raise SourceError(f"{path}: expected inputs of type torch.float32, found {', '.join(sorted(wrong))}")
    with quiet():
        # the guards would be traced into the next export, which reports wrong shapes itself
        module = program.module(check_guards=False)
    batches = [value.shape[0] for value in inputs if isinstance(value, torch.Tensor)]
    fixed = next((size for size in batches if isinstance(size, int)), None)
    return LoadedModel(
        path.stem,
        module,
        shapes or _sample_shapes(path, inputs, program.example_inputs),
        ModelMetadata(source=str(path)),
        "pt2",
        fixed_batch=fixed,
    )


def _sample_shapes(path: Path, inputs: Sequence[Any], examples: Any) -> Shapes:
    """Shapes without batch from the program's inputs, or from its example inputs if another axis is dynamic too."""
    if all(isinstance(size, int) for value in inputs for size in value.shape[1:]):
        return tuple(tuple(value.shape[1:]) for value in inputs)
    tensors = [] if examples is None else [*examples[0], *examples[1].values()]
    if len(tensors) != len(inputs):
        raise UsageError(f"{path}: axes besides the batch are dynamic, without example inputs; add --input-shape C,H,W")
    return tuple(tuple(tensor.shape[1:]) for tensor in tensors)

"""Every rule of lint: its stable number, what a finding means, whom it concerns, and the remedy.

``lint --explain`` prints these texts, and ``python -m stn_infer.lint_rules.catalog`` makes ``docs/lint-rules.md`` of
them. A number is never given to another rule: the letter is that of the most severe finding of the rule.
"""

from __future__ import annotations

import difflib
import textwrap
from dataclasses import dataclass
from typing import Literal

from stn_infer.errors import UsageError

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        number: such as ``E009``; stable between releases.
        code: the rule's name in a :class:`~stn_infer.lint_rules.context.LintFinding`; stable between releases.
        severity: of its findings; the most severe, if they differ.
        summary: one clause.
        meaning: what is the case, and its effect.
        concerns: who is concerned.
        remedy: what to do.
    """

    number: str
    code: str
    severity: Severity
    summary: str
    meaning: str
    concerns: str
    remedy: str

    def explain(self) -> str:
        """The rule as text of several paragraphs."""
        heading = f"{self.severity}[{self.number}] {self.code}: {self.summary}"
        return "\n\n".join(textwrap.fill(part, 80) for part in (heading, *self.paragraphs))

    @property
    def paragraphs(self) -> tuple[str, str, str]:
        """The meaning, whom it concerns, and the remedy."""
        return self.meaning, f"For whom: {self.concerns}", f"What to do: {self.remedy}"


def rule_of(code: str) -> Rule:
    """The rule of a finding's ``code``."""
    return _BY_CODE[code]


def find_rule(text: str) -> Rule:
    """The rule with a number or a name as a user writes it.

    Raises:
        UsageError: there is none; the message names the nearest, or all numbers.
    """
    wanted = text.strip()
    for rule in RULES:
        if wanted.upper() == rule.number or wanted.lower() == rule.code:
            return rule
    near = difflib.get_close_matches(wanted.lower(), [rule.code for rule in RULES], n=1)
    numbers = [[rule.number for rule in RULES if rule.number[0] == letter] for letter in "EWI"]
    known = f"the rules are {', '.join(f'{found[0]} to {found[-1]}' for found in numbers)}, or their names"
    raise UsageError(f"no such rule: {text!r}; " + (f"did you mean {near[0]!r}?" if near else known))


def page() -> str:
    """``docs/lint-rules.md``."""
    introduction = (
        "`stn-infer lint --explain NUMBER` prints one of them. Numbers and names are stable. The letter of a number is "
        "the severity: error (a runtime gives wrong values or cannot run the file), warning (slow, imprecise, or "
        "rejected by a runtime) or info. Where findings of a rule differ in severity, it is that of the most severe."
    )
    lines = [
        "# The rules of `stn-infer lint`",
        *_wrapped(introduction),
        "",
        "| number | name | meaning |",
        "|---|---|---|",
    ]
    lines += [f"| [{rule.number}](#{rule.number.lower()}) | `{rule.code}` | {rule.summary} |" for rule in RULES]
    for rule in RULES:
        lines += ["", f"## {rule.number}", f"`{rule.code}`: {rule.summary}."]
        for paragraph in rule.paragraphs:
            lines += ["", *_wrapped(paragraph)]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_on_hyphens=False)


RULES: tuple[Rule, ...] = (
    Rule(
        *("E001", "does-not-run", "error", "onnxruntime rejects the file"),
        "onnxruntime does not open the file, and no repair of optimize makes it open.",
        "everybody: verify, bench, show and the comparison of optimize run files in onnxruntime.",
        "The message is onnxruntime's own. Export the model again, with opset 18.",
    ),
    Rule(
        *("E002", "opset-too-new", "error", "an opset that onnxruntime does not support yet"),
        "The file imports a newer version of the standard operators than onnxruntime implements, which then refuses "
        "the whole file, even if all its operators have existed for years.",
        "users of onnxruntime; other runtimes may read the file.",
        "optimize lowers the opset if all operators mean the same in both. Otherwise export at opset 18.",
    ),
    Rule(
        *("E003", "ir-too-new", "error", "an IR version that onnxruntime does not support yet"),
        "The IR version is the version of the file format itself. New releases of the onnx package write their "
        "newest by default, and older runtimes refuse it.",
        "users of onnxruntime.",
        "optimize lowers it if no tensor has a type that is new in it; or set ir_version to 10 when the file is made.",
    ),
    Rule(
        *("E004", "external-constant", "error", "a size stored as external data"),
        "onnxruntime needs the values of sizes, such as the shape of a Reshape, when it loads a file, and does not "
        "read them from external data.",
        "users of onnxruntime whose exporter stores every tensor outside of the file.",
        "optimize stores small constants in the file.",
    ),
    Rule(
        *("E005", "nan-weights", "error", "a weight or constant contains NaN"),
        "NaN propagates to every value that depends on it, in every runtime.",
        "everybody: predictions are NaN, or arbitrary after an ArgMax.",
        "Look for the step of the training that diverged, and export an earlier checkpoint.",
    ),
    Rule(
        *("E006", "cubic-volume", "error", "bicubic sampling of a volume"),
        "The operator's definition allows mode cubic for 5-D inputs, but no runtime implements it: onnxruntime and "
        "PyTorch reject it.",
        "everybody who samples volumes.",
        "Use mode linear (bilinear before opset 20).",
    ),
    Rule(
        *("E007", "custom-sampler", "error", "a sampler that only one runtime implements"),
        "The operator belongs to one runtime's plugins, or GridSample stands in an opset that lacks it. The finding "
        "is a warning if the runtime is onnxruntime itself (com.microsoft::GridSample).",
        "everybody with another runtime than the one that the file was exported for.",
        "optimize turns known operators into GridSample, with what their own kernels compute. Otherwise export the "
        "model with torch.nn.functional.grid_sample at opset 16 or later.",
    ),
    Rule(
        *("E008", "wrong-shape", "error", "an operand of an op of domain stn does not fit its grid"),
        "theta, basis, a lattice's matrices, its indices or weights, or a grid have another shape than the node's "
        "attributes and image require. Kernels refuse it; the plain body of the function may compute another grid.",
        "whoever wrote or edited the node outside of stn-infer.",
        "Write the operand in the shape that the message gives, or optimize the original file again.",
    ),
    Rule(
        *("E009", "opset-20-trap", "error", "TensorRT up to 11.1 reads opset 20's linear and cubic as nearest"),
        "Opset 20 renamed bilinear to linear and bicubic to cubic. TensorRT's parser up to 11.1 knows the former "
        "names only and silently samples the nearest pixel: the engine builds, and its values are wrong.",
        "users of TensorRT up to 11.1.",
        "optimize lowers the file to opset 19, which every version reads correctly; or export at opset 18.",
    ),
    Rule(
        *("E010", "target-refused", "error", "a target refuses the file"),
        "The runtime given with --target cannot load the file as it is: its own parser says so, or what is known of "
        "that version of it. The message is the parser's own where one is installed. A parser that crashes on the "
        "file refuses it as well.",
        "users of that target; each is judged on its own.",
        "The message says whether the file that optimize writes is accepted. Otherwise change the node that it "
        "names, or export at opset 18.",
    ),
    Rule(
        *("W001", "affine-grid", "warning", "AffineGrid has no importer in TensorRT"),
        "No version of TensorRT imports the operator AffineGrid of opset 20.",
        "users of TensorRT and TensorRT-RTX.",
        "optimize replaces it; exports at opset 18 never contain it.",
    ),
    Rule(
        *("W002", "volume-sampler", "warning", "TensorRT samples volumes natively from 11.2.1 on only"),
        "A GridSample with a 5-D input is refused by older versions of TensorRT.",
        "users of TensorRT before 11.2.1.",
        "optimize writes an op of domain stn, which the plugin library runs; or update TensorRT.",
    ),
    Rule(
        *("W003", "mixed-types", "warning", "image and grid have different types"),
        "TensorRT's GridSample requires one type for image and grid, so a half-precision image with a float32 grid "
        "is refused.",
        "users of TensorRT and TensorRT-RTX.",
        "optimize inserts the casts, or writes an op of domain stn, which takes any image with a float32 grid.",
    ),
    Rule(
        *("W004", "half-grid", "warning", "the grid is rounded to half precision"),
        "Half precision has 11 bits (bfloat16 8), so coordinates near 1 move by a fraction of a pixel that grows "
        "with the width. The message gives the error at the file's own width; below 0.1 px the finding is an info.",
        "everybody: predictions differ from those in float32.",
        "optimize computes the grid in float32; images and weights stay as they are.",
    ),
    Rule(
        *("W005", "quantized-grid", "warning", "integers between theta and the sampler"),
        "int8 leaves 256 values for each parameter, and sampling points move in steps. The message gives the step "
        "in pixels; below 0.1 px the finding is an info.",
        "whoever quantized the whole model.",
        "optimize reads theta before it is quantized; or exclude the layers behind the grid when you quantize.",
    ),
    Rule(
        *("W006", "cpu-sampler", "warning", "onnxruntime's CUDA provider may run the sampler on the CPU"),
        "Where the provider has no kernel for the type, rank or opset of a GridSample, onnxruntime silently runs it "
        "on the CPU and copies image and grid to the host and back.",
        "users of onnxruntime on a GPU, mostly with releases before 2026.",
        "optimize writes an op of domain stn, for which the plugin library has CUDA kernels.",
    ),
    Rule(
        *("W007", "fusable-grid", "warning", "the grid is linear in its parameters, but is written to memory"),
        "The grid is provably a product of a few parameters and a constant matrix. As it stands it is computed by "
        "several operators, written to memory and read back.",
        "whoever cares for latency.",
        "optimize fuses it into one op, which computes coordinates where it samples.",
    ),
    Rule(
        *("W008", "static-batch", "warning", "the batch size is a constant"),
        "The exporter baked the batch size in as a constant, so larger batches are split and smaller ones padded.",
        "users who run more than one sample at a time.",
        "Export with a dynamic batch axis.",
    ),
    Rule(
        *("W009", "batch-dependent", "warning", "an output depends on the other samples of its batch"),
        "In a run on random inputs, an output of one sample changed with the rest of its batch: some operator mixes "
        "samples, often a normalization over the batch axis.",
        "users who run batches: predictions depend on their order.",
        "Normalize each sample on its own, or run one sample at a time.",
    ),
    Rule(
        *("W010", "weights-as-inputs", "warning", "weights are also inputs"),
        "A caller could replace such weights, so runtimes cannot treat them as constants, and no grid can be proven "
        "linear.",
        "users of files from old exporters (IR version 3).",
        "optimize removes them from the inputs of IR version 3; or export with keep_initializers_as_inputs=False.",
    ),
    Rule(
        *("W011", "not-examined", "warning", "the fusion pass could not run"),
        "Something in the file keeps the pass from analyzing it; the other rules were applied.",
        "whoever wants the file fused.",
        "The message names the reason. Export the model again if the file is damaged.",
    ),
    Rule(
        *("W012", "invalid", "warning", "onnx's checker rejects the file"),
        "The file violates the definition of ONNX or of an operator. Some runtimes accept it nevertheless.",
        "users of strict runtimes.",
        "Export the model again, with current versions of the exporter and of onnx.",
    ),
    Rule(
        *("W013", "opset-too-old", "warning", "an opset older than 11"),
        "optimize supports files from opset 11 on.",
        "users of files from 2019 and before.",
        "Export the model again, at opset 18.",
    ),
    Rule(
        *("I001", "static-size", "info", "height and width are constants"),
        "The file takes images of one size only.",
        "users with images of several sizes, which must be resized.",
        "Export with dynamic height and width if the network supports it (export --dynamic-size).",
    ),
    Rule(
        *("I002", "grid-not-linear", "info", "why a grid is not fused"),
        "The grid could not be proven linear in its parameters. The message names the tensor and the operator where "
        "the proof ends.",
        "whoever wants the grid fused.",
        "Nothing is wrong. Where the operator is a clamp or a selection that is not needed, leave it out of the "
        "network.",
    ),
    Rule(
        *("I003", "plain-sampler", "info", "a GridSample whose grid is not fused"),
        "The runtime's own GridSample runs it. The message says what optimize does with it, or why it stays.",
        "whoever cares for latency on the CPU, where the plugin library samples faster.",
        "optimize writes stn::Sampler at the same grid.",
    ),
    Rule(
        *("I004", "dense-flow", "info", "the grid is a flow field"),
        "A convolution computes the grid pixel by pixel, so it has no few parameters.",
        "whoever expected a fused spatial transformer.",
        "Nothing: this is what flow and registration networks do.",
    ),
    Rule(
        *("I005", "convention-mix", "info", "grid and sampler have different align_corners conventions"),
        "In the grid, -1 and 1 are the centers of the outer pixels, and in the sampler their edges, or the reverse. "
        "Even an identity theta then samples off by up to half a pixel.",
        "users of networks that were not trained this way. PyTorch before 1.3 mixed the two.",
        "Pass the same align_corners to affine_grid and grid_sample, unless the network was trained with the mix.",
    ),
    Rule(
        *("I006", "cubic-sampler", "info", "bicubic sampling"),
        "Bicubic reads 16 pixels per sample instead of 4, and some plugins compute bilinear instead.",
        "whoever cares for latency, and users of mmdeploy's plugin.",
        "Use bilinear if the accuracy allows it.",
    ),
    Rule(
        *("I007", "infinite-weights", "info", "a constant contains an infinity"),
        "Infinities are common in attention masks. In a weight they are probably an overflow.",
        "users of checkpoints converted to half precision.",
        "If it is not a mask, export from the float32 checkpoint.",
    ),
    Rule(
        *("I008", "tf32", "info", "how far TF32 would move sampling points"),
        "TF32 rounds the operands of a matrix product to 11 bits. In the product that computes the grid, that moves "
        "sampling points. stn-infer disables TF32 by default, other programs may not.",
        "users of NVIDIA GPUs since Ampere.",
        "Leave TF32 off in the program that runs the file; in stn-infer, only build --tf32 allows it.",
    ),
    Rule(
        *("I009", "fused", "info", "already a fused spatial transformer"),
        "The node is an op of domain stn that computes its grid itself.",
        "nobody in particular.",
        "Nothing.",
    ),
    Rule(
        *("I010", "no-sampler", "info", "the file has no sampler"),
        "There is nothing to fuse.",
        "whoever expected a spatial transformer in the file.",
        "Check that the right model was exported.",
    ),
    Rule(
        *("I011", "target-not-judged", "info", "nothing here can judge the file for a target"),
        "The runtime given with --target is not installed here, and of the operators that the message lists it is "
        "not known whether that version supports them. This is not a pass: the file may be refused. With --fail-on "
        "not-judged, it fails the check.",
        "users of that target.",
        "Install the runtime and run lint again, or build an engine where the runtime is.",
    ),
)
_BY_CODE = {rule.code: rule for rule in RULES}


if __name__ == "__main__":
    print(page(), end="")

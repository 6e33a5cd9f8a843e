"""Chooses what replaces a sampler: the cut, and the form of the map from it to the grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from stn_infer.fusion.basis import Kind, LatticeBasis
from stn_infer.fusion.cuts import Candidate, Cutter
from stn_infer.fusion.dataflow import GraphView, NotLinear, TooLarge, WideSpan
from stn_infer.fusion.evaluate import Evaluator
from stn_infer.fusion.forms import Degree
from stn_infer.fusion.lattices import cost
from stn_infer.fusion.lattices.find import LatticeMap, find_lattice
from stn_infer.fusion.lattices.separable import Float32, factors_of
from stn_infer.fusion.measure import Cut, ThetaMap, factor
from stn_infer.fusion.op import op_of
from stn_infer.fusion.proof import Prover
from stn_infer.fusion.shapes import Observation

# A dense basis of fewer rows stays one, whatever its structure; one of more is sought as a lattice first.
_FEW_ROWS = 32
# Limits on a basis's elements and rows beyond the constants that it replaces: a file must not become much larger, nor
# its plain form slower.
_MAX_MORE, _MAX_MORE_ROWS = 2**20, 128


@dataclass(frozen=True)
class Plan:
    """What replaces a sampler.

    Attributes:
        cut: where theta comes from.
        found: the map from there to the grid.
        sparse: the basis as an index and a weight, if that is the form; then ``found`` only gives theta.
        precision: in which the file computed the grid.
        factors: of a basis that would make the file too large, one per axis; empty: it is stored whole.
    """

    cut: Cut
    found: ThetaMap | LatticeMap
    sparse: LatticeBasis | None
    precision: str
    factors: tuple[Float32, ...] = ()

    @property
    def kind(self) -> Kind:
        """The kind of the basis."""
        if isinstance(self.found, LatticeMap):
            return "tensor_product"
        return self.found.kind if self.sparse is None else "lattice"

    @property
    def op(self) -> str:
        """The op."""
        return op_of(self.kind)

    @property
    def rows(self) -> int:
        """K."""
        return prod(self.found.lattice) if isinstance(self.found, LatticeMap) else len(self.found.basis)

    @property
    def products(self) -> int:
        """How many products of the cut's values theta is computed from; 0: of the values themselves."""
        products = self.found.products if isinstance(self.found, ThetaMap) else None
        return 0 if products is None else len(products)

    @property
    def text(self) -> str:
        """The form, for a message."""
        if isinstance(self.found, LatticeMap):
            return f"tensor product, lattice of {' x '.join(map(str, self.found.lattice))}"
        if self.sparse is not None:
            return f"lattice, K = {self.rows}, {len(self.sparse.index)} points per pixel"
        if self.found.general:
            least = "" if self.found.w_min is None else f", denominator of at least {self.found.w_min:.6g}"
            return f"projective, K = {self.rows}{least}"
        return f"basis, K = {self.rows}" if self.kind == "basis" else self.kind


class Chooser:
    """Chooses what replaces a sampler at ``grid``.

    Args:
        view, observed, evaluator, prover: of the graph.
        grid: the grid's tensor; its shape is known.
        region: indices of the nodes through which it can be traced back, ascending.
        products: whether ``prover`` accepts products of values that vary; lattices are sought without them.
    """

    def __init__(
        self,
        view: GraphView,
        observed: Observation,
        evaluator: Evaluator,
        prover: Prover,
        grid: str,
        region: list[int],
        products: bool,
    ) -> None:
        self._products = products
        self._view, self._observed, self._evaluator, self._prover = view, observed, evaluator, prover
        self._grid, self._region = grid, region
        self._cutter = Cutter(view, observed, prover, grid, region)
        self._output_size = tuple(axis.factor for axis in observed.shapes[grid][1:-1])

    def chosen(self) -> Plan:
        """Returns the plan: a small basis, else one matrix per axis, else any basis that is cheap enough.

        Raises:
            NotLinear: no cut has a proof and a map, or the file would be slower without kernels, or too large.
        """
        candidates, last = self._cutter.candidates()
        few = any(candidate.size < _FEW_ROWS * len(self._output_size) for candidate in candidates)
        if not few and (lattice := self._lattice()) is not None:
            return lattice
        try:
            dense = self._measured(candidates, last)
        except NotLinear:
            if few and (lattice := self._lattice()) is not None:
                return lattice
            raise
        found = dense.found
        assert isinstance(found, ThetaMap)
        size = sum(factor.nbytes for factor in dense.factors) or cost.basis_bytes(found)
        cheap = self._is_cheap(dense.cut, cost.basis_cost(found, dense.cut.rows), size)
        if (
            found.kind == "basis"
            and few
            and (dense.rows >= _FEW_ROWS or not cheap or dense.factors)
            and (lattice := self._lattice()) is not None
        ):
            return lattice
        return self._affordable(dense, found, cheap)

    def _lattice(self) -> Plan | None:
        """A tensor product that is cheap enough, if there is one."""
        if self._products:
            return None
        try:
            cut, found = find_lattice(
                self._view, self._observed, self._prover, self._evaluator, self._grid, self._region, self._output_size
            )
        except NotLinear:
            return None
        spent = cost.tensor_product_cost(found, cut.rows)
        cheap = self._is_cheap(cut, spent, found.weight_bytes)
        return Plan(cut, found, None, self._cutter.precision(cut)) if cheap else None

    def _measured(self, candidates: list[Candidate], last: NotLinear) -> Plan:
        """The first cut with a proof and a map to a dense basis; with its index and weight, if it is sparse."""
        tried: list[NotLinear] = []
        for candidate in candidates:
            try:
                forms = self._prover.prove(candidate.tensors, candidate.nodes, self._grid)
            except NotLinear as why:
                tried.append(why)
                continue
            quotients = frozenset(name for name, form in forms.items() if form.degree >= Degree.RECIPROCAL)
            terms = forms[self._grid].terms if self._products else None
            for cut in self._cutter.cuts(candidate):
                try:
                    found = factor(self._evaluator, cut, self._grid, self._output_size, quotients, terms)
                    sparse = cost.sparse_basis(found)
                    factors = self._factors(cut, found, sparse is None)
                except NotLinear as why:
                    tried.append(why)
                else:
                    return Plan(cut, found, sparse, self._cutter.precision(cut), factors)
        # Where a field is dense, the layer that computes it is the reason, and not the size of the layer's input.
        wide = bool(tried) and isinstance(tried[0], WideSpan) and bool(last.op_type)
        raise last if wide or not tried else tried[0]

    def _factors(self, cut: Cut, found: ThetaMap, dense: bool) -> tuple[Float32, ...]:
        """The factors of a basis that would make the file too large; empty if it would not.

        Raises:
            TooLarge: it would, and it has no factors; if it is not ``dense``, its index and weight may be smaller.
        """
        size = cost.basis_bytes(found)
        if size - cost.removed_bytes(self._view, cut) <= cost.MOST_BYTES and not self._is_much(cut, found):
            return ()
        if factors := factors_of(found.basis, self._output_size):
            return tuple(factors)
        if dense and self._is_much(cut, found):
            much = f"{len(found.basis)} rows would take {size / 2**20:.1f} MiB"
            reason = f"its basis of {much}, much more than the nodes that compute it"
            raise TooLarge(self._grid, "", reason)
        return ()

    def _is_much(self, cut: Cut, found: ThetaMap) -> bool:
        """Whether a basis takes much more memory than the constants of the nodes that it replaces."""
        names = {name for index in cut.nodes for name in self._view.nodes[index].input} - self._view.varying
        shapes = [self._observed.shapes[name] for name in names if name in self._observed.shapes]
        kept = sum(prod(axis.factor for axis in shape) for shape in shapes)
        rows, points = found.basis.shape
        return bool(rows * points > kept + min(_MAX_MORE, _MAX_MORE_ROWS * points))

    def _affordable(self, dense: Plan, found: ThetaMap, cheap: bool) -> Plan:
        """The plan for a dense basis, with an index and a weight instead where the basis costs too much."""
        cut, sparse = dense.cut, dense.sparse
        if sparse is not None and (dense.rows >= _FEW_ROWS or not cheap):
            spent = cost.lattice_cost(sparse, found.dimensions, cut.rows)
            if self._is_cheap(cut, spent, cost.lattice_bytes(sparse)):
                return replace(dense, factors=())
        if cheap:
            return replace(dense, sparse=None)
        reason = f"a basis of {len(found.basis)} rows would make the file larger or slower without the plugin library"
        raise TooLarge(self._grid, self._view.maker(self._grid), reason)

    def _is_cheap(self, cut: Cut, spent: float, size: int) -> bool:
        return cost.is_cheap(self._view, self._observed, cut, self._output_size, spent, size)

"""The transformations: those of the STN paper, rigid ones, lattices and quotients, each as ``theta`` and ``basis``."""

from stn_infer.fusion.basis import Kind
from stn_infer.transforms.affine import Affine, Attention, Translation
from stn_infer.transforms.base import Transformation
from stn_infer.transforms.camera import Camera, plane_points, voxel_centers
from stn_infer.transforms.fixed import FixedBasis
from stn_infer.transforms.lattice import CoarseLattice, CubicBSpline, TensorProduct
from stn_infer.transforms.piecewise import PiecewiseAffine
from stn_infer.transforms.projective import Projective
from stn_infer.transforms.quotient import Quotient, RationalPolynomial
from stn_infer.transforms.rigid import Rigid, Similarity
from stn_infer.transforms.tps import ThinPlateSpline

__all__ = [
    "Affine",
    "Attention",
    "Camera",
    "CoarseLattice",
    "CubicBSpline",
    "FixedBasis",
    "Kind",
    "PiecewiseAffine",
    "Projective",
    "Quotient",
    "RationalPolynomial",
    "Rigid",
    "Similarity",
    "TensorProduct",
    "ThinPlateSpline",
    "Transformation",
    "Translation",
    "plane_points",
    "voxel_centers",
]

"""What the pruned network becomes: a smaller file, a faster layer where one is to be had, an exported graph."""

from trimtab.deploy.channels import SmallerNetwork, remove_channels
from trimtab.deploy.compact_file import load_compact, save_compact
from trimtab.deploy.compact_report import CompactReport, CompactRow
from trimtab.deploy.csr_linear import CsrLinear
from trimtab.deploy.export import export_onnx, export_program
from trimtab.deploy.gated import remove_gated
from trimtab.deploy.latency import BreakEven, break_even, measure_linear
from trimtab.deploy.macko import Macko, macko_decode, macko_encode
from trimtab.deploy.macko_file import MackoReport, load_macko, save_macko
from trimtab.deploy.semi_structured import SemiStructuredReport, check_semi_structured, to_semi_structured
from trimtab.deploy.sparse_linear import LinearRow, SparseLinearReport, to_sparse_linear
from trimtab.deploy.sparse_reader import load_sparse, sparse_metadata
from trimtab.deploy.sparse_writer import save_sparse
from trimtab.deploy.store_report import StoreReport, TensorRow
from trimtab.deploy.timing import Comparison
from trimtab.deploy.verdict import VerdictRow, verdict

__all__ = [
    "BreakEven",
    "CompactReport",
    "CompactRow",
    "Comparison",
    "CsrLinear",
    "LinearRow",
    "Macko",
    "MackoReport",
    "SemiStructuredReport",
    "SmallerNetwork",
    "SparseLinearReport",
    "StoreReport",
    "TensorRow",
    "VerdictRow",
    "break_even",
    "check_semi_structured",
    "export_onnx",
    "export_program",
    "load_compact",
    "load_macko",
    "load_sparse",
    "macko_decode",
    "macko_encode",
    "measure_linear",
    "remove_channels",
    "remove_gated",
    "save_compact",
    "save_macko",
    "save_sparse",
    "sparse_metadata",
    "to_semi_structured",
    "to_sparse_linear",
    "verdict",
]

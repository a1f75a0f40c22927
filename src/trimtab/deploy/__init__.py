"""What the pruned network becomes: a smaller file, a faster layer where one is to be had, an exported graph."""

from trimtab.deploy.sparse_reader import load_sparse, sparse_metadata
from trimtab.deploy.sparse_writer import save_sparse
from trimtab.deploy.store_report import StoreReport, TensorRow

__all__ = ["StoreReport", "TensorRow", "load_sparse", "save_sparse", "sparse_metadata"]

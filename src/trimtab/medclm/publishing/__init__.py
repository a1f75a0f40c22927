"""A finished set made ready for others: card, Croissant, Parquet, shards; annotations alone, and joining them with pictures."""

from trimtab.medclm.publishing.about import LICENCES, About
from trimtab.medclm.publishing.annotations import rejoin
from trimtab.medclm.publishing.publish import publish
from trimtab.medclm.publishing.shards import write_shards

__all__ = ["LICENCES", "About", "publish", "rejoin", "write_shards"]

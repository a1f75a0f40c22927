"""A finished set made ready for others: card, Croissant, Parquet, shards; annotations alone, joined with pictures; pushing."""

from trimtab.medclm.publishing.about import LICENCES, About
from trimtab.medclm.publishing.annotations import rejoin
from trimtab.medclm.publishing.publish import publish
from trimtab.medclm.publishing.push import push, release_in
from trimtab.medclm.publishing.shards import write_shards

__all__ = ["LICENCES", "About", "publish", "push", "rejoin", "release_in", "write_shards"]

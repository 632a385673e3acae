"""The networks by name. Packages are imported when a network is built, not before."""

from __future__ import annotations

from zoo.networks import own_sequence, own_tables, own_vision, timm_models, torchvision_models, transformers_models
from zoo.networks.entry import Built, Entry

NETWORKS: dict[str, Entry] = {
    **own_vision.TABLE,
    **own_sequence.TABLE,
    **own_tables.TABLE,
    **torchvision_models.TABLE,
    **timm_models.TABLE,
    **transformers_models.TABLE,
}

__all__ = ["NETWORKS", "Built", "Entry"]

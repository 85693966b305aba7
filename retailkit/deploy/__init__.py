"""From notebook to shop: a model as files that run anywhere, and a card that says whether to rely on it."""

from retailkit.deploy.card import Card, model_card
from retailkit.deploy.criteria import CRITERIA, limits
from retailkit.deploy.package import Export, export

__all__ = ["CRITERIA", "Card", "Export", "export", "limits", "model_card"]

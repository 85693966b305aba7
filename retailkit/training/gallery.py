"""A new product for a gallery model, from a few photos and without training."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retailkit.config import DataError, UsageError
from retailkit.data import folder
from retailkit.data.advice import some
from retailkit.models.classifier import Features, ProductClassifier, evaluating
from retailkit.training.checkpoints import photo_hashes
from retailkit.training.encoded import encode_batch, load_batches, placed


def require_gallery(model: Any, what: str) -> None:
    """Raise `UsageError` unless a model keeps a gallery of photos."""
    if not getattr(getattr(model, "head", None), "remembers", False):
        kind = getattr(model, "build_args", {}).get("name", type(model).__name__)
        raise UsageError(f"{what}: model {kind!r} has no gallery of photos; train one with --model gallery")


def add_product(
    model: ProductClassifier, facts: Mapping[str, Any], name: str, files: Sequence[Path]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add photos of a product to the gallery of a model, in place; a name that it does not know becomes a new class.

    Photos that are in the gallery already are left out. Nothing changes where a photo cannot be read.

    Args:
        model: of the kind `gallery`, in evaluation mode.
        facts: of its checkpoint.
        name: of the product.
        files: its photos; from one to five are enough.

    Returns:
        What was done (`product`, `new`, `added`, `known`, `photos`, `products`, and `closest`, the most similar other
        product with its `similarity`), and the facts for the checkpoint.

    Raises:
        UsageError: a model without a gallery, or no name.
        DataError: photos cannot be read, each is named; or the gallery holds one of them as another product.
    """
    require_gallery(model, "cannot add a product")
    name = unicodedata.normalize("NFC", name.strip())
    if not name or not name.isprintable():
        raise UsageError(f"{name!r} is no name of a product; give one that can be printed")
    photos = folder.photos(files, model.classes)
    hashes, labels = photo_hashes(photos), model.head.labels.tolist()
    known = dict(zip(facts.get("photos", ()), (model.classes[label] for label in labels), strict=False))
    fresh = [row for row, photo in enumerate(hashes) if photo not in known and photo not in hashes[:row]]
    for row, photo in enumerate(hashes):
        if (held := known.get(photo, name)) != name:
            raise DataError(f"{files[row]}: the gallery holds this photo as {held!r}; leave it out, or train again")
    if not fresh:
        raise DataError(f"{some([str(file) for file in files])}: the gallery holds these photos already; give others")
    features = _encode(model, photos.select(fresh), facts)
    new, others = name not in model.classes, [k for k, other in enumerate(model.classes) if other != name]
    near = model.head.similarity(model.by_modality(features, None))[:, others].mean(0)
    if new:
        model.classes = model.build_args["classes"] = [*model.classes, name]
    label = model.classes.index(name)
    model.head.add(model.by_modality(features, None), label)
    done = {"product": name, "new": new, "added": len(fresh), "known": len(files) - len(fresh)}
    done |= {"photos": int((model.head.labels == label).sum()), "products": len(model.classes)}
    if others:
        done |= {"closest": model.classes[others[int(near.argmax())]], "similarity": round(float(near.max()), 3)}
    # Without the key: the same training must not take this file for its own.
    kept = {key: value for key, value in facts.items() if key != "key"}
    kept["added"] = facts.get("added", 0) + len(fresh)
    return done, kept | {"photos": [*facts.get("photos", ()), *(hashes[row] for row in fresh)]}


def _encode(model: ProductClassifier, photos, facts: Mapping[str, Any]) -> Features:
    split, broken = photos.split("test", facts["size"], facts["fit"]), []
    for row in range(len(split)):
        try:
            split[row]
        except DataError as error:
            broken.append(folder.reason(error))
    if broken:
        raise DataError.listing(broken)
    with placed(model) as where, evaluating(model):
        parts = [encode_batch(model, batch.to(where), model.encode_image).image for batch in load_batches(split, 32)]
    return Features(*(part.cpu().clone() for part in Features.joined(parts)))

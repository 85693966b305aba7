"""Image and text encoders: they turn images or texts into vectors. Building one never downloads anything."""

from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from retailkit.cache import open_file
from retailkit.config import UsageError, UserError, pick
from retailkit.models.weights import TRANSFORMERS, find_folder, find_weights, load_trunk, one_line, published_weights

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

TEXT_ENCODERS = (*TRANSFORMERS, "char_ngrams")
# What a checkpoint may say about the architecture of a transformer; anything else in it is ignored.
ARCHITECTURE = {
    "bert": ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act",
             "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
             "layer_norm_eps", "pad_token_id"),
    "distilbert": ("vocab_size", "dim", "hidden_dim", "n_heads", "n_layers", "activation", "dropout",
                   "attention_dropout", "max_position_embeddings", "sinusoidal_pos_embds", "pad_token_id"),
}  # fmt: skip


class Encoder(nn.Module):
    """A module that can be frozen."""

    frozen = False

    def freeze(self, frozen: bool = True) -> Encoder:
        """Stop (or resume) learning; a frozen encoder keeps its batch statistics whatever `train` says."""
        self.frozen = frozen
        self.requires_grad_(not frozen)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """Set training mode, unless frozen."""
        return super().train(mode and not self.frozen)


class ImageEncoder(Encoder):
    """An image network without its classifier; see `build_image_encoder`.

    Attributes:
        dim: D, channels of the last map and length of a pooled vector.
        stride: input pixels per cell of the last map.
        size: input side in pixels that the weights were made for; other sizes work unless the network is `fixed`.
        fixed: whether the network takes square images of that size only.
        mean, std: (3,1,1), of images in [0,1].
        map_layer: module whose output is the last feature map, whatever the network: hook it for Grad-CAM.
    """

    def __init__(self, name: str, network: nn.Module, published: PretrainedCfg, fixed: bool = False) -> None:
        super().__init__()
        if not getattr(network, "feature_info", None):
            raise UsageError(f"backbone {name!r} describes no feature map; choose another network")
        self.name, self.network, self.fixed = name, network, fixed
        self.last_map, self.pads = _maps, False  # see `_find_last_map`
        self.dim, self.stride = network.num_features, network.feature_info[-1]["reduction"]
        self.size = (published.test_input_size or published.input_size)[-1]
        self.map_layer = nn.Identity()
        self.register_buffer("mean", torch.tensor(published.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(published.std).view(3, 1, 1), persistent=False)

    def forward_map(self, images: Tensor) -> Tensor:
        """Return the last feature map (B,D,h,w), with h = ceil(H / stride), of images (B,3,H,W) in [0,1].

        Of a vision transformer these are the vectors of its patches, without those of class and register tokens. Where
        a network's patches do not divide an image, the mean colour is added on the right and below.

        Raises:
            UsageError: the network is `fixed`, and the images have another size.
        """
        height, width = images.shape[2:]
        if self.fixed and (height, width) != (self.size, self.size):
            cure = f"give images of {self.size} by {self.size}, or choose a backbone that takes any size"
            raise UsageError(f"backbone {self.name!r} cannot take images of {height} by {width} pixels; {cure}")
        normalised = (images - self.mean) / self.std
        if self.pads:
            normalised = functional.pad(normalised, (0, -width % self.stride, 0, -height % self.stride))
        # On a CPU convolutions run a third faster in this layout; it does not change a value.
        maps = self.last_map(self.network, normalised.contiguous(memory_format=torch.channels_last))
        return self.map_layer(maps)

    def forward(self, images: Tensor) -> Tensor:
        """Return the average of the last feature map, (B,D), of images (B,3,H,W) in [0,1]."""
        return self.forward_map(images).mean((2, 3))

    @torch.inference_mode(False)
    @torch.no_grad()
    def for_side(self, height: int, width: int) -> ImageEncoder:
        """Return a copy for images of one size, whose position embedding is resampled now: ONNX cannot do it."""
        own = copy.deepcopy(self)
        if getattr(own.network, "pos_embed", None) is not None and hasattr(own.network, "set_input_size"):
            padded = (side + -side % self.stride for side in (height, width))
            own.network.set_input_size(img_size=tuple(padded))
        return own


# -- How networks give their last feature map (B,D,h,w) for normalised images.


def _maps(network: nn.Module, images: Tensor) -> Tensor:
    return network.forward_features(images)


def _channels_last_maps(network: nn.Module, images: Tensor) -> Tensor:
    return network.forward_features(images).permute(0, 3, 1, 2)


def _tokens(network: nn.Module, images: Tensor, norm: bool = True) -> Tensor:
    return network.forward_intermediates(images, 1, norm=norm, output_fmt="NCHW", intermediates_only=True)[-1]


LAST_MAPS = (_maps, _channels_last_maps, _tokens, partial(_tokens, norm=False))  # Hiera normalises after its pooling


def _find_last_map(encoder: ImageEncoder, side: int) -> None:
    """Find out how a network gives its last feature map of images of one side; `UsageError` where it gives none."""
    images = torch.zeros(1, 3, side, side)
    for last_map in LAST_MAPS:
        encoder.last_map = last_map
        with suppress(AssertionError, AttributeError, RuntimeError):  # it has other axes, or cannot be asked like this
            shape = encoder.forward_map(images).shape
            if len(shape) == 4 and shape[1] == encoder.dim:
                encoder.pads = _needs_borders(encoder)
                return
    given = encoder.network.forward_features(images)
    given = tuple(given.shape) if isinstance(given, Tensor) else f"a {type(given).__name__}"
    wanted = f"feature map (B, {encoder.dim}, h, w); choose another network"
    raise UsageError(f"backbone {encoder.name!r} gives {given} and no {wanted}")


def _needs_borders(encoder: ImageEncoder) -> bool:
    """Return whether a network refuses images that its patches do not divide (transformers) or drops the rest."""
    if encoder.fixed or encoder.last_map is not _maps:
        return not encoder.fixed
    with suppress(RuntimeError):  # the image may be too small
        return _maps(encoder.network, torch.zeros(1, 3, *2 * [2 * encoder.stride + 1])).shape[2] == 2  # as ConvNeXt
    return False


def build_image_encoder(name: str, weights: str | Path | None = "auto") -> ImageEncoder:
    """Build an image encoder from what is on this machine.

    Args:
        name: key of `BACKBONES`, or `timm:NAME` for any network of timm that gives a feature map.
        weights: `auto` for the default published weights, a variant such as `V2` or `WSL`, a local file
            (.pth or .safetensors in the official layout of torchvision, timm or the lite packages), or None
            for a random start.

    Raises:
        UsageError: unknown backbone or variant, or a network without a feature map.
        UserError: the weights are not on this machine, are damaged, or belong to another network.
    """
    _, published, described = published_weights(name, weights)
    file = None if weights is None else find_weights(name, weights)
    network, fixed = _network(published.network, described.fixed_input_size)
    encoder = ImageEncoder(name, network, described, fixed)
    if file:
        load_trunk(encoder.network, file)
    if name.startswith("timm:"):
        any_size = described.fixed_input_size and not fixed
        with torch.no_grad():
            _find_last_map(encoder.eval(), 4 * encoder.stride if any_size else encoder.size)
    return encoder.train()


class _Trunk(nn.Sequential):
    forward_features = nn.Sequential.forward


def _network(name: str, fixed: bool) -> tuple[nn.Module, bool]:
    """Return a network of timm or torchvision, randomly initialised and without its classifier.

    `fixed` says whether it is made for one input size; returned is whether it is bound to it.
    """
    if not name.startswith("torchvision:"):
        import timm

        # Options for other sizes; each network knows one of them or none.
        for options in ({"strict_img_size": False}, {"dynamic_img_size": True}) if fixed else ():
            with suppress(TypeError):  # this network has no such option
                return timm.create_model(name, pretrained=False, num_classes=0, **options), False
        return timm.create_model(name, pretrained=False, num_classes=0), fixed
    from torchvision.models import get_model

    whole = get_model(name.removeprefix("torchvision:"), weights=None)
    trunk = _Trunk(OrderedDict((key, child) for key, child in whole.named_children() if key != "fc"))
    trunk.num_features, trunk.feature_info = whole.fc.in_features, [{"reduction": 32}]
    return trunk, False


class TextEncoder(Encoder):
    """Turns texts into vectors.

    Attributes:
        dim: D, length of a vector.
        sparse: True where most features are zero for most texts, so that they share one scale.
        config: JSON-able description that rebuilds the architecture without a file; None where not needed.
    """

    dim: int
    sparse = False
    config: dict[str, Any] | None = None

    def prepare(self, texts: Sequence[str]) -> None:
        """Learn from training texts what is not learned by gradient."""


class TransformerEncoder(TextEncoder):
    """A Hugging Face transformer with its tokenizer, which is None until a vocabulary is loaded."""

    max_tokens = 256  # longer texts are cut off here

    def __init__(self, name: str, network: nn.Module, vocabulary: str = "") -> None:
        super().__init__()
        self.name, self.pool, self.network = name, TRANSFORMERS[name].pool, network
        self.dim = network.config.hidden_size
        described = json.loads(network.config.to_json_string())
        self.config = {"model_type": described["model_type"], **_architecture(described)}
        self._set_vocabulary(vocabulary)

    def _set_vocabulary(self, vocabulary: str) -> None:
        # The text of a `tokenizer.json`.
        self.vocabulary, self.tokenizer = vocabulary, None
        if vocabulary:
            self.tokenizer = Tokenizer.from_str(vocabulary)
            self.tokenizer.enable_truncation(min(self.max_tokens, self.network.config.max_position_embeddings))
            self.tokenizer.enable_padding(pad_id=self.network.config.pad_token_id or 0)

    def get_extra_state(self) -> Tensor:
        """Return the vocabulary as (N,) uint8: not a buffer, because weight averaging takes buffers."""
        return torch.tensor(list(self.vocabulary.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the vocabulary out of a checkpoint."""
        self._set_vocabulary(bytes(state.tolist()).decode())

    @property
    def embedding(self) -> nn.Module:
        """The layer that turns token ids (B,T) into vectors (B,T,E): attribute to it to explain a text."""
        return self.network.get_input_embeddings()

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        """Return the tokens of each text: ids, offsets in characters, attention mask, and which of them are special."""
        if self.tokenizer is None:
            raise UserError(f"text encoder {self.name!r} has no vocabulary yet; load a checkpoint or weights")
        return self.tokenizer.encode_batch(list(texts))

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return one vector (B,D) per text."""
        encoded, device = self.tokenize(texts), self.network.device
        ids = torch.tensor([e.ids for e in encoded], device=device)
        return self.encode_tokens(ids, torch.tensor([e.attention_mask for e in encoded], device=device))

    def encode_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return one vector (B,D) per row of token ids (B,T); mask (B,T) is 0 on padding."""
        states = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.pool == "first":
            return states[:, 0]
        weight = mask[..., None].to(states.dtype)
        return functional.normalize((states * weight).sum(1) / weight.sum(1), dim=1)


class CharNgramEncoder(TextEncoder):
    """TF-IDF of hashed character n-grams inside words: small, no weights, forgiving of OCR mistakes.

    Vectors have length sqrt(D), so that a feature is of the order of 1 like those of other encoders.
    """

    dim, sparse = 4096, True

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        super().__init__()
        self.vectorizer = HashingVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), n_features=self.dim, alternate_sign=False, norm=None
        )
        self.register_buffer("idf", torch.ones(self.dim))

    def prepare(self, texts: Sequence[str]) -> None:
        """Set inverse document frequencies, ln((1 + n) / (1 + df)) + 1, from the texts that are not empty."""
        counts = self.vectorizer.transform([t for t in texts if t.strip()] or [""])
        frequency = torch.from_numpy(counts.getnnz(axis=0)).float()
        self.idf.copy_(((1 + counts.shape[0]) / (1 + frequency)).log() + 1)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return one vector (B,D) per text."""
        counts = torch.from_numpy(self.vectorizer.transform(texts).toarray()).float().to(self.idf.device)
        return functional.normalize(counts * self.idf, dim=1) * math.sqrt(self.dim)


def build_text_encoder(
    name: str, weights: str | Path | None = "auto", config: Mapping[str, Any] | None = None
) -> TextEncoder:
    """Build a text encoder from what is on this machine.

    Args:
        name: one of `TEXT_ENCODERS`.
        weights: `auto` for a packaged or fetched folder, a local Hugging Face folder, or None for a random start
            without a vocabulary, into which a checkpoint can be loaded.
        config: architecture where `weights` is None; None takes the published one.

    Raises:
        UserError: the weights are not on this machine or damaged.
    """
    if pick(TEXT_ENCODERS, name, "text encoder") == "char_ngrams":
        return CharNgramEncoder()
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    safely = {"trust_remote_code": False, "attn_implementation": "eager"}
    if weights is None:
        # By its architecture alone: a configuration may come from a file of somebody else.
        config = config or TRANSFORMERS[name].config
        architecture = _architecture(config)
        with one_line("text_config describes no transformer", "train the model again"):
            described = AutoConfig.for_model(config["model_type"], **architecture)
            return TransformerEncoder(name, AutoModel.from_config(described, **safely))
    folder = find_folder(name, weights)
    logging.disable_progress_bar()
    with one_line(f"{folder}: cannot be read as a transformer"):
        with open_file(folder / "tokenizer.json") as file:
            vocabulary = file.read().decode()
        network = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32, **safely)
        return TransformerEncoder(name, network, vocabulary).eval()


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration says about the architecture of a transformer; `UserError` for one of another kind."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURE:
        raise UserError(f"a transformer of kind {kind!r} is not supported; use one of: {', '.join(ARCHITECTURE)}")
    return {key: config[key] for key in ARCHITECTURE[kind] if key in config}

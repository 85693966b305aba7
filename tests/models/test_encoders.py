"""Encoders: shapes, packaged and official weights inside them, texts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from scipy.spatial.distance import cosine
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn

from retailkit.config import UsageError, UserError
from retailkit.models.encoders import build_image_encoder, build_text_encoder
from retailkit.models.weights import BACKBONES, find_weights

SMALL = [name for name in BACKBONES if name != "resnext101_32x8d"]  # 89 M parameters: looked at without values
pytestmark = pytest.mark.usefixtures("own_cache")
WORDS = ["milk", "oat", "lean", "extra", "##y", "ground", "beef"]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 80, 64, generator=torch.Generator().manual_seed(0))


def lively(network: nn.Module) -> nn.Module:
    """Give batch norms statistics of their own: at their start values a swapped pair would go unnoticed."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5)
    return network.eval()


# -- Every backbone


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_shapes_determinism_and_batch_size(name, images):
    encoder = build_image_encoder(name, weights=None).eval()
    maps, pooled = encoder.forward_map(images), encoder(images)
    assert maps.shape == (3, encoder.dim, -(-80 // encoder.stride), -(-64 // encoder.stride))
    assert torch.allclose(pooled, maps.mean((2, 3)))
    assert torch.equal(pooled, encoder(images))
    alone = torch.cat([encoder(image[None]) for image in images])
    assert torch.allclose(alone, pooled, rtol=1e-3, atol=1e-4 * pooled.abs().max().item())
    assert pooled.std(0).max() > 0, "the features do not depend on the image"


@torch.no_grad()
def test_resnext101_is_the_network_of_its_official_file():
    with torch.device("meta"):
        encoder = build_image_encoder("resnext101_32x8d", weights=None)
        official = torchvision.models.resnext101_32x8d(weights=None).state_dict()
        assert encoder.forward_map(torch.rand(2, 3, 64, 64)).shape == (2, 2048, 2, 2)
    own = {k: tuple(v.shape) for k, v in encoder.network.state_dict().items()}
    assert own == {k: tuple(v.shape) for k, v in official.items() if not k.startswith("fc.")}


def test_map_layer_is_where_grad_cam_hooks_in(images):
    encoder, seen = build_image_encoder("resnet18", weights=None).eval(), []
    encoder.map_layer.register_forward_hook(lambda module, args, out: seen.append(out))
    images.requires_grad_()
    pooled = encoder(images)
    assert torch.equal(seen[0].mean((2, 3)), pooled)
    gradient = torch.autograd.grad(pooled[:, 3].sum(), seen[0], retain_graph=True)[0]
    assert torch.allclose(gradient[:, 3], torch.full_like(gradient[:, 3], 1 / gradient[0, 0].numel()))
    assert torch.autograd.grad(pooled.sum(), images)[0].abs().sum() > 0


def test_frozen_encoder_keeps_its_batch_statistics(images):
    encoder = build_image_encoder("resnet18", weights=None).freeze()
    before = encoder.network.bn1.running_mean.clone()
    encoder.train()(images)
    assert torch.equal(before, encoder.network.bn1.running_mean)
    assert not any(p.requires_grad for p in encoder.parameters())
    encoder.freeze(False).train()(images)
    assert not torch.equal(before, encoder.network.bn1.running_mean)
    assert all(p.requires_grad for p in encoder.parameters())


# -- Official layouts of weights that are not at hand


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_b0", "shufflenet_v2_x1_0"])
@torch.no_grad()
def test_torchvision_file_gives_torchvision_features(name, images, tmp_path):
    official = lively(torchvision.models.get_model(name, weights=None))
    torch.save(official.state_dict(), tmp_path / "official.pth")
    encoder = build_image_encoder(name, tmp_path / "official.pth").eval()
    classifier = getattr(official, "classifier", None) or official.fc
    seen = []
    classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    official((images - encoder.mean) / encoder.std)
    assert torch.allclose(encoder(images), seen[0], rtol=1e-4, atol=1e-5 * seen[0].abs().max().item())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite1"])
@torch.no_grad()
def test_timm_file_gives_timm_features(name, suffix, images, tmp_path):
    official = lively(timm.create_model(BACKBONES[name]["V1"].network))
    path = tmp_path / f"official{suffix}"
    state = official.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    encoder = build_image_encoder(name, path).eval()
    expected = official.forward_features((images - encoder.mean) / encoder.std)
    assert torch.allclose(encoder.forward_map(images), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


# -- Any network of timm


@torch.no_grad()
def test_any_timm_network_that_gives_a_feature_map(images):
    encoder = build_image_encoder("timm:mobilenetv3_small_050", weights=None).eval()
    assert encoder.forward_map(images).shape == (3, encoder.dim, 3, 2) and encoder.size == 224
    assert encoder.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    with pytest.raises(UsageError, match=r"gives \(1, 197, 192\) and no feature map"):
        build_image_encoder("timm:vit_tiny_patch16_224", weights=None)
    with pytest.raises(UsageError, match="timm has no network 'restnet'"):
        build_image_encoder("timm:restnet", weights=None)


# -- Packaged weights


@torch.no_grad()
def test_lite0_recognises_a_cat():
    """The packaged classifier on top of our features: only right weights and normalisation name the photo."""
    skimage_data = pytest.importorskip("skimage.data")
    cat = torch.from_numpy(skimage_data.chelsea()).permute(2, 0, 1)[None].float() / 255
    image = torchvision.transforms.functional.center_crop(
        torchvision.transforms.functional.resize(cat, 256, antialias=True), 224
    )
    encoder = build_image_encoder("efficientnet_lite0").eval()
    state = torch.load(find_weights("efficientnet_lite0"), weights_only=True)
    probs = (encoder(image) @ state["_fc.weight"].T + state["_fc.bias"]).softmax(1)[0]
    cats = [281, 282, 283, 284, 285]  # tabby, tiger cat, Persian, Siamese, Egyptian
    assert probs[cats].sum() > 0.5
    assert (encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()) == ([0.5] * 3, [0.5] * 3)


# -- Texts


@pytest.fixture
def tiny_distilbert(tmp_path) -> Path:
    """A random DistilBERT in the layout of the hub: config, safetensors, WordPiece vocabulary."""
    import transformers

    folder = tmp_path / "tiny"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=len(vocabulary), dim=32, n_layers=2, n_heads=4, hidden_dim=64, initializer_range=0.5
    )
    transformers.DistilBertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_distilbert_gives_its_first_token(tiny_distilbert):
    import transformers

    encoder = build_text_encoder("distilbert", tiny_distilbert)
    assert (encoder.dim, encoder.training) == (32, False)
    texts = ["Oat milk", "extra lean ground beefy", "lean"]
    theirs = transformers.DistilBertModel.from_pretrained(tiny_distilbert, attn_implementation="eager").eval()
    for text, vector in zip(texts, encoder(texts), strict=True):
        words = text.lower().replace("beefy", "beef ##y").split()
        ids = [2, *(WORDS.index(word) + 5 for word in words), 3]
        expected = theirs(input_ids=torch.tensor([ids])).last_hidden_state[0, 0]
        assert torch.allclose(vector, expected, atol=1e-5)


@torch.no_grad()
def test_transformer_comes_back_without_its_folder(tiny_distilbert):
    encoder = build_text_encoder("distilbert", tiny_distilbert)
    config = json.loads(json.dumps(encoder.config))
    assert str(tiny_distilbert) not in json.dumps(config)
    again = build_text_encoder("distilbert", None, config).eval()
    with pytest.raises(UserError, match="has no vocabulary yet"):
        again(["milk"])
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(["oat milk", "beef"]), encoder(["oat milk", "beef"]))


@torch.no_grad()
def test_transformer_state_survives_safetensors_and_averaging(tiny_distilbert, tmp_path):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    encoder = build_text_encoder("distilbert", tiny_distilbert)
    save_file(encoder.state_dict(), tmp_path / "state.safetensors")
    again = build_text_encoder("distilbert", None, encoder.config).eval()
    again.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(again(["oat milk", "beef"]), encoder(["oat milk", "beef"]))
    average = AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        average.update_parameters(encoder)
    assert average.module.vocabulary == encoder.vocabulary


def test_broken_transformer_folder_is_named(tiny_distilbert):
    (tiny_distilbert / "model.safetensors").unlink()
    with pytest.raises(UserError, match="tiny: cannot be read as a transformer") as caught:
        build_text_encoder("distilbert", tiny_distilbert)
    assert "\n" not in str(caught.value)


def test_a_text_config_cannot_ask_for_code_and_other_kinds_are_refused(tiny_distilbert):
    """A checkpoint's header may hold anything: `auto_map` made transformers ask whether to run code."""
    config = dict(build_text_encoder("distilbert", tiny_distilbert).config)
    harmless = build_text_encoder("distilbert", None, config | {"auto_map": {"AutoModel": "evil--x.Model"}})
    assert not hasattr(harmless.network.config, "auto_map")
    with pytest.raises(UserError, match=r"kind 'llama' is not supported"):
        build_text_encoder("distilbert", None, {"model_type": "llama"})
    with pytest.raises(UserError, match="describes no transformer"):
        build_text_encoder("distilbert", None, config | {"n_heads": "many"})


LOADING = """
import os, socket, sys
os.environ.pop("HF_HUB_OFFLINE", None)
def refuse(*args): raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
import retailkit.models
assert not {"requests", "sqlite3", "transformers"} & set(sys.modules), "importing the models pulls these in"
retailkit.models.build("text", ["a", "b"], text_encoder="minilm")
assert "HF_HUB_OFFLINE" not in os.environ
"""


def test_packaged_text_weights_load_offline_and_leave_the_process_as_it_was():
    """HF_HUB_OFFLINE=1 was left set for the whole process; importing the models pulled in requests and sqlite3."""
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@torch.no_grad()
def test_packaged_minilm_understands():
    encoder = build_text_encoder("minilm")
    texts = ["Oatly Oat Milk", "a dairy free oat drink", "extra lean ground beef " * 30]
    vectors = encoder(texts)
    assert vectors.shape == (3, 384) == (3, encoder.dim)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
    assert vectors[0] @ vectors[1] == pytest.approx(0.83, abs=0.01)  # as sentence-transformers gives it
    assert vectors[0] @ vectors[2] < 0.4
    alone = torch.cat([encoder([t]) for t in texts])
    assert torch.allclose(alone, vectors, atol=1e-5), "padding changes a vector"
    encoded = encoder.tokenizer.encode_batch(["oat milk"])[0]
    attentions = encoder.network(torch.tensor([encoded.ids]), output_attentions=True).attentions
    assert attentions[0].shape == (1, 12, len(encoded.ids), len(encoded.ids))


def test_char_ngrams_are_tf_idf():
    texts = ["lean ground beef", "extra lean ground beef", "oat milk 1.5 %", ""]
    encoder = build_text_encoder("char_ngrams")
    encoder.prepare(texts)
    ours = encoder(texts[:3]).numpy()
    theirs = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(texts[:3]).toarray()
    assert np.allclose(np.linalg.norm(ours, axis=1), np.sqrt(encoder.dim), rtol=1e-5)
    for i, j in [(0, 1), (0, 2), (1, 2)]:  # a few hashed n-grams collide
        assert cosine(ours[i], ours[j]) == pytest.approx(cosine(theirs[i], theirs[j]), abs=0.03)

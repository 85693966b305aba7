"""Encoders: shapes, packaged and official weights inside them, texts."""

import hashlib
import json
import subprocess
import sys

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

pytestmark = pytest.mark.usefixtures("own_cache")
WORDS = ["milk", "oat", "lean", "extra", "##y", "ground", "beef"]


@pytest.fixture
def images():
    return torch.rand(3, 3, 80, 64, generator=torch.Generator().manual_seed(0))


def lively(network):
    """Give batch norms statistics of their own: at their start values a swapped pair would go unnoticed."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5)
    return network.eval()


# -- Official layouts of weights that are not at hand


@torch.no_grad()
def test_resnext101_is_the_network_of_its_official_file():
    with torch.device("meta"):
        encoder = build_image_encoder("resnext101_32x8d", weights=None)
        official = torchvision.models.resnext101_32x8d(weights=None).state_dict()
        assert encoder.forward_map(torch.rand(2, 3, 64, 64)).shape == (2, 2048, 2, 2)
    own = {k: tuple(v.shape) for k, v in encoder.network.state_dict().items()}
    assert own == {k: tuple(v.shape) for k, v in official.items() if not k.startswith("fc.")}


@pytest.mark.parametrize(
    ("name", "file"),
    [(name, "torchvision.pth") for name in ("resnet18", "resnet50", "efficientnet_b0", "shufflenet_v2_x1_0")]
    + [("efficientnet_b0", "timm.pth"), ("efficientnet_lite1", "timm.safetensors")],
)
@torch.no_grad()
def test_official_files_give_official_features(name, file, images, tmp_path):
    if file.startswith("timm"):
        official = timm.create_model(BACKBONES[name]["V1"].network)
    else:
        official = torchvision.models.get_model(name, weights=None)
    lively(official)
    state, path, seen = official.state_dict(), tmp_path / file, []
    save_file(state, path) if path.suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    encoder = build_image_encoder(name, path).eval()
    classifier = getattr(official, "classifier", None) or official.fc
    classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    official((images - encoder.mean) / encoder.std)
    maps, pooled, largest = encoder.forward_map(images), encoder(images), seen[0].abs().max().item()
    assert maps.shape == (3, encoder.dim, -(-80 // encoder.stride), -(-64 // encoder.stride))
    assert torch.allclose(pooled, maps.mean((2, 3))) and torch.equal(pooled, encoder(images))
    assert torch.allclose(pooled, seen[0], rtol=1e-4, atol=1e-5 * largest)
    alone = torch.cat([encoder(image[None]) for image in images])
    assert torch.allclose(alone, pooled, rtol=1e-3, atol=1e-4 * largest)
    assert pooled.std(0).max() > 0, "the features do not depend on the image"


# -- Any network of timm


TIMM = {  # name in timm: changes that make it small, stride, input side of its weights, tokens before the patches
    "mobilenetv3_small_050": ({}, 32, 224, None),
    "convnext_atto": ({}, 32, 288, None),
    "mobilenetv4_conv_small_050": ({}, 32, 256, None),
    "fastvit_t8": ({"layers": (1, 1, 1, 1)}, 32, 256, None),
    "vit_tiny_patch16_224": ({"depth": 2}, 16, 224, 1),
    "vit_small_patch14_reg4_dinov2": ({"depth": 2}, 14, 518, 5),
    "deit_tiny_distilled_patch16_224": ({"depth": 2}, 16, 224, 2),
    "vit_small_patch16_dinov3": ({"depth": 2}, 16, 256, None),
    "swin_tiny_patch4_window7_224": ({"embed_dim": 24, "depths": (1, 1, 2, 1)}, 32, 224, 0),
}
LEVIT = {"embed_dim": (16, 32, 48), "depth": (1, 1, 1)}


@pytest.fixture
def small(monkeypatch):
    """Make timm build a small network of the same kind; returns its name for `build_image_encoder`."""
    create = timm.create_model

    def make(name):
        own = {name: TIMM[name][0] if name in TIMM else LEVIT}
        monkeypatch.setattr(timm, "create_model", lambda of, **options: create(of, **options, **own.get(of, {})))
        torch.manual_seed(0)
        return f"timm:{name}"

    return make


@pytest.mark.parametrize("name", TIMM)
def test_any_timm_network_gives_a_map_of_any_image(name, small, images):
    _, stride, size, tokens = TIMM[name]
    encoder, published = build_image_encoder(small(name), weights=None).eval(), timm.models.get_pretrained_cfg(name)
    assert (encoder.stride, encoder.size, encoder.fixed) == (stride, size, False)
    assert encoder.mean.flatten().tolist() == pytest.approx(published.mean)
    assert encoder.std.flatten().tolist() == pytest.approx(published.std)
    images.requires_grad_()
    for seen in (images, images[:, :, :75, :61]):  # the second is no multiple of any patch
        maps = encoder.forward_map(seen)
        height, width = seen.shape[2:]
        assert maps.shape == (3, encoder.dim, -(-height // stride), -(-width // stride))
        assert torch.autograd.grad(maps.square().sum(), images)[0].abs().amax((1, 2, 3)).min() > 0
    assert maps.std(0).max() > 1e-4, "the features do not depend on the image"
    if tokens is not None:  # transformers give their patches as rows and columns, and borders of the mean colour
        framed = encoder.mean.expand(3, 3, *(side * stride for side in maps.shape[2:])).clone()
        framed[:, :, :75, :61] = images[:, :, :75, :61]
        official = encoder.network.forward_features((framed - encoder.mean) / encoder.std).flatten(1, -2)[:, tokens:]
        assert torch.allclose(maps.flatten(2).transpose(1, 2), official, atol=1e-5)


def test_networks_of_one_size_without_a_map_and_unknown_ones_are_named(small):
    encoder = build_image_encoder(small("levit_128s"), weights=None).eval()
    assert encoder.fixed and encoder.forward_map(torch.rand(1, 3, 224, 224)).shape == (1, 48, 4, 4)
    with pytest.raises(UsageError, match=r"'timm:levit_128s' cannot take images of 96 by 64 .*; give .* 224 by 224"):
        encoder.forward_map(torch.rand(1, 3, 96, 64))
    with pytest.raises(UsageError, match=r"(gives a list and|describes) no feature map"):  # two scales
        build_image_encoder("timm:crossvit_9_240", weights=None)
    with pytest.raises(UsageError, match="timm has no network 'restnet'"):
        build_image_encoder("timm:restnet", weights=None)


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224", "levit_128s"])
@torch.no_grad()
def test_files_of_timm_fit_their_networks_whatever_lies_beside_the_trunk(name, small, tmp_path):
    """Swin's files hold attention masks, those of distilled networks two classifiers; both were `too many tensors`."""
    network, path = small(name), tmp_path / "model.safetensors"
    state = timm.create_model(name, num_classes=10).eval().state_dict()
    if "swin" in name:
        state |= {f"layers.{i}.blocks.0.attn_mask": torch.zeros(1) for i in range(3)}
    save_file(state, path)
    encoder = build_image_encoder(network, path)
    assert all(torch.equal(value, state[key]) for key, value in encoder.network.state_dict().items() if key in state)
    with pytest.raises(UserError, match=r"model\.safetensors: "):
        build_image_encoder("timm:convnext_atto", path)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
@torch.no_grad()
def test_packaged_networks_recognise_a_cat(name):
    """The packaged classifier on top of our features: only right weights and normalisation name the photo."""
    cat = torch.from_numpy(pytest.importorskip("skimage.data").chelsea()).permute(2, 0, 1)[None].float() / 255
    resize, crop = torchvision.transforms.functional.resize, torchvision.transforms.functional.center_crop
    encoder, path = build_image_encoder(name).eval(), find_weights(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == BACKBONES[name]["V1"].sha256
    state = torch.load(path, weights_only=True)
    maps = encoder.forward_map(crop(resize(cat, encoder.size + 32, antialias=True), encoder.size))
    assert maps.shape == (1, encoder.dim, *2 * [-(-encoder.size // encoder.stride)])
    probs = (maps.mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]).softmax(1)[0]
    assert probs[281:286].sum() > 0.5, "tabby, tiger cat, Persian, Siamese, Egyptian"
    assert (encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()) == ([0.5] * 3, [0.5] * 3)


# -- Texts


@pytest.fixture
def tiny_distilbert(tmp_path):
    """A random DistilBERT in the layout of the hub: config, safetensors, WordPiece vocabulary."""
    import transformers

    folder, vocabulary = tmp_path / "tiny", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(0)
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "initializer_range": 0.5}
    config = transformers.DistilBertConfig(vocab_size=len(vocabulary), **shape)
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
def test_transformer_comes_back_without_its_folder_from_safetensors_and_averages(tiny_distilbert, tmp_path):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    encoder = build_text_encoder("distilbert", tiny_distilbert)
    described = json.dumps(encoder.config)
    assert str(tiny_distilbert) not in described
    again = build_text_encoder("distilbert", None, json.loads(described)).eval()
    with pytest.raises(UserError, match="has no vocabulary yet"):
        again(["milk"])
    save_file(encoder.state_dict(), tmp_path / "state.safetensors")
    again.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(again(["oat milk", "beef"]), encoder(["oat milk", "beef"]))
    average = AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        average.update_parameters(encoder)
    assert average.module.vocabulary == encoder.vocabulary


def test_broken_folders_and_foreign_configurations_are_refused(tiny_distilbert):
    """A checkpoint's header may hold anything: `auto_map` made transformers ask whether to run code."""
    config = dict(build_text_encoder("distilbert", tiny_distilbert).config)
    harmless = build_text_encoder("distilbert", None, config | {"auto_map": {"AutoModel": "evil--x.Model"}})
    assert not hasattr(harmless.network.config, "auto_map")
    with pytest.raises(UserError, match=r"kind 'llama' is not supported"):
        build_text_encoder("distilbert", None, {"model_type": "llama"})
    with pytest.raises(UserError, match="describes no transformer"):
        build_text_encoder("distilbert", None, config | {"n_heads": "many"})
    (tiny_distilbert / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"tiny: cannot be read as a transformer [^\n]*$"):
        build_text_encoder("distilbert", tiny_distilbert)


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


def test_char_ngrams_are_tf_idf():
    texts = ["lean ground beef", "extra lean ground beef", "oat milk 1.5 %", ""]
    encoder = build_text_encoder("char_ngrams")
    encoder.prepare(texts)
    ours = encoder(texts[:3]).numpy()
    theirs = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(texts[:3]).toarray()
    assert np.allclose(np.linalg.norm(ours, axis=1), np.sqrt(encoder.dim), rtol=1e-5)
    for i, j in [(0, 1), (0, 2), (1, 2)]:  # a few hashed n-grams collide
        assert cosine(ours[i], ours[j]) == pytest.approx(cosine(theirs[i], theirs[j]), abs=0.03)

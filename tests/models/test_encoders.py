"""Encoders: shapes, official weight layouts, packaged weights, missing weights, texts."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from scipy.spatial.distance import cosine
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn

from retailkit.config import UsageError, UserError
from retailkit.models import encoders
from retailkit.models.encoders import BACKBONES, TRANSFORMERS, build_image_encoder, build_text_encoder, fetch_weights
from retailkit.models.matching import build_detector

TORCHVISION = ["resnet18", "resnet50", "efficientnet_b0", "shufflenet_v2_x1_0"]
LITES = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
SMALL = [name for name in BACKBONES if name != "resnext101_32x8d"]  # 89 M parameters: looked at without values
WORDS = ["milk", "oat", "lean", "extra", "##y", "ground", "beef"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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


def normalise(images: torch.Tensor, spec: encoders.Backbone) -> torch.Tensor:
    return torchvision.transforms.functional.normalize(images, spec.mean, spec.std)


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
    assert list(BACKBONES["resnext101_32x8d"].weights) == ["V1", "V2", "WSL", "SWSL"]


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


@pytest.mark.parametrize("name", TORCHVISION)
@torch.no_grad()
def test_torchvision_file_gives_torchvision_features(name, images, tmp_path):
    official = lively(torchvision.models.get_model(name, weights=None))
    torch.save(official.state_dict(), tmp_path / "official.pth")
    encoder = build_image_encoder(name, tmp_path / "official.pth").eval()
    classifier = getattr(official, "classifier", None) or official.fc
    seen = []
    classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    official(normalise(images, BACKBONES[name]))
    assert torch.allclose(encoder(images), seen[0], rtol=1e-4, atol=1e-5 * seen[0].abs().max().item())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite1"])
@torch.no_grad()
def test_timm_file_gives_timm_features(name, suffix, images, tmp_path):
    official = lively(timm.create_model(BACKBONES[name].network))
    path = tmp_path / f"official{suffix}"
    state = official.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    encoder = build_image_encoder(name, path).eval()
    expected = official.forward_features(normalise(images, BACKBONES[name]))
    assert torch.allclose(encoder.forward_map(images), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_file_of_a_data_parallel_model_loads(images, tmp_path):
    official = lively(torchvision.models.resnet18(weights=None))
    torch.save({"module." + k: v for k, v in official.state_dict().items()}, tmp_path / "w.pth")
    encoder = build_image_encoder("resnet18", tmp_path / "w.pth")
    assert torch.equal(encoder.network.layer4[1].conv2.weight, official.layer4[1].conv2.weight)


def write(path: Path, content: object) -> Path:
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read as weights"),
        (b"PK\x03\x04 cut off", "cannot be read as weights"),
        ([1, 2], "not a state dict"),
        ({"a": torch.zeros(2)}, "weights of another network"),
        (torchvision.models.resnet34, "tensors too many"),
        (torchvision.models.resnet50, "weights of another network"),
    ],
)
def test_wrong_files_end_in_one_line_that_names_them(content, says, tmp_path):
    content = content(weights=None).state_dict() if callable(content) else content
    path = write(tmp_path / "mine.pth", content)
    with pytest.raises(UserError, match=says) as caught:
        build_image_encoder("resnet18", path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_safetensors_and_foreign_names_are_refused(tmp_path):
    path = write(tmp_path / "mine.safetensors", b"not really")
    with pytest.raises(UserError, match="cannot be read as weights"):
        build_image_encoder("resnet18", path)
    save_file(torchvision.models.efficientnet_b0(weights=None).state_dict(), path)
    with pytest.raises(UserError, match=r"official \.pth file"):  # the order in it is alphabetical: no guessing
        build_image_encoder("efficientnet_b0", path)


# -- Packaged weights


@pytest.mark.parametrize("name", LITES)
@torch.no_grad()
def test_packaged_lite_weights_sit_in_timm_network(name):
    published = BACKBONES[name].weights["V1"]
    path = encoders._packaged(published.package)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == published.sha256
    state = torch.load(path, weights_only=True)
    encoder = build_image_encoder(name).network
    same_layer = {  # timm's name: the package's name
        "conv_stem.weight": "_conv_stem.weight",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight",
        "conv_head.weight": "_conv_head.weight",
        "bn2.running_var": "_bn1.running_var",
    }
    for ours, theirs in same_layer.items():
        assert torch.equal(encoder.state_dict()[ours], state[theirs]), ours


@torch.no_grad()
def test_lite0_recognises_a_cat():
    """The packaged classifier on top of our features: only right weights and normalisation name the photo."""
    skimage_data = pytest.importorskip("skimage.data")
    cat = torch.from_numpy(skimage_data.chelsea()).permute(2, 0, 1)[None].float() / 255
    image = torchvision.transforms.functional.center_crop(
        torchvision.transforms.functional.resize(cat, 256, antialias=True), 224
    )
    encoder = build_image_encoder("efficientnet_lite0").eval()
    state = torch.load(encoders._packaged(BACKBONES["efficientnet_lite0"].weights["V1"].package), weights_only=True)
    probs = (encoder(image) @ state["_fc.weight"].T + state["_fc.bias"]).softmax(1)[0]
    cats = [281, 282, 283, 284, 285]  # tabby, tiger cat, Persian, Siamese, Egyptian
    assert probs[cats].sum() > 0.5
    assert (encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()) == ([0.5] * 3, [0.5] * 3)


def test_damaged_package_is_noticed(monkeypatch):
    spec = BACKBONES["efficientnet_lite0"]
    wrong = replace(spec, weights={"V1": replace(spec.weights["V1"], sha256="0" * 64)})
    monkeypatch.setitem(BACKBONES, "efficientnet_lite0", wrong)
    with pytest.raises(UserError, match="damaged file; reinstall"):
        build_image_encoder("efficientnet_lite0")


# -- Names, missing weights, licences


def test_unknown_names_give_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'resnet50'"):
        build_image_encoder("resnet5O")
    with pytest.raises(UsageError, match=r"weights of resnet50 'v2'.*known: V1, V2, auto"):
        build_image_encoder("resnet50", "v2")
    with pytest.raises(UsageError, match="did you mean 'distilbert'"):
        build_text_encoder("distillbert")
    with pytest.raises(UsageError, match="did you mean 'resnet18'"):
        fetch_weights("resnet_18")


@pytest.mark.parametrize(("weights", "command"), [("auto", "resnext101_32x8d.V1"), ("V2", "resnext101_32x8d.V2")])
def test_missing_weights_name_the_command(weights, command):
    with pytest.raises(UserError, match=rf"33\d\.\d MB, BSD-3-Clause\); run: retailkit fetch weights {command}$"):
        build_image_encoder("resnext101_32x8d", weights)


def test_missing_package_names_both_cures(monkeypatch):
    monkeypatch.setattr(encoders, "_packaged", lambda place: None)
    cure = r"run: retailkit fetch weights {} \(or install retailkit\[offline\]\)"
    with pytest.raises(UserError, match=cure.format("efficientnet_lite2.V1")):
        build_image_encoder("efficientnet_lite2")
    with pytest.raises(UserError, match=cure.format("minilm")):
        build_text_encoder("minilm")


def test_missing_local_paths_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pth: no such weights file"):
        build_image_encoder("resnet18", tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match=r"nowhere: no config\.json"):
        build_text_encoder("distilbert", tmp_path / "nowhere")


@pytest.mark.parametrize("variant", ["WSL", "SWSL"])
def test_non_commercial_licence_is_shown(variant):
    with (
        pytest.warns(UserWarning, match=f"resnext101_32x8d {variant}: CC-BY-NC-4.0, for non-commercial use only"),
        pytest.raises(UserError, match=r"340 MB, CC-BY-NC-4\.0"),
    ):
        build_image_encoder("resnext101_32x8d", variant)


def test_free_licences_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build_image_encoder("efficientnet_lite0")


# -- Fetching, against a server on loopback


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(tmp_path):
    """A folder and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


def serve_resnet18(monkeypatch, folder: Path, address: str, licence: str, honest: bool = True) -> dict:
    official = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(official, folder / "draft")
    digits = hashlib.sha256((folder / "draft").read_bytes()).hexdigest()[:8] if honest else "00000000"
    (folder / "draft").rename(folder / f"resnet18-{digits}.pth")
    weights = {"V9": encoders.Weights(f"{address}resnet18-{digits}.pth", 44.7, licence)}
    monkeypatch.setitem(BACKBONES, "resnet18", replace(BACKBONES["resnet18"], weights=weights))
    return official


@pytest.mark.parametrize("name", ["resnet18", "resnet18.V9"])
def test_fetched_weights_are_what_build_takes(name, server, monkeypatch, cache, capsys):
    official = serve_resnet18(monkeypatch, *server, licence=encoders.NON_COMMERCIAL)
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r"fetch weights resnet18\.V9"):
        build_image_encoder("resnet18")
    path = fetch_weights(name)
    assert path.is_relative_to(cache)
    assert "44.7 MB, licence CC-BY-NC-4.0 (non-commercial use only)" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="non-commercial"):
        encoder = build_image_encoder("resnet18")
    assert torch.equal(encoder.network.conv1.weight, official["conv1.weight"])


def test_wrong_checksum_is_not_kept(server, monkeypatch, cache):
    serve_resnet18(monkeypatch, *server, licence="BSD-3-Clause", honest=False)
    with pytest.raises(UserError, match="00000000"):
        fetch_weights("resnet18")
    assert not list((cache / "weights").glob("*.pth"))


def test_failed_download_is_one_clear_line(server, monkeypatch):
    weights = {"V1": encoders.Weights(server[1] + "gone-01234567.pth", 1)}
    monkeypatch.setitem(BACKBONES, "resnet18", replace(BACKBONES["resnet18"], weights=weights))
    with pytest.raises(UserError) as caught:
        fetch_weights("resnet18")
    assert "gone-01234567.pth" in str(caught.value) and "\n" not in str(caught.value)


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
        ids = [2, *[{w: i for i, w in enumerate(WORDS, 5)}[t] for t in split(text)], 3]
        expected = theirs(input_ids=torch.tensor([ids])).last_hidden_state[0, 0]
        assert torch.allclose(vector, expected, atol=1e-5)


def split(text: str) -> list[str]:
    return text.lower().replace("beefy", "beef ##y").split()


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


def test_transformer_state_survives_safetensors_and_averaging(tiny_distilbert, tmp_path):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    encoder = build_text_encoder("distilbert", tiny_distilbert)
    save_file(encoder.state_dict(), tmp_path / "state.safetensors")
    average = AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        average.update_parameters(encoder)
    assert average.module.vocabulary == encoder.vocabulary


def test_distilbert_config_of_the_hub():
    with torch.device("meta"):
        encoder = build_text_encoder("distilbert", None)
    assert encoder.dim == 768
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(66.4e6, rel=0.01)


def test_broken_transformer_folder_is_named(tiny_distilbert):
    (tiny_distilbert / "model.safetensors").unlink()
    with pytest.raises(UserError, match="tiny: cannot be read as a transformer") as caught:
        build_text_encoder("distilbert", tiny_distilbert)
    assert "\n" not in str(caught.value)


def test_fetched_distilbert_loads(server, tiny_distilbert, monkeypatch, capsys):
    folder, address = server
    for file in encoders.TRANSFORMER_FILES:
        (folder / file).write_bytes((tiny_distilbert / file).read_bytes())
    monkeypatch.setitem(TRANSFORMERS, "distilbert", replace(TRANSFORMERS["distilbert"], url=address))
    with pytest.raises(UserError, match=r"run: retailkit fetch weights distilbert$"):
        build_text_encoder("distilbert")
    fetch_weights("distilbert")
    assert "licence Apache-2.0" in capsys.readouterr().out
    assert build_text_encoder("distilbert").dim == 32


def test_fetched_superpoint_tells_its_licence_and_warns(server, tmp_path, monkeypatch, capsys):
    from transformers import SuperPointConfig, SuperPointForKeypointDetection

    folder, address = server
    SuperPointForKeypointDetection(SuperPointConfig()).save_pretrained(folder)
    published = encoders.KEYPOINT_NETWORKS["superpoint"]
    monkeypatch.setitem(encoders.KEYPOINT_NETWORKS, "superpoint", replace(published, url=address))
    fetch_weights("superpoint")
    assert "Magic Leap, academic or non-profit, non-commercial" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="superpoint: Magic Leap.*non-commercial use only"):
        build_detector("superpoint")


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


def test_char_ngrams_travel_in_the_state_dict():
    encoder = build_text_encoder("char_ngrams")
    before = encoder(["oat milk"])
    encoder.prepare(["oat milk", "oat drink", "beef"])
    assert not torch.allclose(encoder(["oat milk"]), before)
    again = build_text_encoder("char_ngrams", None)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(["oat milk", ""]), encoder(["oat milk", ""]))


def test_char_ngrams_forgive_a_misread_letter():
    encoder = build_text_encoder("char_ngrams")
    right, misread, other = encoder(["STRIPLOIN GRILLING STEAK", "STRIPLOIN GRRLING STRAK", "OAT MILK"])
    assert right @ misread > 5 * (right @ other).clamp(min=1)

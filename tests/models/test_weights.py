"""Published weights: where they are, how they are fetched and read, and what is said when they are not right."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import threading
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from retailkit.config import UsageError, UserError
from retailkit.models import weights as published
from retailkit.models.encoders import build_image_encoder, build_text_encoder
from retailkit.models.matching import build_detector
from retailkit.models.weights import BACKBONES, HUB_FOLDERS, fetch_weights, find_weights

pytestmark = pytest.mark.usefixtures("own_cache")

# -- Reading


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("mine.pth", b"PK\x03\x04 cut off", "cannot be read as weights"),
        ("mine.safetensors", b"not really", "cannot be read as weights"),
        ("mine.pth", [1, 2], "not a state dict"),
        ("mine.pth", {"a": torch.zeros(2)}, "weights of another network"),
        ("mine.pth", torchvision.models.resnet34, "tensors too many"),
        ("mine.pth", torchvision.models.resnet50, "weights of another network"),
    ],
)
def test_wrong_files_end_in_one_line_that_names_them(name, content, says, tmp_path):
    content, path = content(weights=None).state_dict() if callable(content) else content, tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=says) as caught:
        build_image_encoder("resnet18", path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_foreign_names_in_safetensors_are_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(torchvision.models.efficientnet_b0(weights=None).state_dict(), path)
    with pytest.raises(UserError, match=r"official \.pth file"):  # the order in it is alphabetical: no guessing
        build_image_encoder("efficientnet_b0", path)


# -- Packaged weights


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
@torch.no_grad()
def test_packaged_lite_weights_sit_in_timm_network(name):
    known = BACKBONES[name]["V1"]
    path = find_weights(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == known.sha256
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


def test_damaged_package_is_noticed(monkeypatch):
    wrong = dataclasses.replace(BACKBONES["efficientnet_lite0"]["V1"], sha256="0" * 64)
    monkeypatch.setitem(BACKBONES, "efficientnet_lite0", {"V1": wrong})
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


@pytest.mark.parametrize(
    ("name", "weights", "command"),
    [
        ("resnext101_32x8d", "auto", "resnext101_32x8d.V1"),
        ("resnext101_32x8d", "V2", "resnext101_32x8d.V2"),
        ("timm:convnext_atto", "auto", "timm:convnext_atto"),
    ],
)
def test_missing_weights_name_the_command(name, weights, command):
    with pytest.raises(UserError, match=rf"are not .*; run: retailkit fetch weights {command}$"):
        find_weights(name, weights)


def test_missing_package_names_both_cures(monkeypatch):
    monkeypatch.setattr(published, "_packaged", lambda place: None)
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
        pytest.warns(UserWarning, match=rf"resnext101_32x8d\.{variant}: cc-by-nc-4\.0 \(non-commercial use only\)"),
        pytest.raises(UserError, match=r"cc-by-nc-4\.0"),
    ):
        find_weights("resnext101_32x8d", variant)


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


def publish(monkeypatch, url: str, licence: str = "bsd-3-clause") -> None:
    described = published.describe("resnet18.tv_in1k")
    changed = dataclasses.replace(described, url=url, license=licence)
    monkeypatch.setattr(published, "describe", lambda network: changed)


@pytest.mark.parametrize("name", ["resnet18", "resnet18.V1"])
def test_fetched_weights_are_what_build_takes(name, server, monkeypatch, tmp_path, capsys):
    folder, address = server
    official = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(official, folder / "draft")
    digits = hashlib.sha256((folder / "draft").read_bytes()).hexdigest()[:8]
    (folder / "draft").rename(folder / f"resnet18-{digits}.pth")
    publish(monkeypatch, f"{address}resnet18-{digits}.pth", "cc-by-nc-4.0")
    path = fetch_weights(name)
    assert path.is_relative_to(tmp_path / "cache") and fetch_weights(name) == path
    assert "resnet18.V1: licence cc-by-nc-4.0 (non-commercial use only)" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="non-commercial"):
        found = find_weights("resnet18")
    assert torch.equal(published.read_state(found)["conv1.weight"], official["conv1.weight"])
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="damaged file; delete it"):
        find_weights("resnet18")


@pytest.mark.parametrize(("file", "says"), [("wrong-00000000.pth", "00000000"), ("gone-01234567.pth", "404")])
def test_a_failed_download_is_one_clear_line_and_leaves_nothing(file, says, server, monkeypatch, tmp_path):
    (server[0] / "wrong-00000000.pth").write_bytes(b"something else")
    publish(monkeypatch, server[1] + file)
    with pytest.raises(UserError, match=says) as caught:
        fetch_weights("resnet18")
    assert file in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "weights").iterdir())


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder that stands in for the hub, one folder per repository."""

    def download(repo, file, local_dir):
        if not (tmp_path / "hub" / repo / file).is_file():
            raise huggingface_hub.errors.OfflineModeIsEnabled("cannot reach the hub\nmore")
        (Path(local_dir) / file).write_bytes((tmp_path / "hub" / repo / file).read_bytes())
        return str(Path(local_dir) / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path / "hub"


def test_fetched_superpoint_tells_its_licence_and_warns(hub, capsys):
    from transformers import SuperPointConfig, SuperPointForKeypointDetection

    SuperPointForKeypointDetection(SuperPointConfig()).save_pretrained(hub / HUB_FOLDERS["superpoint"].repo)
    fetch_weights("superpoint")
    assert "Magic Leap, academic or non-profit, non-commercial" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="superpoint: Magic Leap.*non-commercial use only"):
        build_detector("superpoint")


def test_timm_weights_come_from_the_hub(hub, tmp_path):
    network = build_image_encoder("timm:convnext_atto", weights=None).network
    repo = hub / published.describe("convnext_atto").hf_hub_id
    repo.mkdir(parents=True)
    save_file(network.state_dict(), repo / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        described = dataclasses.replace(published.describe("convnext_atto"), url="")
        patch.setattr(published, "describe", lambda name: described)
        assert fetch_weights("timm:convnext_atto").is_relative_to(tmp_path / "cache" / "weights")
        again = published.read_state(find_weights("timm:convnext_atto"))
    assert torch.equal(again["stem.0.weight"], network.state_dict()["stem.0.weight"])


def test_timm_takes_the_hub_before_an_address_whose_format_may_be_another(hub, tmp_path, capsys):
    """The address of ViT-Tiny is a .npz file, which cannot be read here."""
    described = published.describe("vit_tiny_patch16_224")
    assert described.url.endswith(".npz")
    (hub / described.hf_hub_id).mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, hub / described.hf_hub_id / "model.safetensors")
    path = fetch_weights("timm:vit_tiny_patch16_224")
    assert path == find_weights("timm:vit_tiny_patch16_224") and path.suffix == ".safetensors"
    assert "licence apache-2.0" in capsys.readouterr().out


def test_weights_in_the_cache_of_the_hub_are_found(tmp_path, monkeypatch):
    file = tmp_path / "theirs.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    asked = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: asked.append(args) or str(file))
    assert find_weights("timm:convnext_tiny.dinov3_lvd1689m") == file
    assert asked[0] == ("timm/convnext_tiny.dinov3_lvd1689m", "model.safetensors")
    with pytest.warns(UserWarning, match=r"apple-amlr \(non-commercial use only\)"):
        assert find_weights("timm:fastvit_mci0.apple_mclip2_dfndr2b") == file


def test_a_hub_out_of_reach_is_one_line(hub):
    with pytest.raises(UserError, match=r"distilbert-base-uncased/config.json: cannot be downloaded \(cannot reach"):
        fetch_weights("distilbert")
    with pytest.raises(UserError, match=r"run: retailkit fetch weights distilbert$"):
        build_text_encoder("distilbert")

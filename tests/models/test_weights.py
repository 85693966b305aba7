"""Published weights: where they are, how they are fetched and read, and what is said when they are not right."""

import dataclasses
import hashlib
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

# -- Wrong files and names, missing weights, licences


@pytest.mark.parametrize(
    ("backbone", "name", "content", "says"),
    [
        ("resnet18", "mine.pth", b"PK\x03\x04 cut off", "cannot be read as weights"),
        ("resnet18", "mine.safetensors", b"not really", "cannot be read as weights"),
        ("resnet18", "mine.pth", [1, 2], "not a state dict"),
        ("resnet18", "mine.pth", {"a": torch.zeros(2)}, "weights of another network"),
        ("resnet18", "mine.pth", torchvision.models.resnet34, "tensors too many"),
        ("resnet18", "mine.pth", torchvision.models.resnet50, "weights of another network"),
        # The order in safetensors is alphabetical: no guessing.
        ("efficientnet_b0", "mine.safetensors", torchvision.models.efficientnet_b0, r"official \.pth file"),
    ],
)
def test_wrong_files_end_in_one_line_that_names_them(backbone, name, content, says, tmp_path):
    content, path = content(weights=None).state_dict() if callable(content) else content, tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    with pytest.raises(UserError, match=says) as caught:
        build_image_encoder(backbone, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


CURE = r"run: retailkit fetch weights {} \(or install retailkit\[offline\]\)$"


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: build_image_encoder("resnet5O"), UsageError, "did you mean 'resnet50'"),
        (lambda: build_image_encoder("resnet50", "v2"), UsageError, "weights of resnet50 'v2'.*known: V1, V2, auto"),
        (lambda: build_text_encoder("distillbert"), UsageError, "did you mean 'distilbert'"),
        (lambda: fetch_weights("resnet_18"), UsageError, "did you mean 'resnet18'"),
        (lambda: fetch_weights("minilm.V1"), UsageError, "unknown weights of minilm 'V1'"),
        (lambda: find_weights("resnext101_32x8d"), UserError, "run: retailkit fetch weights resnext101_32x8d.V1$"),
        (lambda: find_weights("resnext101_32x8d", "V2"), UserError, "fetch weights resnext101_32x8d.V2$"),
        (
            lambda: find_weights("timm:convnext_atto"),
            UserError,
            "run: .* fetch weights timm:convnext_atto$",
        ),
        (lambda: build_image_encoder("efficientnet_lite2"), UserError, CURE.format(r"efficientnet_lite2\.V1")),
        (lambda: build_text_encoder("minilm"), UserError, CURE.format("minilm")),
        (lambda: build_image_encoder("resnet18", "nowhere.pth"), UserError, r"nowhere\.pth: no such weights file"),
        (lambda: build_text_encoder("distilbert", "nowhere"), UserError, r"nowhere: no config\.json"),
    ],
)
def test_unknown_names_and_missing_weights_name_the_cure(call, error, says, monkeypatch):
    monkeypatch.setattr(published, "_packaged", lambda place: None)
    with pytest.raises(error, match=says):
        call()


def test_non_commercial_licence_is_shown():
    says = r"resnext101_32x8d\.WSL: cc-by-nc-4\.0 \(non-commercial use only\)"
    with pytest.warns(UserWarning, match=says), pytest.raises(UserError, match=r"cc-by-nc-4\.0"):
        find_weights("resnext101_32x8d", "WSL")


def test_damaged_package_is_noticed(monkeypatch):
    wrong = dataclasses.replace(BACKBONES["efficientnet_lite0"]["V1"], sha256="0" * 64)
    monkeypatch.setitem(BACKBONES, "efficientnet_lite0", {"V1": wrong})
    with pytest.raises(UserError, match="damaged file; reinstall"):
        build_image_encoder("efficientnet_lite0")


# -- Fetching, with folders in the place of the hub and of other servers


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Return a function that puts a file, unless it is empty, at an address that the library gives for resnet18."""
    described, path = published.describe("resnet18.tv_in1k"), tmp_path / "served"
    path.mkdir()

    def serve(name, content, licence="bsd-3-clause"):
        if content:
            (path / name).write_bytes(content)
        changed = dataclasses.replace(described, url=(path / name).as_uri(), license=licence)
        monkeypatch.setattr(published, "describe", lambda network: changed)

    return serve


def test_fetched_weights_are_what_build_takes(publish, tmp_path, capsys):
    official = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(official, tmp_path / "draft")
    content = (tmp_path / "draft").read_bytes()
    publish(f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth", content, "cc-by-nc-4.0")
    path = fetch_weights("resnet18")
    assert path.is_relative_to(tmp_path / "cache") and fetch_weights("resnet18.V1") == path
    assert "resnet18.V1: licence cc-by-nc-4.0 (non-commercial use only)" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="non-commercial"):
        found = find_weights("resnet18")
    assert torch.equal(published.read_state(found)["conv1.weight"], official["conv1.weight"])
    path.write_bytes(content[:-1] + b"x")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="damaged file; delete it"):
        find_weights("resnet18")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [("wrong-00000000.pth", b"other", "00000000"), ("gone-01234567.pth", b"", "No such")],
)
def test_a_failed_download_is_one_clear_line_and_leaves_nothing(file, content, says, publish, tmp_path):
    publish(file, content)
    with pytest.raises(UserError, match=says) as caught:
        fetch_weights("resnet18")
    assert file in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "weights").iterdir())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands in for the hub, one folder per repository."""

    def download(repo, file, local_dir):
        if not (tmp_path / "hub" / repo / file).is_file():
            raise huggingface_hub.errors.OfflineModeIsEnabled("cannot reach the hub\nmore")
        (Path(local_dir) / file).write_bytes((tmp_path / "hub" / repo / file).read_bytes())

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path / "hub"


def test_fetched_superpoint_tells_its_licence_and_warns(hub, capsys):
    from transformers import SuperPointConfig, SuperPointForKeypointDetection

    SuperPointForKeypointDetection(SuperPointConfig()).save_pretrained(hub / HUB_FOLDERS["superpoint"].repo)
    fetch_weights("superpoint")
    assert "Magic Leap, academic or non-profit, non-commercial" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="superpoint: Magic Leap.*non-commercial use only"):
        build_detector("superpoint")


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_timm_weights_come_from_the_hub(name, hub, tmp_path, capsys):
    """The other address of ViT-Tiny is a .npz file, which cannot be read here."""
    described = published.describe(name)
    assert name == "convnext_atto" or described.url.endswith(".npz")
    (hub / described.hf_hub_id).mkdir(parents=True)
    save_file({"a": torch.ones(1)}, hub / described.hf_hub_id / "model.safetensors")
    path = fetch_weights(f"timm:{name}")
    assert path.is_relative_to(tmp_path / "cache" / "weights") and path == find_weights(f"timm:{name}")
    assert torch.equal(published.read_state(path)["a"], torch.ones(1))
    assert "licence apache-2.0" in capsys.readouterr().out


def test_weights_in_the_cache_of_the_hub_are_found(tmp_path, monkeypatch):
    file, asked = tmp_path / "theirs.safetensors", []
    save_file({"a": torch.zeros(1)}, file)
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

"""An ensemble against its members, one by one."""

import pandas as pd
import pytest
import torch
from torch.nn import functional

from retailkit import models, training
from retailkit.config import UsageError, UserError
from retailkit.models import Features
from retailkit.models.ensemble import Ensemble
from retailkit.training import History

CLASSES = ["lean", "extra lean", "medium"]


def network(seed, size=48, classes=CLASSES):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.build("image", classes, backbone="timm:test_resnet", weights=None).eval()
        torch.nn.init.normal_(model.head.linear.weight)
    model.input_size = size
    return model


@pytest.fixture
def ensemble():
    """Two networks and a matcher of images with 48, 64 and 64 pixels; the second also sees mirror images."""
    match, generator = models.build("matching", CLASSES), torch.Generator().manual_seed(0)
    gallery = functional.normalize(torch.rand(3, 9, 128, generator=generator), dim=2)
    match._fill(torch.rand(3, 9, 2, generator=generator) * 48, gallery, torch.full((3,), 9), torch.arange(3))
    match.input_size = 64
    made = Ensemble([network(0), network(1, 64), match], [False, True, False]).eval()
    made.weights.copy_(torch.tensor([1.0, 0.5, 2.0]))
    return made


def test_log_probabilities_are_added_with_weights_and_a_checkpoint_holds_all(ensemble, tmp_path):
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, flipped, match = ensemble.members
    smaller = functional.interpolate(images, size=48, mode="bilinear", antialias=True, align_corners=False)
    history = History(pd.DataFrame({"epoch": [1], "loss": [1.0]}), 1, 1.0)
    path = training.save_checkpoint(ensemble, tmp_path / "c.safetensors", history, size=64, fit="crop")
    loaded, _, _ = training.load_checkpoint(path)
    with torch.inference_mode():
        one, three = plain(smaller).log_softmax(1), match(images).log_softmax(1)
        two = (flipped(images).log_softmax(1) + flipped(images.flip(-1)).log_softmax(1)) / 2
        assert torch.allclose(ensemble(images), one + 0.5 * two + 2 * three, atol=1e-5)
        assert torch.allclose(ensemble(images[2:3]), ensemble(images)[2:3], atol=1e-4)
        assert torch.allclose(loaded(images), ensemble(images), atol=1e-6)
    assert loaded.weights.tolist() == [1.0, 0.5, 2.0] and [m.input_size for m in loaded.members] == [48, 64, 64]
    assert (loaded.input_size, loaded.classes) == (ensemble.input_size, ensemble.classes) == (64, CLASSES)


def test_a_member_that_knows_nothing_gets_little_weight():
    generator, labels = torch.Generator().manual_seed(0), torch.arange(3).repeat(60)
    good = functional.one_hot(labels, 3) * 2.0 + torch.randn(180, 3, generator=generator)
    wild = 5 * torch.randn(180, 3, generator=generator)
    ensemble = Ensemble([network(0), network(1)], [False, False])
    seen = Features.present(torch.cat([good.log_softmax(1), wild.log_softmax(1)], 1))
    before = ensemble.classify(seen).argmax(1).eq(labels).float().mean()
    ensemble.tune(seen, labels)
    logits = ensemble.classify(seen)
    assert ensemble.weights[1] <= ensemble.weights[0] / 4
    assert logits.argmax(1).eq(labels).float().mean() > before + 0.1
    loss = [float(functional.cross_entropy(logits * scale, labels)) for scale in (0.98, 1.0, 1.02)]
    assert loss[1] == min(loss), "the weights hold the temperature"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        (lambda: [], "needs one flip per member"),
        (lambda: [network(0), network(0, classes=["a", "b"])], "different classes"),
        (lambda: [models.build("text", CLASSES, text_encoder="char_ngrams")], "reads texts"),
    ],
)
def test_what_does_not_fit_together_is_refused(members, says):
    with pytest.raises(UsageError, match=says):
        Ensemble(made := members(), [False] * len(made))
    with pytest.raises(UserError, match="got none"):
        Ensemble([network(0)], [False]).classify(None)

"""Explaining image and words jointly, against the plain loop.

The loop encodes one masked image and one reduced text for each of 1,000 samples and fits least squares with LIME's
kernel to the probability of the class. Ours encodes each distinct mask and text once and pairs them. The full run also
compares how stable both are between seeds (Spearman correlation of all weights). The predictor is made once, outside
of the times. Images are rendered, words are read by the engine.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression

from retailkit import data, models, training
from retailkit.data import ocr
from retailkit.explain import lime, masking
from retailkit.inference import Predictor

BUDGET, SAMPLES, AT_ONCE, SIZE = 512, 1000, 10, 224
WORDS = range(10, 31)  # on the photo
OURS = {"target": "log_prob", "feather": 0.0, "smooth": 0.3, "progress": False}


@torch.inference_mode()
def loop(model, sample, segments, seed=0):
    """Weights (S+T,) of superpixels and words."""
    tokens = [token.text for token in masking.tokens_of(sample.words)]
    count = segments.max() + 1
    kept = np.random.default_rng(seed).random((SAMPLES, count + len(tokens))) < 0.5
    kept[0] = True
    baseline, probs = masking.baseline_image(sample.image, segments, "mean"), []
    for some in np.split(kept, SAMPLES // AT_ONCE):
        shown = torch.from_numpy(some[:, :count][:, segments])[:, None]
        texts = [" ".join(itertools.compress(tokens, row)) for row in some[:, count:]]
        probs.append(model(torch.where(shown, sample.image, baseline), texts).softmax(-1)[:, sample.label])
    distance = 1 - np.sqrt(kept.mean(1))
    weights = np.exp(-((distance / 0.25) ** 2) / 2)
    return LinearRegression().fit(kept, torch.cat(probs).numpy(), weights).coef_


def alike(one, other):
    return float(spearmanr(one, other).statistic)


def stability(explain, seeds=3):
    return float(np.mean(list(itertools.starmap(alike, itertools.combinations(map(explain, range(seeds)), 2)))))


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("all_cores")
def test_joint(tmp_path, compare, quick):
    shop = ocr.add_text(data.load("synthetic", tmp_path, per_class=(4, 0, 2), families=2), progress=False)
    torch.manual_seed(0)
    model = models.build("concat", shop.classes, "efficientnet_lite0")
    training.fit(model, shop.split("train", SIZE), config=training.TrainConfig(epochs=30))
    predictor, test = Predictor(model, SIZE), shop.split("test", SIZE)
    sample = next(
        sample
        for sample in map(test.__getitem__, range(len(test)))
        if predictor(sample.image[None], [sample.text]).argmax() == sample.label
        and len(masking.tokens_of(sample.words)) in WORDS
    )
    segments = masking.segment(sample.image)

    def ours(seed=0):
        options = {"segments": segments, "classes": (sample.label,), "budget": BUDGET, "seed": seed}
        found = lime.explain(predictor, sample.image, sample.words, **options, **OURS)
        return np.concatenate([found.image_weights[0], found.text_weights[0]])

    if not quick:
        assert stability(ours) >= stability(lambda seed: loop(model, sample, segments, seed))
    parts = f"{segments.max() + 1} superpixels, {len(masking.tokens_of(sample.words))} words"
    ratio = compare(
        "joint",
        f"{BUDGET} masks, {parts}, concat of lite0 and {model.text_encoder.name}",
        f"eager float32, {SAMPLES} images and texts, batches of {AT_ONCE}; agreement: 1 - Spearman correlation",
        lambda: loop(model, sample, segments),
        ours,
        lambda a, b: 1 - alike(a, b),
        repeat=1 if quick else 3,
        tolerance=0.5,  # other masks, and fewer
    )
    assert ratio >= 3

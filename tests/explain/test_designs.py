"""Which masks are evaluated: the error of weights on a game whose answer is known, beside the design of shap."""

import itertools
from math import comb

import numpy as np

from retailkit.explain.masking import masks, paired
from retailkit.explain.surrogate import KERNELS

SEGMENTS, WORDS, BUDGET, SEEDS = 13, 5, 256, 6
FEATURES = SEGMENTS + WORDS


def game(seed):
    """Each feature alone, each pair, and some triples."""
    rng = np.random.default_rng(seed)
    alone, pairs = rng.normal(size=FEATURES), np.triu(rng.normal(size=(FEATURES, FEATURES)), 1)
    triples, strengths = [rng.choice(FEATURES, 3, replace=False) for _ in range(20)], rng.normal(size=20) / 4

    def values(kept):
        kept = kept.astype(float)
        together = sum(s * kept[:, t].prod(1) for s, t in zip(strengths, triples, strict=True))
        return kept @ alone + ((kept @ pairs) * kept).sum(1) / 3 + together

    return values


def fitted(kept, values, weights):
    design = np.pad(kept.astype(float), ((0, 0), (1, 0)), constant_values=1.0)
    weighted = design * weights[:, None]
    return np.linalg.lstsq(weighted.T @ design, weighted.T @ values, rcond=1e-12)[0][1:]


def shap_itself(count, seed):
    """Masks and weights by the plan of `shap.KernelExplainer`: whole sizes first, then pairs drawn by mass."""
    rng, sizes = np.random.default_rng(seed), np.arange(1, FEATURES // 2 + 1)
    both = sizes < FEATURES / 2  # sizes that have complements of another size
    mass = (FEATURES - 1) / (sizes * (FEATURES - sizes)) * (1 + both)
    mass /= mass.sum()
    rows, weights, full = [], [], 0
    while (count - len(rows)) * mass[full] / mass[full:].sum() >= comb(FEATURES, int(sizes[full])) * (1 + both[full]):
        for group in itertools.combinations(range(FEATURES), int(sizes[full])):
            kept = np.isin(np.arange(FEATURES), group)
            rows += [kept, ~kept]
            weights += [mass[full] / comb(FEATURES, int(sizes[full])) / 2] * 2
        full += 1
    drawn = {}
    while len(rows) + len(drawn) < count:
        size = rng.choice(sizes[full:], p=mass[full:] / mass[full:].sum())
        kept = np.isin(np.arange(FEATURES), rng.choice(FEATURES, size, replace=False))
        for mask in (kept, ~kept):
            drawn[mask.tobytes()] = drawn.get(mask.tobytes(), 0) + 1
    rows += [np.frombuffer(mask, bool) for mask in drawn]
    weights += (np.array(list(drawn.values())) * mass[full:].sum() / sum(drawn.values())).tolist()
    return np.array([*rows, np.ones(FEATURES, bool), np.zeros(FEATURES, bool)]), np.array([*weights, 1e6, 1e6])


def test_kernel_shap_is_as_exact_as_shap_with_as_many_images():
    everything = (np.arange(2**FEATURES)[:, None] >> np.arange(FEATURES)) % 2 == 1
    weigh, ours, theirs = KERNELS["shap"], [], []
    for seed in range(SEEDS):
        values = game(seed)
        right = fitted(everything, values(everything), weigh(everything))
        images, texts = masks(SEGMENTS, BUDGET, seed), masks(WORDS, BUDGET * WORDS // SEGMENTS, seed + 1)
        pairs = paired((0, 0), (len(images), len(texts)), 4, seed)
        kept = np.hstack([images[pairs[:, 0]], texts[pairs[:, 1]]])
        for errors, (masked, weights) in ((ours, (kept, weigh(kept))), (theirs, shap_itself(BUDGET, seed))):
            errors.append(np.linalg.norm(fitted(masked, values(masked), weights) - right) / np.linalg.norm(right))
    assert np.mean(ours) < 1.1 * np.mean(theirs)

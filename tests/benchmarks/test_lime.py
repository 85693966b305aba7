"""Explaining a photo, against lime 0.2.0.1, captum and shapiq on the same photos, model, superpixels and machine.

They draw 1,000 random masks. Ours has to be as good with fewer of them: of `BUDGETS`, the smallest counts that is as
stable (Spearman correlation of weights between seeds) and as faithful (area under the deletion curve of the class's
probability, lower is better), each on average over photos. How good all are, is measured once for every photo and
kept in the cache folder, so that a second run goes on where the first one stopped. Times are taken anew in each run.

shapiq is measured where it is installed (MIT; 235 MB with what it needs). Its imputers fill in rows of tables, so that
its KernelSHAP gets a function of masks here. Photos are real ones, from the validation split of Grocery Store.
"""

import contextlib
import copy
import importlib.util
import inspect
import io
import itertools
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
import pandas as pd
import pytest
import torch
from captum.attr import KernelShap
from lime.lime_image import LimeImageExplainer
from scipy.integrate import trapezoid
from scipy.special import softmax
from scipy.stats import spearmanr

from retailkit import data, inference, metrics, training
from retailkit.cache import code_fingerprint, digest, kept_tensors
from retailkit.config import data_root, has_bfloat16
from retailkit.explain import lime, masking
from retailkit.inference import Predictor

BUDGETS = (128, 192, 256, 320, 384, 512)
SEEDS = 5  # in the quick run 3, of two photos
SEGMENTS = 100
SIZE = 224
FILLINGS = ("mean", "blur")  # what shows where superpixels are deleted
OURS = {"target": "sqrt_prob", "feather": 0.0, "progress": False}
JUDGED = {"stability": 1, "deletion": -1}  # and whether more is better
STEPS = 24  # of a deletion curve
SAMPLES = 1000  # of the peers
AT_ONCE = 10  # images a batch of theirs
AGREEMENT, PILOT = 0.995, 64  # correlation with float32 over so many masks, for bfloat16 to be of use
TARGETS = {"as_used": 7, "same_predictor": 3}  # times as fast
CACHE = os.environ.get("RETAILKIT_CACHE")  # of the user: the session has another one, which goes with it


@pytest.fixture
def kept_cache(monkeypatch):
    """The user's cache: what was measured, the features and the classifier outlive the run."""
    if CACHE is None:
        monkeypatch.delenv("RETAILKIT_CACHE")
    else:
        monkeypatch.setenv("RETAILKIT_CACHE", CACHE)


# -- All ways: weights (S,) of a photo's superpixels. `probs` takes batches (B,H,W,3).


def by_lime(probs, photo, seed=0):
    """Weights by lime's defaults."""
    pixels, label = photo["image"].permute(1, 2, 0).double().numpy(), photo["label"]
    with contextlib.redirect_stderr(io.StringIO()):  # its bar cannot be switched off
        result = LimeImageExplainer(random_state=seed).explain_instance(
            pixels, probs, (label,), top_labels=None, num_samples=SAMPLES, segmentation_fn=lambda _: photo["segments"]
        )
    weights = dict(result.local_exp[label])
    return np.array([weights[part] for part in range(len(weights))])


def by_kernel_shap(probs, photo, seed=0):
    """The same by captum's KernelShap, hidden parts in their mean colour as in lime."""
    torch.manual_seed(seed)
    image, parts = photo["image"], torch.from_numpy(photo["segments"])[None, None]
    shown = masking.baseline_image(image, photo["segments"], "mean")[None]
    counts = {"n_samples": SAMPLES, "perturbations_per_eval": AT_ONCE, "return_input_shape": False}

    def forward(images):
        return torch.from_numpy(probs(images.permute(0, 2, 3, 1).numpy())[:, photo["label"]])

    return KernelShap(forward).attribute(image[None], shown, feature_mask=parts, **counts)[0].numpy()


def by_shapiq(probs, photo, seed=0):
    """The same by shapiq's KernelSHAP, its approximator of Shapley values."""
    from shapiq import KernelSHAP

    shown, segments = masking.baseline_image(photo["image"], photo["segments"], "mean"), photo["segments"]

    def value(kept):  # (N,S) bool
        parts = np.split(kept, range(AT_ONCE, len(kept), AT_ONCE))
        batches = (torch.where(torch.from_numpy(part[:, segments])[:, None], photo["image"], shown) for part in parts)
        return np.concatenate([probs(b.permute(0, 2, 3, 1).numpy())[:, photo["label"]] for b in batches])

    found = KernelSHAP(int(segments.max()) + 1, random_state=seed).approximate(SAMPLES, value)
    return found.get_n_order_values(1)


PEERS = {"lime": (by_lime, "lime"), "kernel_shap": (by_kernel_shap, "captum"), "shapiq": (by_shapiq, "shapiq")}
PEERS = {name: way for name, way in PEERS.items() if importlib.util.find_spec(way[1])}  # with their packages


def by_us(predictor, photo, budget, seed=0):
    options = {"segments": photo["segments"], "classes": (photo["label"],), "budget": budget, "seed": seed}
    return lime.explain(predictor, photo["image"], **options, **OURS)


def as_tensor(batch):
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float()


def as_used(model):
    """The classifier as one writes it for lime: PyTorch, float32, its own layout."""
    encoder, scaler, linear = model.image_encoder, model.head.scalers["image"], model.head.linear
    plain = copy.deepcopy(encoder.network).to(memory_format=torch.contiguous_format)  # training changed the layout

    @torch.inference_mode()
    def probs(batch):
        maps = plain.forward_features((as_tensor(batch) - encoder.mean) / encoder.std)
        return linear((maps.mean((2, 3)) - scaler.mean) / scaler.std).softmax(-1).numpy()

    return probs


def same_predictor(predictor):
    return lambda batch: predictor(as_tensor(batch).clamp(0, 1)).numpy()


# -- How good they are.


def first(explanation, count):
    """What the first masks of a longer run say: the same as a run that ends there."""
    samples = explanation.samples
    parts = (getattr(samples, name)[:count] for name in ("image_masks", "text_masks", "pairs", "logits"))
    return replace(explanation, samples=lime.Samples(*parts)).with_kernel("lime").image_weights[0]


def stability(weights):
    """Mean Spearman correlation between seeds of weights (R,S)."""
    return float(np.mean([spearmanr(one, other).statistic for one, other in itertools.combinations(weights, 2)]))


def deletion(game, weights, label):
    """Area under the probability while superpixels go by decreasing weight, a few at a time."""
    order = np.argsort(-weights, kind="stable")
    gone = np.linspace(0, len(order), STEPS + 1).round().astype(int)
    keep = np.argsort(order) >= gone[:, None]
    return trapezoid(softmax(game.logits(keep), 1)[:, label], np.append(0, game.areas[order].cumsum())[gone])


def measured(who, predictor, photo, seeds):
    """Weights by seed (R,S) of a peer, or of ours for each budget, and the areas under their deletion curves."""
    if who in PEERS:
        found = {who: [PEERS[who][0](same_predictor(predictor), photo, seed) for seed in range(seeds)]}
    else:
        long = [by_us(predictor, photo, BUDGETS[-1], seed) for seed in range(seeds)]
        found = {str(n): [first(one, n) for one in long] for n in BUDGETS}
    hard = masking.MaskedModel(predictor, photo["image"], photo["segments"], feather=0.0)
    games = [hard.with_baseline(filling) for filling in FILLINGS]
    areas = {
        f"deletion_{name}": [deletion(game, row, photo["label"]) for game in games for row in rows]
        for name, rows in found.items()
    }
    return {name: torch.from_numpy(np.array(values)) for name, values in (found | areas).items()}


def row_of(predictor, photo, seeds):
    """One photo's stability and deletion of all, and how they agree with the peers.

    What is known of one photo is kept under all that decides it: model, sources, versions and number of seeds.
    """
    known = {}
    for who, (way, package) in ({"ours": (by_us, "retailkit")} | PEERS).items():
        how = [inspect.getsource(function) for function in (measured, deletion, way)] + [version(package)]
        how += [training.fingerprint(predictor.model), code_fingerprint("retailkit.explain.lime"), photo["name"]]
        key = digest(who, *how, seeds, OURS, BUDGETS, SAMPLES, AT_ONCE, STEPS, SEGMENTS, FILLINGS)
        known |= kept_tensors("bench-lime", key, lambda who=who: measured(who, predictor, photo, seeds))
    weights = {name: rows.numpy() for name, rows in known.items() if not name.startswith("deletion_")}
    row, mean = {"photo": photo["name"], "seeds": seeds}, {name: rows.mean(0) for name, rows in weights.items()}
    for name, rows in weights.items():
        row |= {f"stability_{name}": stability(rows), f"deletion_{name}": known[f"deletion_{name}"].mean().item()}
        row |= {f"agreement_{peer}_{name}": float(spearmanr(mean[peer], mean[name]).statistic) for peer in PEERS}
    return row


def with_means(table):
    """The table with rows `mean`, `low` and `high`: of 95 % of bootstrap samples of photos."""
    numbers = table.set_index("photo")
    span = numbers.apply(lambda column: pd.Series(metrics.bootstrap(column.to_numpy()), ["low", "high"]))
    return pd.concat([numbers, numbers.mean().to_frame("mean").T, span]).rename_axis("photo")


def chosen(predictor, split, count):
    """The first photos, in random order, whose class the model gets right."""
    found = []
    for place in np.random.default_rng(0).permutation(len(split)):
        sample = split[place]
        if predictor(sample.image[None]).argmax() == sample.label:
            name = Path(split.table["image"].iloc[place]).relative_to(data_root("grocery_store")).as_posix()
            segments = masking.segment(sample.image, "slic", SEGMENTS)
            found.append({"name": name, "image": sample.image, "label": sample.label, "segments": segments})
        if len(found) == count:
            return found
    raise AssertionError(f"the model gets only {len(found)} photos right")


def as_good(table, budget, peer):
    """Whether so many masks of ours are as stable and as faithful as the peer, on average over photos."""
    gaps = {what: table[f"{what}_{budget}"] - table[f"{what}_{peer}"] for what in JUDGED}
    for what, gap in gaps.items():
        low, high = metrics.bootstrap(gap.to_numpy())
        print(f"{budget} masks: {what} less that of {peer}: {gap.mean():+.4f} ({low:+.4f} to {high:+.4f})")
    return all(sign * gaps[what].mean() >= 0 for what, sign in JUDGED.items())


@pytest.fixture
def real(kept_cache, quick):
    """A classifier of Grocery Store, its predictor and photos that it gets right."""
    try:
        shop = data.load("grocery_store")
    except data.DataError as error:
        pytest.skip(f"needs real photos: {error}; or set RETAILKIT_DATA to the folder above it")
    model, _ = training.fit_or_load(training.reference("probe", "grocery_store"), shop)
    predictor = Predictor(model, SIZE)  # once for a model, so that it is not in the times
    return model, predictor, chosen(predictor, shop.split("val", SIZE), 2 if quick else 8)


@pytest.mark.benchmark
@pytest.mark.usefixtures("all_cores")
def test_bfloat16(real, compare_cpu, monkeypatch):
    """What bfloat16 would gain: explanations may use it where it agrees with float32 by `AGREEMENT`."""
    model, exact, photos = real
    if not has_bfloat16():
        pytest.skip("this processor is no faster in bfloat16")

    def compiled(graph, threads):
        core = openvino.Core()
        options = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        return core.compile_model(core.read_model(graph, b""), "CPU", options | {"ENABLE_CPU_PINNING": False})

    def answers(predictor):
        """The square roots of the first three classes' probabilities with the same masks, (photos,PILOT,3)."""
        found = []
        for photo in photos:
            game = masking.MaskedModel(predictor, photo["image"], photo["segments"], feather=0.0)
            logits = game.logits(masking.masks(game.n_segments, PILOT))
            top = np.argsort(-logits[0])[:3].tolist()
            found.append(masking.targets(logits, top, [-1] * 3, OURS["target"]))
        return np.stack(found)

    answers(exact)  # compiles
    monkeypatch.setattr(inference, "openvino_network", compiled)
    monkeypatch.setattr(inference, "_NETWORKS", {})
    answers(rough := Predictor(model, SIZE))
    pairs = zip(answers(exact), answers(rough), strict=True)
    agree = np.array([[np.corrcoef(*both)[0, 1] for both in zip(one.T, other.T, strict=True)] for one, other in pairs])
    first, every = ((found >= AGREEMENT).sum() for found in (agree[:, 0], agree.min(1)))
    told = f"float32; agreement: 1 - median correlation for the most probable class, which is at least {AGREEMENT} on "
    told += f"{first} photos, and for each of the first three classes on {every}"
    case = f"bfloat16: {PILOT} masks of each of {len(photos)} photos"
    compare_cpu("lime", case, told, lambda: answers(exact), lambda: answers(rough),
                lambda *_: 1 - np.median(agree[:, 0]), tolerance=0.05)  # fmt: skip


@pytest.mark.benchmark
@pytest.mark.timeout(3 * 3600)
@pytest.mark.usefixtures("all_cores")
def test_lime(real, compare_cpu, quick):
    model, predictor, photos = real
    seeds = 3 if quick else SEEDS
    table = pd.DataFrame([row_of(predictor, photo, seeds) for photo in photos])
    whole = with_means(table)
    print(whole.rename(index=lambda name: Path(name).stem).T.round(4).to_string())
    if path := os.environ.get("RETAILKIT_BENCH_CSV"):
        whole.to_csv(Path(path).with_name(f"{Path(path).stem}_lime_photos.csv"))

    ways = {"as_used": (as_used(model), "float32"), "same_predictor": (same_predictor(predictor), "our predictor")}
    batch = np.stack([photo["image"].permute(1, 2, 0).double().numpy() for photo in photos])
    plain, fast = (probs(batch) for probs, _ in ways.values())
    assert np.abs(plain - fast).max() <= 1e-4, "one stability serves both only where both classifiers agree"

    ratios, good, mean = {}, {}, table.mean(numeric_only=True)
    for peer, (explain, package) in PEERS.items():
        good[peer] = [n for n in BUDGETS if as_good(table, n, peer)]
        budget = (good[peer] or BUDGETS[-1:])[0]
        quality = [f"{what} {mean[f'{what}_{budget}']:.3f} against {mean[f'{what}_{peer}']:.3f}" for what in JUDGED]
        for case, (probs, network) in ways.items():
            theirs, ours = itertools.cycle(photos), itertools.cycle(photos)  # each repetition takes the next photo
            ratios[peer, case] = compare_cpu(
                "lime",
                f"{case}: {budget} masks, {len(photos)} photos, {seeds} seeds: {', '.join(quality)}",
                f"{peer} of {package} {version(package)}, {SAMPLES} samples, {network}, batches of {AT_ONCE}; "
                "agreement: 1 - Spearman correlation of weights averaged over seeds",
                lambda explain=explain, probs=probs, theirs=theirs: explain(probs, next(theirs)),
                lambda budget=budget, ours=ours: by_us(predictor, next(ours), budget),
                lambda a, b, agreement=mean[f"agreement_{peer}_{budget}"]: 1 - agreement,
                tolerance=0.5,  # other masks, and fewer
            )
    assert all(good.values()), f"no number of masks is as stable and as faithful as this one: {good}"
    assert all(ratio >= TARGETS[case] for (_, case), ratio in ratios.items()), f"{ratios}, wanted {TARGETS}"

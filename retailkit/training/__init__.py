"""One loop for every model, and one way to train or load.

    fit             trains a model in place
    fit_once        the same, or loads the very same training from its file
    fit_or_load     builds the model and reads the splits that a `TrainSpec` names, then `fit_once`
    fit_head        gives a model a head of its own that learns from encoded features, or loads it
    cross_validate  one such head per fold; see `folds`
    read_words      reads the words of many photos on several processes or machines; `encode_splits` encodes there
    add_product     adds a product to a gallery model, without training
    reference       the runs that several notebooks share, as `TrainSpec`

`frozen` training encodes every image once (several augmented views if asked), keeps the features on disk and trains
the rest of the model on them: minutes become seconds. `finetune` trains everything.
"""

# ruff: noqa: F401
from retailkit.training.ahead import encode_splits, read_words
from retailkit.training.checkpoints import learned_from, load_checkpoint, photo_hashes, save_checkpoint, with_classes
from retailkit.training.cross_validation import CrossValidation, cross_validate, folds, one_shot, repetition
from retailkit.training.encoded import EncodedDataset, data_fingerprint, encode, fingerprint, seeded
from retailkit.training.gallery import add_product, require_gallery
from retailkit.training.loop import RATES, History, TrainConfig, TrainingError, evaluate, fit
from retailkit.training.processes import main_first
from retailkit.training.runs import TrainSpec, fit_head, fit_once, fit_or_load, reference, resample

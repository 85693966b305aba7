"""Several processes that train one model: the same steps, one writer, and any number goes on from what another kept.

This file is also a program, which trains on photos in a folder: `python test_processes.py FOLDER NUMBER OPTIONS`.
"""

import itertools
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import torch

from retailkit import data, losses, models, training
from retailkit.training import TrainConfig
from retailkit.training.processes import averaged, shared

PHOTOS = {"train": 7, "val": 3}  # of each of three colours: 21 make batches of 8, 8 and 5; 9 are no even number


def trained(folder, number, epochs=2, stop_after=None, seed=0, backbone="shufflenet_v2_x1_0"):
    """Train in this process, one of `number`, and keep what came of it in files of its own."""
    torch.set_num_threads(1)
    if number > 1:
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(torch.distributed.get_rank())
    rank, steps, smoothing = os.environ.get("RANK", "alone"), [], losses.label_smoothing

    def criterion(logits, labels, **more):
        steps.append(len(labels))
        if stop_after is not None and len(steps) > stop_after:
            raise KeyboardInterrupt
        return smoothing(logits, labels, **more)

    losses.CRITERIA["label_smoothing"] = criterion
    shop = data.load("folder", folder / "photos")
    torch.manual_seed(seed)
    model = models.build("image", shop.classes, backbone, weights=None)
    config = TrainConfig("finetune", epochs=epochs, batch_size=8, encoder_lr=1e-3, augment="light", seed=seed)
    splits = [shop.split(name, 32) for name in ("train", "val")]
    with suppress(KeyboardInterrupt):
        history = training.fit(model, *splits, config, resume=folder / "state.pt")
        training.save_checkpoint(model, folder / f"{number}-{rank}-{seed}.safetensors", history, steps=steps)


class Model(torch.nn.Linear):
    def training_loss(self, batch, criterion):
        return criterion(self(batch[0]), batch[1])


def gradients(folder):
    """Compare the gradient of each process, which has half of a batch, with that of the whole batch."""
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(torch.distributed.get_rank())
    torch.manual_seed(3)
    model, criterion = Model(5, 3), torch.nn.CrossEntropyLoss()
    batch = [torch.rand(8, 5), torch.arange(8) % 3]
    loss = model.training_loss(batch, criterion)
    whole = torch.autograd.grad(loss, model.weight)[0]
    rows = torch.utils.data.TensorDataset(*batch)
    learner, loader = shared(model, criterion, torch.utils.data.DataLoader(rows, 8))
    (part,) = loader
    assert len(part[1]) == 4
    (own := learner(part)).backward()
    assert torch.allclose(model.weight.grad, whole, atol=1e-6) and not torch.allclose(own, loss)
    assert torch.allclose(averaged(own), loss)
    (folder / f"same-{os.environ['RANK']}").touch()


def main(folder, number, options):
    """Train in a number of processes; two of them compare their gradients before that."""
    from accelerate import debug_launcher

    if number == 1:
        trained(folder, number, **options)
    else:
        debug_launcher(gradients, (folder,))
        debug_launcher(lambda: trained(folder, number, **options), (), number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))


@pytest.fixture
def together(tmp_path, draw):
    """Return a function that trains as `main` does, and returns the names of the checkpoints that it kept."""
    (tmp_path / "drawn").mkdir()
    for row in draw(tmp_path / "drawn", PHOTOS).table.to_dict("records"):
        to = tmp_path / "photos" / row["split"] / row["label"]
        to.mkdir(parents=True, exist_ok=True)
        Path(row["image"]).rename(to / Path(row["image"]).name)
    env = os.environ | {"RETAILKIT_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}

    def run(number, **options):
        before = set(tmp_path.glob("*.safetensors"))
        words = [sys.executable, __file__, tmp_path, str(number), json.dumps(options)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=550)
        assert done.returncode == 0 and "begins anew" not in done.stdout, done.stderr[-2000:]
        return sorted(set(tmp_path.glob("*.safetensors")) - before)

    return run


def read(path):
    model, history, facts = training.load_checkpoint(path)
    return model.state_dict(), history.epochs, facts["steps"]


def test_two_processes_have_the_gradients_of_one_which_goes_on_from_what_they_kept(together, tmp_path):
    assert together(2, stop_after=3) == [], "stopped in the second pass"
    assert {path.name for path in tmp_path.glob("same-*")} == {"same-0", "same-1"}
    (alone,) = together(1)
    _, epochs, steps = read(alone)
    assert epochs["epoch"].tolist() == [1, 2] and steps == [8, 8, 5]


@pytest.mark.check
def test_two_processes_go_on_from_what_one_kept_and_end_with_the_same_network(together):
    assert together(1, stop_after=3) == []
    one, other = map(read, together(2))
    assert one[2] == other[2] == [4, 4, 4], "each has half of every batch; the last one is filled"
    columns = ["epoch", "loss", "val_top1", "val_loss"]
    assert one[1][columns].equals(other[1][columns]) and len(one[1]) == 2
    assert all(torch.equal(value, other[0][name]) for name, value in one[0].items())


@pytest.mark.check
def test_two_processes_reach_the_accuracy_of_one(together, tmp_path):
    """Three seeds each: the means differ by no more than single seeds do.

    The network has no batch normalisation, for that sees the images of one process: here, four.
    """
    found = pd.DataFrame(0.0, range(3), (1, 2))
    for seed, number in itertools.product(found.index, found.columns):
        (tmp_path / "state.pt").unlink(missing_ok=True)
        path, *_ = together(number, seed=seed, epochs=4, backbone="timm:test_vit")
        found.loc[seed, number] = read(path)[1]["val_top1"].max()
    spread = (found.max() - found.min()).max()
    assert found[1].min() > 1 / 3 and abs(found[1].mean() - found[2].mean()) <= max(spread, 1 / 9)

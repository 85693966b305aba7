"""How fast models learn."""

import pytest

from retailkit import data, models, training
from retailkit.training.encoded import load_batches


@pytest.mark.benchmark
@pytest.mark.usefixtures("own_cache")
def test_frozen_features(tmp_path, compare, quick):
    """A head on features that are encoded once, against encoding the images again in each of the epochs."""
    epochs = 2 if quick else 5
    shop = data.load("synthetic", tmp_path, per_class=(4, 0, 0), families=4, size=224)
    train = shop.split("train", 224)
    model = models.build("image", shop.classes, backbone="efficientnet_lite0").eval()

    def encoding_each_time():
        for _ in range(epochs):
            for batch in load_batches(train, 32):
                model.encode_image(batch.images)

    def once():
        training.fit(model, train, config=training.TrainConfig(mode="frozen", epochs=epochs))

    ratio = compare("train", f"{epochs} epochs of a head", "encoding anew", encoding_each_time, once, repeat=1)
    assert ratio > epochs / 2

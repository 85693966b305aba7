"""The image-text model of notebook 20, whose weights are on no fresh machine: a tiny one with random weights."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from retailkit import data, metrics

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "20_training.ipynb"
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def tiny_clip(folder):
    """Write a CLIP with random weights whose vocabulary is single letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    first, last = len(vocabulary) - 2, len(vocabulary) - 1
    ids = {"bos_token_id": first, "eos_token_id": last, "pad_token_id": last, "vocab_size": len(vocabulary)}
    text, vision = SMALL | ids | {"max_position_embeddings": 32}, SMALL | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


@pytest.mark.check
def test_zero_shot_compares_each_image_with_the_sentence_of_each_class(tmp_path):
    from transformers import AutoModel, AutoProcessor

    tiny_clip(tmp_path)
    cells = ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]]
    (cell,) = [cell for cell in cells if "def zero_shot(" in cell]
    shop = data.load("synthetic", per_class=(2, 0, 1), families=1)
    names = {"to_pil_image": to_pil_image, "data": shop, "torch": torch, "metrics": metrics}
    exec(compile(ast.Module(ast.parse(cell).body[:1], []), "notebook 20", "exec"), names)
    photos = shop.split("test", 64)
    found = names["zero_shot"](str(tmp_path), photos, batch=2)
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    for row, probs in enumerate(found.probs):
        given = processor(text=[f"a photo of {label.lower()}" for label in shop.classes], padding=True,
                          images=to_pil_image(photos[row].image), return_tensors="pt")  # fmt: skip
        with torch.inference_mode():
            expected = model(**given).logits_per_image.softmax(1)[0]
        assert np.allclose(probs, expected, atol=1e-5)

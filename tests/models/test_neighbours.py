"""The search in two passes, against one product in float32 and a complete sort."""

import pytest
import torch
from torch.nn.functional import normalize

from retailkit.models import neighbours
from retailkit.models.neighbours import Neighbours


def unit(count, dimensions, seed):
    return normalize(torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("count", [1, 5, 15, 16, 17, 100, 4096, 4097, 10_000])
@pytest.mark.parametrize("first_pass", [torch.bfloat16, torch.float32])
def test_it_finds_what_a_complete_sort_finds(count, first_pass, monkeypatch):
    monkeypatch.setattr(neighbours, "has_bfloat16", lambda: first_pass == torch.bfloat16)
    query, vectors = unit(50, 64, 0), unit(count, 64, 1)
    search = Neighbours(vectors)
    assert search.coarse.dtype == first_pass
    best, where = search(query, 5)
    wanted, order = (query @ vectors.T).sort(dim=1, descending=True)
    assert torch.equal(where, order[:, :5]) and torch.allclose(best, wanted[:, :5], atol=1e-6)


@pytest.mark.parametrize("kind", ["near duplicates, which are equal in bfloat16", "all similarities are negative"])
def test_the_first_pass_is_not_misled(kind):
    query = unit(20, 64, 2).abs() if "negative" in kind else unit(20, 64, 2)
    close = [query + 1e-4 * (1 + copy) * unit(20, 64, 3 + copy) for copy in range(30)]
    vectors = -unit(20, 64, 1).abs() if "negative" in kind else normalize(torch.cat([*close, unit(3000, 64, 99)]))
    best, _ = Neighbours(vectors)(query, 5)
    assert torch.allclose(best, (query @ vectors.T).topk(5, dim=1).values, atol=1e-6)


def test_equal_galleries_share_a_search_and_a_repeated_question_costs_nothing(monkeypatch):
    one, same, other = (neighbours.shared(unit(200, 16, seed)) for seed in (0, 0, 1))
    assert one is same and one is not other
    query, asked, search = unit(5, 16, 9), [], one._search
    monkeypatch.setattr(one, "_search", lambda *a: (asked.append(a), search(*a))[1])
    first, again = one(query, 4), same(query.clone(), 4)
    assert len(asked) == 1 and torch.equal(first[1], again[1])
    assert one(query, 5)[0].shape == (5, 5) and one(unit(5, 16, 8), 5)[1].shape == (5, 5) and len(asked) == 3

"""The bounded cache of tensors."""

import torch

from srpo.training.cache import TensorCache


def test_what_was_used_longest_ago_goes_first_and_the_newest_always_stays():
    cache, made = TensorCache(max_bytes=8), []

    def get(key, size=1):
        return cache.get(key, lambda: made.append(key) or torch.zeros(size))  # 4 bytes each

    for key in ("a", "b", "a", "c", "a", "b"):  # c drives out b, as a was used later
        get(key)
    assert made == ["a", "b", "c", "b"]
    assert cache.nbytes == 8
    get("large", 100)
    assert cache.nbytes == 400

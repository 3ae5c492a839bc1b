"""An imagined copy of a model has its shapes, and nobody who watches the model sees it."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sartor.memory import meta_model
from tests.hf import tiny


def test_whoever_watches_a_model_does_not_see_passes_of_its_copy() -> None:
    model = tiny.make_model(tied=True)
    seen: list[Any] = []
    model.model.register_forward_pre_hook(lambda module, given: seen.append(given))
    model.model.layers[0].register_forward_hook(lambda module, given, output: seen.append(output))
    model.lm_head.register_full_backward_hook(lambda module, inward, outward: seen.append(outward))
    copied = meta_model.imitate(model)

    with FakeTensorMode():
        meta_model.materialise(copied)
        copied(input_ids=torch.zeros(1, 4, dtype=torch.int64), use_cache=False).logits.sum().backward()

    assert not seen
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    model(input_ids=torch.zeros(1, 4, dtype=torch.int64))
    assert len(seen) == 2  # and they are still there

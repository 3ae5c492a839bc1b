"""NEFTune's noise belongs to a document, however the batch is cut and laid out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sartor.batching.cut import make_micro_batch
from sartor.engine.noise import add_noise
from sartor.records import EngineSettings, Example, Layout
from tests.engine.architectures import make
from tests.engine.batches import accumulate, documents, engine

WIDTH = 32
OPTIONS = {"alpha": 5.0, "seed": 7, "step": 3}


def examples(*lengths: int) -> list[Example]:
    return [Example(list(range(3, 3 + length)), list(range(3, 3 + length))) for length in lengths]


def noise(
    lengths: tuple[int, ...], keys: list[int], layout: Layout = Layout.FLAT_POSITIONS, **changes: float
) -> torch.Tensor:
    """T x H for flat layouts, D x L x H for the padded one."""
    micro = make_micro_batch(examples(*lengths), keys)
    padded = layout is Layout.PADDED
    shape = (len(lengths), max(lengths), WIDTH) if padded else (1, sum(lengths), WIDTH)
    found = add_noise(torch.zeros(shape), micro, layout, **{**OPTIONS, **changes})  # type: ignore[arg-type]
    return found if padded else found[0]


def test_any_cut_and_layout_gives_a_document_the_same_noise() -> None:
    together = noise((4, 2, 6), [10, 11, 12])

    assert torch.equal(noise((2,), [11]), together[4:6])
    assert torch.equal(noise((6, 2), [12, 11]), torch.cat([together[6:], together[4:6]]))
    padded = noise((4, 2, 6), [10, 11, 12], Layout.PADDED)
    assert torch.equal(padded[1, :2], together[4:6])
    assert not padded[1, 2:].any()


@pytest.mark.parametrize("change", [{"seed": 8}, {"step": 4}])
def test_another_seed_or_step_is_other_noise(change: dict[str, int]) -> None:
    assert not torch.equal(noise((4,), [10]), noise((4,), [10], **change))


def test_another_document_is_other_noise() -> None:
    assert not torch.equal(noise((4,), [10]), noise((4,), [11]))
    micro = make_micro_batch([Example([3, 4, 5, 6], [3, 4, 5, 6], (2, 2))], [10])
    found = add_noise(torch.zeros(1, 4, WIDTH), micro, Layout.FLAT_POSITIONS, **OPTIONS)[0]  # type: ignore[arg-type]
    assert not torch.equal(found[:2], found[2:])


def test_the_bound_is_that_of_the_documents_own_length() -> None:
    """Uniform in ±alpha / sqrt(L d): its deviation is the bound over the root of 3."""
    found = noise((400, 25), [1, 2])

    for part, length in ((found[:400], 400), (found[400:], 25)):
        bound = 5.0 / (length * WIDTH) ** 0.5
        assert float(part.abs().max()) <= bound
        assert float(part.std()) == pytest.approx(bound / 3**0.5, rel=0.03)


def test_keys_of_any_integer_type_name_the_same_noise() -> None:
    assert torch.equal(noise((4,), [10]), noise((4,), [np.int64(10)]))


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    noise((4,), [10])

    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_gradients_with_noise_do_not_depend_on_the_cut(name: str) -> None:
    run = engine(make(name), EngineSettings(neftune_noise_alpha=5.0))

    _, one = accumulate(run, documents(), 1)
    _, all_ = accumulate(run, documents(), 99)
    _, later = accumulate(run, documents(), 99, step=1)

    assert max(float((one[key] - all_[key]).norm() / all_[key].norm()) for key in one) < 1e-5
    assert max(float((later[key] - all_[key]).norm() / all_[key].norm()) for key in one) > 1e-2


def test_measuring_is_without_noise() -> None:
    model = make("llama")
    micro = make_micro_batch(documents(), range(7))
    plain, noisy = engine(model), engine(model, EngineSettings(neftune_noise_alpha=5.0))

    with plain.running():
        expected = float(plain.measure(micro).loss_sum)
    with noisy.running():
        found = float(noisy.measure(micro).loss_sum)

    assert found == expected

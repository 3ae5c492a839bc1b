"""Weights of targets: the loss is sum(weight x loss) / sum(weights), in every form, layout and cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sartor.batching.cut import make_micro_batch
from sartor.engine.loss import linear_cross_entropy
from sartor.errors import DataError
from sartor.records import IGNORE_INDEX, EngineSettings, Example, Layout, LossSums
from tests.engine import reference
from tests.engine.architectures import make
from tests.engine.batches import documents, engine, gradients, micro_batches
from tests.engine.test_gradients import CUTS, FLOOR, TOLERANCE
from tests.engine.test_loss import FORMS, NUM, SCALE, Called, batch, head

WEIGHTS = (1.0, 0.5, 3.0, 0.0, 0.125)


def weighted_documents() -> list[Example]:
    """The documents of the other tests; every token weighs something else than its neighbours, some nothing."""
    return [
        replace(example, weights=[WEIGHTS[(number + place) % 5] for place in range(len(example.input_ids))])
        for number, example in enumerate(documents())
    ]


def sum_of_weights(examples: Sequence[Example]) -> float:
    return sum(example.total_weight for example in examples)


def plain_gradients(
    model: Any, examples: Sequence[Example], *, smoothing: float = 0.0, dft: bool = False
) -> tuple[float, dict[str, torch.Tensor]]:
    """Weighted mean loss and its gradients in float64: one document at a time, one target at a time."""
    double = reference.in_double(model)
    total, weight_sum = torch.zeros((), dtype=torch.float64), 0.0
    for example in examples:
        logits = double(input_ids=torch.tensor([list(example.input_ids)]), use_cache=False).logits[0]
        for place in range(1, len(example.input_ids)):
            label = example.labels[place]
            if label != IGNORE_INDEX:
                loss = F.cross_entropy(logits[place - 1], torch.tensor(label), label_smoothing=smoothing)
                if dft:
                    loss = loss * logits[place - 1].softmax(-1)[label].detach()
                weight = example.weights[place] if len(example.weights) else 1.0
                total, weight_sum = total + weight * loss, weight_sum + weight
    (total / weight_sum).backward()
    return float(total.detach()) / weight_sum, gradients(double)


def accumulated(run: Any, examples: Sequence[Example], size: int) -> tuple[LossSums, dict[str, torch.Tensor]]:
    """Sums and gradients of one optimizer batch in micro-batches of `size` documents."""
    run.model.zero_grad(set_to_none=True)
    tokens = sum(len(example.input_ids) for example in examples)
    total: LossSums | None = None
    with run.running():
        for micro in micro_batches(examples, size):
            part = run.backward(micro, batch_targets=sum_of_weights(examples), batch_tokens=tokens)
            total = part if total is None else total + part
    assert total is not None
    return total, gradients(run.model)


def assert_equal(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> None:
    difference, parameter = reference.worst_difference(found, truth, FLOOR)
    assert difference < TOLERANCE, f"{parameter}: {difference:.1e}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["plain", "called"])
def test_each_target_counts_by_its_weight_in_sum_and_gradients(kind: str, form: str) -> None:
    """The same as each target on its own, times its weight; entropy and right choices are not weighted."""
    module = Called(bias=True) if kind == "called" else head(bias=True)
    hidden, targets = batch()
    weights = torch.tensor([WEIGHTS[number % 3] for number in range(NUM)])
    options: dict[str, Any] = {"chunk_rows": 3, "compute_dtype": torch.float64}
    module.zero_grad()
    parts = [
        linear_cross_entropy(
            hidden[[row]], module, targets[[row]], FORMS[form], grad_scale=SCALE * float(weights[row]), **options
        )
        for row in range(NUM)
    ]
    truth = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()

    sums, grad_hidden = linear_cross_entropy(
        hidden, module, targets, FORMS[form], weights_N=weights, grad_scale=SCALE, **options
    )

    each = [float(part.loss_sum) * float(weight) for (part, _), weight in zip(parts, weights, strict=True)]
    assert float(sums.loss_sum) == pytest.approx(sum(each), rel=1e-13)
    assert sums.mean_loss == pytest.approx(sum(each) / float(weights.sum()), rel=1e-13)
    assert float(sums.entropy_sum) == pytest.approx(sum(float(part.entropy_sum) for part, _ in parts), rel=1e-13)
    assert (int(sums.num_correct), sums.num_targets) == (sum(int(part.num_correct) for part, _ in parts), NUM)
    torch.testing.assert_close(grad_hidden, torch.cat([part for _, part in parts]), rtol=1e-11, atol=1e-13)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, truth[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_weighted_gradients_equal_one_document_at_a_time(name: str, cut: str) -> None:
    model, examples = make(name), weighted_documents()
    loss, truth = plain_gradients(model, examples)

    sums, found = accumulated(engine(model), examples, CUTS[cut])

    assert sums.mean_loss == pytest.approx(loss, rel=1e-6)
    assert_equal(found, truth)
    unweighted = plain_gradients(model, documents())[1]
    assert reference.worst_difference(unweighted, truth, FLOOR)[0] > 0.1  # weights do matter here


@pytest.mark.parametrize("options", [{"label_smoothing": 0.2}, {"loss_type": "dft"}], ids=["smoothed", "dft"])
def test_other_losses_are_weighted_too(options: dict[str, Any]) -> None:
    model, examples = make("llama"), weighted_documents()
    smoothing = options.get("label_smoothing", 0.0)
    loss, truth = plain_gradients(model, examples, smoothing=smoothing, dft="loss_type" in options)

    sums, found = accumulated(engine(model, EngineSettings(**options)), examples, 3)

    assert sums.mean_loss == pytest.approx(loss, rel=1e-6)
    assert_equal(found, truth)


@pytest.mark.parametrize("layout", [Layout.FLAT_POSITIONS, Layout.PADDED])
def test_a_packed_block_keeps_its_documents_weights(layout: Layout) -> None:
    model, examples = make("llama"), weighted_documents()
    packed = Example(
        [token for example in examples for token in example.input_ids],
        [label for example in examples for label in example.labels],
        tuple(len(example.input_ids) for example in examples),
        [weight for example in examples for weight in example.weights],
    )

    _, found = accumulated(engine(model, layout=layout), [packed], 1)

    assert_equal(found, plain_gradients(model, examples)[1])
    assert sum_of_weights([packed]) == sum_of_weights(examples)


def test_weight_two_is_the_row_twice() -> None:
    """In one optimizer batch: the sum of weights grows as the number of targets would."""
    model, examples = make("llama"), documents()
    doubled = [replace(example, weights=[2.0] * len(example.input_ids)) for example in examples[:2]]

    sums, found = accumulated(engine(model), [*doubled, *examples[2:]], 3)

    again, truth = accumulated(engine(model), [*examples[:2], *examples], 3)
    assert sums.mean_loss == pytest.approx(again.mean_loss, rel=1e-6)
    assert sums.num_targets < again.num_targets
    assert_equal(found, truth)


@settings(max_examples=15, deadline=None)
@given(factor=st.sampled_from([1e-12, 0.5, 7.0, 1e12]), size=st.integers(1, 7), data=st.data())
def test_scaling_all_weights_and_any_cut_change_nothing(factor: float, size: int, data: st.DataObject) -> None:
    weights = st.lists(st.sampled_from(WEIGHTS), min_size=12, max_size=12)
    model = make("llama")
    examples = [replace(example, weights=data.draw(weights)[: len(example.input_ids)]) for example in documents()]
    if sum_of_weights(examples) == 0:
        return
    scaled = [replace(example, weights=[factor * weight for weight in example.weights]) for example in examples]

    sums, found = accumulated(engine(model), examples, 99)
    other, again = accumulated(engine(model), scaled, size)

    assert sums.num_targets == other.num_targets == sum(example.num_targets for example in examples)
    assert other.mean_loss == pytest.approx(sums.mean_loss, rel=1e-6)
    assert_equal(again, {name: gradient.double() for name, gradient in found.items()})


def test_weights_of_one_are_no_weights() -> None:
    model, examples = make("llama"), documents()
    ones = [replace(example, weights=[1.0] * len(example.input_ids)) for example in examples]

    sums, found = accumulated(engine(model), ones, 3)

    plain, truth = accumulated(engine(model), examples, 3)
    assert sums.mean_loss == plain.mean_loss
    assert plain.weight_sum is None
    assert all(torch.equal(found[name], truth[name]) for name in truth)


def test_a_token_that_weighs_nothing_is_no_target() -> None:
    example = Example([5, 6, 7, 8], [5, 6, 7, 8], weights=[9.0, 0.0, 2.0, 0.5])
    micro = make_micro_batch([example, Example([4, 3], [4, 3])], [0, 1])
    assert micro.targets_N.tolist() == [7, 8, 3]
    assert micro.weights_N is not None
    assert micro.weights_N.tolist() == [2.0, 0.5, 1.0]  # the first token, which nothing predicts, weighs nothing
    assert (example.num_targets, example.total_weight) == (2, 2.5)
    assert sum_of_weights([example, Example([4, 3], [4, 3])]) == 3.5
    assert make_micro_batch([Example([4, 3], [4, 3])], [0]).weights_N is None


def test_a_weight_too_small_for_the_losss_dtype_is_none_wherever_targets_are_counted() -> None:
    """In float32 it is 0: the batch would be divided by one target more than the loss sums over."""
    example = Example([5, 6, 7], [5, 6, 7], weights=[1.0, 1e-50, 1.0])
    assert example.num_targets == make_micro_batch([example], [0]).num_targets == 1


@pytest.mark.parametrize("weights", [[1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")], [1.0]])
def test_weights_that_a_transform_makes_are_checked(weights: list[float]) -> None:
    with pytest.raises(DataError, match=r"row 7 \(from 0\): `weights` must be a number from 0 on"):
        make_micro_batch([Example([4, 3], [4, 3], weights=weights)], [7])


def test_sums_with_and_without_weights_add_up() -> None:
    one, two = torch.ones(()), torch.full((), 2.0)
    plain, weighted = LossSums(two, one, one, 4), LossSums(one, one, one, 1, two)
    for total in (plain + weighted, weighted + plain):
        assert (float(total.loss_sum), total.num_targets, float(total.weight_sum)) == (3.0, 5, 6.0)
        assert total.mean_loss == 0.5
    assert (plain + plain).weight_sum is None
    assert float((weighted + weighted).weight_sum) == 4.0

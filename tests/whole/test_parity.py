"""Sartor computes what trl computes: losses, gradient norms, rows and log, on a tiny model with both libraries."""

from typing import Any

import pytest
from benchmarks.parity import Comparison, trace

from tests.hf.tiny import make_model, make_tokenizer, texts

CHAT = [
    {"messages": [{"role": "user", "content": f"why w{n}"}, {"role": "assistant", "content": row["text"]}]}
    for n, row in enumerate(texts(13))
]
TEMPLATE = "{% for m in messages %}{{ '<|im_start|> ' + m.role + ' ' + m.content + ' <|im_end|> ' }}{% endfor %}"


pytestmark = pytest.mark.usefixtures("one_thread")


def compare(rows: list[dict[str, Any]], template: str | None = None, **options: Any) -> Comparison:
    traces = []
    for library in ("trl", "sartor"):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template
        traces.append(trace(library, make_model(), tokenizer, rows, **options))
    return Comparison(*traces)


@pytest.mark.parametrize(
    "options",
    [
        # 13 rows in batches of 4: the last device batch of an epoch has 1, its last optimizer batch 5
        {"max_steps": 5, "learning_rate": 1e-2},
        {"max_steps": 5, "learning_rate": 1e-2, "max_grad_norm": 0.5, "lr_scheduler_type": "linear"},
        {"max_steps": -1, "num_train_epochs": 2, "dataloader_drop_last": True, "weight_decay": 0.1, "data_seed": 7},
    ],
    ids=["plain", "clipped, linear", "without the last batch"],
)
def test_training_equals_trls_step_by_step(options: dict[str, Any]) -> None:
    compared = compare(CHAT, TEMPLATE, **options)
    assert not compared.problems()
    losses = compared.sartor.column("loss")
    assert max(losses) - min(losses) > 1e-2  # it did train


def test_a_prompts_tokens_are_left_out_by_both() -> None:
    rows = [{"prompt": f"why w{n} ", "completion": row["text"]} for n, row in enumerate(texts(13))]
    assert not compare(rows, max_steps=3).problems()


def test_a_difference_is_found() -> None:
    """The comparison itself: another learning rate, seed or set of rows on one side is told."""
    one = trace("sartor", make_model(), make_tokenizer(), texts(13), max_steps=3, learning_rate=1e-2)
    for change, expected in (
        ({"learning_rate": 1.01e-2}, "learning_rate"),
        ({"seed": 1}, "rows of the steps"),
        ({"label_smoothing_factor": 1e-3}, "loss of the first step"),
    ):
        options = {"max_steps": 3, "learning_rate": 1e-2, **change}
        other = trace("sartor", make_model(), make_tokenizer(), texts(13), **options)
        assert expected in " ".join(Comparison(one, other).problems())

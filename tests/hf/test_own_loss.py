"""Own losses and collators get Trainer's padded batches, and the gradients that trl's trainer gives them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sartor import SFTTrainer
from sartor.errors import ConfigurationError, NonFiniteError
from tests.hf import tiny
from tests.hf.recording import Recorder

ACCUMULATION = {"gradient_accumulation_steps": 2, "max_steps": 4}


class Gradients(Recorder):
    """Keeps the gradients of the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        if not self.first:
            self.first = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gradients(folder: Path, **options: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    callback = Gradients()
    trainer = tiny.trainer(folder, callbacks=[callback], **{**ACCUMULATION, "max_grad_norm": 0, **options})
    trainer.train()
    return callback.first, tiny.losses(trainer.state.log_history)


def trl_gradients(folder: Path, kind: Any = None, **options: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    trl = pytest.importorskip("trl", reason="trl is not installed; it is the reference here")
    callback = Gradients()
    own = {name: options.pop(name) for name in ("compute_loss_func", "data_collator") if name in options}
    args = trl.SFTConfig(
        str(folder),
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        max_length=64,
        disable_tqdm=True,
        **{**ACCUMULATION, "max_grad_norm": 0, **options},
    )
    trainer = (kind(trl.SFTTrainer) if kind else trl.SFTTrainer)(
        tiny.make_model(),
        args,
        train_dataset=tiny.dataset(),
        processing_class=tiny.make_tokenizer(),
        callbacks=[callback],
        **own,
    )
    trainer.train()
    return callback.first, tiny.losses(trainer.state.log_history)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Measured: 3e-7; a per-batch mean in place of the optimizer batch's is off by 1e-2."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 5e-6, name


def subclass(compute_loss: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda base: type("Mine", (base,), {"compute_loss": compute_loss})


def calls_super(
    self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
) -> Any:
    base = next(kind for kind in type(self).__mro__ if kind.__name__ == "SFTTrainer")
    return base.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)


def doubles(self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
    outputs = model(**inputs, num_items_in_batch=num_items_in_batch, use_cache=False)
    return (outputs.loss * 2, outputs) if return_outputs else outputs.loss * 2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("compute_loss", [calls_super, doubles])
def test_an_overridden_compute_loss_gives_trls_gradients_and_losses(
    compute_loss: Callable[..., Any], tmp_path: Path
) -> None:
    ours, our_losses = gradients(tmp_path / "ours", kind=subclass(compute_loss)(SFTTrainer))
    theirs, their_losses = trl_gradients(tmp_path / "theirs", kind=subclass(compute_loss))
    assert_close(ours, theirs)
    assert our_losses == pytest.approx(their_losses, abs=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_mean_per_batch_is_divided_by_the_batches_of_a_step_where_it_says_so(tmp_path: Path) -> None:
    def mean(self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        outputs = model(**inputs, use_cache=False)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def kind(base: Any) -> Any:
        return type("Mine", (base,), {"compute_loss": mean, "loss_is_scaled_for_ga": False})

    ours, our_losses = gradients(tmp_path / "ours", kind=kind(SFTTrainer))
    theirs, their_losses = trl_gradients(tmp_path / "theirs", kind=kind)
    assert_close(ours, theirs)
    assert our_losses == pytest.approx(their_losses, abs=1e-6)


def test_the_padded_path_gives_the_gradients_of_the_flat_one(tmp_path: Path) -> None:
    flat, flat_losses = gradients(tmp_path / "flat")
    padded, padded_losses = gradients(tmp_path / "padded", kind=subclass(calls_super)(SFTTrainer))
    assert_close(padded, flat)
    assert padded_losses == pytest.approx(flat_losses, abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing_factor": 0.3},
        {"loss_type": "dft"},
        {"neftune_noise_alpha": 5.0},
        {"packing": True, "max_length": 24},
        {"completion_only_loss": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_loss_work_in_the_padded_path_too(options: dict[str, Any], tmp_path: Path) -> None:
    flat, _ = gradients(tmp_path / "flat", **options)
    plain, _ = gradients(tmp_path / "plain")
    padded, _ = gradients(tmp_path / "padded", kind=subclass(calls_super)(SFTTrainer), **options)
    assert_close(padded, flat)
    if "completion_only_loss" not in options:
        assert any(not torch.allclose(padded[name], plain[name], rtol=1e-3) for name in plain)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_compute_loss_func_gets_logits_labels_and_the_batchs_items(tmp_path: Path) -> None:
    told = []

    def own(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        told.append((outputs.logits.shape[:2] == labels.shape, int(num_items_in_batch)))
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch

    ours, our_losses = gradients(tmp_path / "ours", compute_loss_func=own)
    expected = list(told)
    told.clear()
    theirs, their_losses = trl_gradients(tmp_path / "theirs", compute_loss_func=own)
    assert told == expected
    assert_close(ours, theirs)
    assert our_losses == pytest.approx(their_losses, abs=1e-6)


def test_a_collator_gets_rows_and_its_batches_are_used(tmp_path: Path) -> None:
    seen: list[list[set[str]]] = []

    def first_five(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        seen.append([set(feature) for feature in features])
        ids = [(feature["input_ids"] * 5)[:5] for feature in features]
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}

    trainer = tiny.trainer(tmp_path, data_collator=first_five, max_steps=2)
    trainer.train()
    assert seen == [[{"input_ids", "labels"}] * 2] * 2
    assert trainer.state.log_history[1]["num_tokens"] == 20  # 2 steps x 2 rows x 5 tokens


@pytest.mark.parametrize("rows", [tiny.dataset, lambda: tiny.stream(tiny.texts())], ids=["rows", "stream"])
def test_a_collator_may_tokenize_the_rows_itself(rows: Callable[[], Any], tmp_path: Path) -> None:
    tokenizer = tiny.make_tokenizer()

    def tokenize(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [(tokenizer(feature["text"])["input_ids"] * 3)[:6] for feature in features]
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}

    output = tiny.trainer(
        tmp_path,
        rows=rows(),
        data_collator=tokenize,
        max_steps=2,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    ).train()
    assert output.global_step == 2
    assert output.training_loss > 0


def test_transformers_own_collator_works(tmp_path: Path) -> None:
    from transformers import DataCollatorForLanguageModeling

    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = "<unk>"
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows = [{"text": "the moon is old"}] * 4

    def without_labels(features: list[dict[str, Any]]) -> Any:
        return collate([{"input_ids": feature["input_ids"]} for feature in features])

    trainer = tiny.trainer(
        tmp_path, processing_class=tokenizer, rows=rows, data_collator=without_labels, num_train_epochs=8
    )
    trainer.train()
    losses = tiny.losses(trainer.state.log_history)
    assert losses[-1] < losses[0]


def test_the_cost_of_an_own_loss_is_said_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="sartor"):
        tiny.trainer(tmp_path, kind=subclass(doubles)(SFTTrainer))
    assert "padded batches and full logits" in caplog.text


def test_an_own_loss_that_is_not_finite_stops_and_names_its_rows(tmp_path: Path) -> None:
    def broken(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        return outputs.logits.sum() * float("nan")

    with pytest.raises(NonFiniteError, match=r"step 1 is nan: train data, row \d+; train data, row \d+\."):
        tiny.trainer(tmp_path, compute_loss_func=broken, max_steps=1).train()


def test_a_balance_loss_and_an_own_loss_are_not_mixed_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def experts() -> Any:
        from transformers import MixtralConfig, MixtralForCausalLM

        torch.manual_seed(0)
        return MixtralForCausalLM(
            MixtralConfig(
                vocab_size=len(tiny.VOCABULARY),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                num_local_experts=2,
                eos_token_id=0,
                bos_token_id=None,
            )
        )

    mine = subclass(calls_super)(SFTTrainer)
    with pytest.raises(ConfigurationError, match=r"router_aux_loss_coef=0\.1 is set, and so is an own loss"):
        tiny.trainer(tmp_path, model=experts(), kind=mine, max_steps=1, router_aux_loss_coef=0.1).train()
    with caplog.at_level("INFO", logger="sartor"):
        tiny.trainer(tmp_path, model=experts(), kind=mine, max_steps=1).train()
    assert "load-balancing loss of the experts is left out" in caplog.text

"""Each setting changes what it says, and nothing else."""

from __future__ import annotations

from benchmarks import memory_models
from benchmarks.memory import plan_of

from sartor.memory.consumers import what_consumes
from sartor.memory.simulate import Training, Work, simulate

WORK = Work(document_lengths=(100, 60, 40), num_targets=150)


def test_every_setting_is_foreseen_and_means_what_it_says() -> None:
    config = memory_models.small("llama, tied")
    config.num_hidden_layers = 2
    work = Work(document_lengths=(500, 300, 200), num_targets=750)  # the passes are the largest moment, not the update
    plan = plan_of(config, tokens=1_000, compute="float32", recomputes=False)
    found = {entry["label"]: entry for entry in what_consumes(config, plan, work, Training())}
    assert next(iter(found)) == "as it is"
    assert not any("reason" in entry for entry in found.values())
    peak = {label: entry["peak_bytes"] for label, entry in found.items()}
    part = {label: entry["components"] for label, entry in found.items()}
    assert peak["as it is"] == simulate(config, plan, work).peak_bytes == sum(part["as it is"].values())
    assert part["gradient_checkpointing=True"]["activations"] < part["as it is"]["activations"]
    cheap = part["cheap operations recomputed"]["activations"]
    assert part["gradient_checkpointing=True"]["activations"] <= cheap < part["as it is"]["activations"]
    assert part["half as many documents at once"]["activations"] < part["as it is"]["activations"]
    assert part["twice as many documents at once"]["activations"] > 1.5 * part["as it is"]["activations"]
    assert part["LoRA, rank 16"]["optimizer states"] < 0.2 * part["as it is"]["optimizer states"]
    assert (
        part["8-bit optimizer states"]["optimizer states"] < 0.8 * part["as it is"]["optimizer states"]
    )  # the embedding stays float32
    assert part["LoRA, rank 16"]["parameters"] > part["as it is"]["parameters"]


def test_an_adapter_is_compared_with_all_weights() -> None:
    import peft

    config = memory_models.small("llama, tied")
    config.num_hidden_layers = 1
    plan = plan_of(config, tokens=200, compute="float32", recomputes=True)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    labels = {entry["label"]: entry for entry in what_consumes(config, plan, WORK, Training(lora=lora))}
    assert "gradient_checkpointing=False" in labels
    assert labels["all weights trained"]["peak_bytes"] > labels["as it is"]["peak_bytes"]


def test_what_cannot_be_simulated_says_why_and_does_not_stop_the_others() -> None:
    config = memory_models.small("llama, tied")
    config.num_hidden_layers = 1
    plan = plan_of(config, tokens=200, compute="float32", recomputes=True)
    found = what_consumes(config, plan, WORK, Training(optimizer="madgrad"))
    assert "madgrad" in found[0]["reason"]
    assert "peak_bytes" in found[-1]  # whose optimizer is another

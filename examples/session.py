"""Fine-tune a model on conversations without transformers' Trainer.

    python examples/session.py MODEL ROWS FOLDER [STEPS]

MODEL is a Hub id or a folder, ROWS a file of conversations (.jsonl, .parquet, ...), FOLDER the run's.  Ctrl-C saves a
checkpoint; the same command again goes on from it.
"""

import sys

import torch
from transformers import get_cosine_schedule_with_warmup

from sartor.records import DataSettings, EngineSettings
from sartor.run.interrupt import Terminated
from sartor.run.loading import load_model, load_tokenizer
from sartor.run.session import Session
from sartor.run.settings import RunSettings
from sartor.run.training import training


def main(name: str, rows: str, folder: str, num_steps: int = 200) -> None:
    """Load, prepare, train, evaluate, save."""
    model, tokenizer = load_model(name, {"dtype": "auto"}), load_tokenizer(name, {})
    settings = RunSettings(
        data=DataSettings(max_length=1024, assistant_only_loss=True),
        engine=EngineSettings(bf16=True, max_grad_norm=1.0),
        batch_size=8,
        max_steps=num_steps,
        save_total_limit=2,
    )
    session = Session.of(model, tokenizer, folder, settings)
    session.data.train = session.data.prepare(rows, "train")
    session.data.evaluation = session.data.train.select(range(min(64, len(session.data.train))))

    def make_optimizer(max_steps: int) -> tuple[torch.optim.Optimizer, object]:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=2e-5, weight_decay=0.0)
        return optimizer, get_cosine_schedule_with_warmup(optimizer, max_steps // 20, max_steps)

    with training(session, make_optimizer, resume_from_checkpoint="if_any") as run:
        try:
            for _ in run.run_steps():
                if run.steps.done % 10 == 0:
                    print(f"step {run.steps.done}: {run.log()}")
                if run.steps.done % 100 == 0:
                    print(f"evaluated: loss {run.evaluate(session.data.evaluation).loss:.4f}")
                    run.save()
        except (KeyboardInterrupt, Terminated):
            run.save()
            raise
        print(f"mean loss {run.mean_loss:.4f}, evaluated {run.evaluate(session.data.evaluation).loss:.4f}")
    session.save(folder)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))

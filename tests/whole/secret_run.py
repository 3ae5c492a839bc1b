"""A run that is told its secrets in every way there is, in a process of its own; see test_secrets.py.

python -m tests.whole.secret_run MODEL ROWS FOLDER
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Any

from tests.hub_server import HubServer

SECRET = "s3cretOfMine9"


def trainer(model: str, rows: str, folder: str, secret: str = SECRET, **options: Any) -> Any:
    """Of two steps, with a secret wherever one may be."""
    from transformers import AutoTokenizer

    from sartor import SFTConfig, SFTTrainer

    address = f"http://ada:{secret}@127.0.0.1:9"
    settings: dict[str, Any] = {
        "output_dir": folder,
        "hub_token": secret,
        "model_init_kwargs": {"token": secret, "proxies": {"https": address}},
        "optim_args": f"token={secret}",
        "run_name": f"{address}/run",
        "project": f"a project, api_key='{secret}'",
        "eos_token": "<|im_end|>",
        "map": ["user={ask}", "assistant={say}"],
        "report_to": "tensorboard",
        "max_steps": 2,
        "logging_steps": 1,
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "use_cpu": True,
        "bf16": False,
    }
    tokenizer = AutoTokenizer.from_pretrained(
        model, token=secret, api_key=secret, backend_options={"password": secret, "address": address}
    )
    return SFTTrainer(
        model, SFTConfig(**{**settings, **options}), train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )


def _print_what_fails(action: Any) -> None:
    try:
        action()
    except Exception:
        traceback.print_exc()
    else:
        raise AssertionError("this should have failed")


def main() -> None:
    """Train, save, write everything there is to write; then fail in several ways."""
    from sartor import SFTConfig, SFTTrainer
    from sartor.cli.main import main as command
    from sartor.masking import masked_logs
    from sartor.report.run_page import write_run_page

    model, rows, folder = sys.argv[1:]
    one = trainer(model, rows, folder)
    print(one.args, repr(one.args), one, repr(one))
    one.train()
    one.save_model()
    one.save_state()
    one.create_model_card(
        dataset_name=[f"https://ada:{SECRET}@host/rows.jsonl"], dataset_args=f"token={SECRET}", tags=[f"key={SECRET}"]
    )
    one.profile()
    write_run_page(folder)
    _print_what_fails(lambda: trainer(model, rows, folder, learning_rate=1.0).train(resume_from_checkpoint=True))
    _print_what_fails(lambda: trainer(model, f"http://ada:{SECRET}@127.0.0.1:9/rows.jsonl", folder))
    _print_what_fails(
        lambda: SFTConfig(output_dir=folder, hub_token=SECRET, fsdp=f"password={SECRET}", bf16=True, fp16=True)
    )
    _print_what_fails(lambda: SFTTrainer("owner/is-not-there", SFTConfig(output_dir=folder, use_cpu=True)))
    command(["env"])
    with masked_logs():
        logging.getLogger("huggingface_hub").warning("asking http://ada:%s@127.0.0.1 again", SECRET)
    address = f"https://ada:{SECRET}@127.0.0.1:9/rows.jsonl"
    broken = f'{{"token": "{SECRET}"'
    for more in ((f"--hub_token={SECRET}",), (f"--hub_token={SECRET}", "--model_init_kwargs", broken)):
        command(["train", "--model", "owner/is-not-there", "--data", address, "--output_dir", f"{folder}-2", *more])
    other = trainer(model, rows, folder, secret="another", max_steps=3, accept_changes=["max_steps"])
    print("went on:", other.train(resume_from_checkpoint=True).global_step)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    with HubServer() as hub:
        os.environ["HF_ENDPOINT"] = hub.url.replace("://", f"://ada:{SECRET}@")
        main()

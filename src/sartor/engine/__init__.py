"""One optimizer step as pure tensor code: no files, no logs, and nothing of transformers' Trainer."""

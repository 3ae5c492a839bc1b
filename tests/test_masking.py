"""Secrets are masked wherever they stand, and what only looks like one is left alone."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from sartor import SFTConfig
from sartor.errors import ConfigurationError, RunFolderError, SartorError, SartorWarning
from sartor.masking import MASK, is_secret, masked, masked_errors, masked_text, same_but_for_secrets

SECRET = "s3cret-Value.of/mine+9"


@pytest.mark.parametrize(
    "name",
    [
        "token", "hub_token", "push_to_hub_token", "use_auth_token", "HF_TOKEN", "WANDB_API_KEY", "api_key", "apiKey",
        "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "client_secret", "dbPassword", "PGPASSWORD", "password",
        "passphrase", "credentials", "GOOGLE_CREDENTIALS", "auth", "SSH_AUTH_SOCK", "Authorization", "key",
        "access_tokens", "private-key", "HF_TOKEN_PATH", "DB_PWD",
    ],
)  # fmt: skip
def test_names_that_speak_of_a_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "eos_token", "bos_token", "pad_token", "mask_token", "image_token", "decoder_start_token_id", "eos_token_id",
        "token_type_ids", "num_tokens", "max_new_tokens", "micro_batch_tokens", "tokens_per_second", "tokenizer",
        "TOKENIZERS_PARALLELISM", "tokenizer_class", "num_key_value_heads", "key_value_heads", "key_padding_mask",
        "ignore_keys_for_eval", "label_keys", "GIT_AUTHOR_NAME", "KEYBOARD", "PWD", "mean_token_accuracy", "monkey",
        "sort_key", "additional_special_tokens", "",
    ],
)  # fmt: skip
def test_names_that_do_not(name: str) -> None:
    assert not is_secret(name)


def test_of_all_options_the_hubs_token_alone_is_a_secret() -> None:
    from sartor.cli.own_flags import OWN_FLAGS
    from sartor.records import Plan

    names = [entry.name for entry in (*dataclasses.fields(SFTConfig), *dataclasses.fields(Plan))]
    assert {name for name in [*names, *(flag.name for flag in OWN_FLAGS)] if is_secret(name)} == {"hub_token"}


@pytest.mark.parametrize(
    "text",
    [
        "model_init_kwargs={'dtype': 'bfloat16', 'token': 'SECRET', 'n': 3} is wrong",
        'model_init_kwargs={"token": "SECRET',
        '{\\"nested\\": {\\"api_key\\": \\"SECRET\\"}}',
        "hub_token=SECRET: no",
        "--hub_token=SECRET",
        "hub_token: SECRET",
        "optim_args='momentum=0.9,token=SECRET'",
        "https://ada:SECRET@host:80/rows.jsonl".replace("/mine", "mine"),
        "cannot reach http://x:y%SECRET@127.0.0.1:9.",
        "proxy ada:SECRET@proxy:3128",
        "no file https:/ada:SECRET@host/rows.jsonl",
        "https://host/rows?token=SECRET&page=2",
        "Authorization: Bearer SECRET",
        "b'Bearer SECRET\\n'",
        "WANDB_API_KEY=SECRET python train.py",
        'password = "it\\"s SECRET"',
    ],
)
def test_texts_show_no_secret_and_keep_the_rest(text: str) -> None:
    secret = SECRET.replace("/", "") if "@" in text else SECRET
    shown = masked_text(text.replace("SECRET", secret))
    assert secret not in shown
    assert secret[:8] not in shown
    assert MASK in shown
    assert masked_text(shown) == shown
    for rest in ("dtype", "'n': 3", "is wrong", "momentum=0.9", "host", "&page=2", "python train.py", "no"):
        assert (rest in text) <= (rest in shown)


def test_tokens_are_known_by_their_form() -> None:
    for token in ("hf_" + "a1B2" * 8, "sk-" + "a1B2" * 8, "ghp_" + "a1B2" * 8, "github_pat_" + "a1B2" * 8):
        assert masked_text(f"the answer was {token}.") == f"the answer was {MASK}."


@pytest.mark.parametrize(
    "text",
    [
        "eos_token='<|im_end|>' is not in the vocabulary",
        "there is no token: log in, set HF_TOKEN, or pass a token (hub_token=)",
        "The only key: skip_prepare_dataset",
        "{'num_key_value_heads': 2, 'eos_token': '</s>', 'max_new_tokens': 64}",
        "hub_token=None, token=True",
        "https://huggingface.co/papers/2508.05629 and ada@example.org",
        "assistant='{answer}' user='{question}'",
        "git@github.com:owner/name.git",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert masked_text(text) == text


def test_settings_are_masked_however_deep() -> None:
    settings: dict[str, Any] = {
        "model_init_kwargs": {"token": SECRET, "inner": [{"deep": {"api_key": SECRET}}, "password=" + SECRET]},
        "eos_token": "</s>",
        "use_auth_token": True,
        "pair": ("a", {"auth": SECRET}),
        "seed": 3,
    }
    found = masked(settings)
    assert SECRET not in repr(found)
    assert found["eos_token"] == "</s>"
    assert found["use_auth_token"] is True
    assert found["model_init_kwargs"]["inner"][0] == {"deep": {"api_key": MASK}}
    assert found["pair"] == ("a", {"auth": MASK})
    assert settings["model_init_kwargs"]["token"] == SECRET
    assert masked(found) == found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"token": "a", "dtype": "x"}, {"token": "b", "dtype": "x"}),
        ({"token": "a", "dtype": "x"}, {"dtype": "x"}),
        ({"token": "a"}, None),
        ({"url": "https://ada:a@host/x"}, {"url": "https://bob:b@host/x"}),
        ({"url": "https://ada:a@host/x"}, {"url": "https://host/x"}),
        ([{"api_key": "a"}, 1], [{"api_key": "b"}, 1]),
        ("momentum=0.9,token=a", "momentum=0.9,token=b"),
    ],
)
def test_another_secret_is_no_difference(one: Any, other: Any) -> None:
    assert same_but_for_secrets(masked(one), masked(other))
    assert same_but_for_secrets(masked(other), masked(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"token": "a", "dtype": "x"}, {"token": "a", "dtype": "y"}),
        ({"token": "a", "dtype": "x"}, None),
        ({"eos_token": "a"}, {"eos_token": "b"}),
        ({"url": "https://ada:a@host/x"}, {"url": "https://ada:a@other/x"}),
        ([1, 2], [1]),
    ],
)
def test_anything_else_is_a_difference(one: Any, other: Any) -> None:
    assert not same_but_for_secrets(masked(one), masked(other))


def test_errors_and_warnings_of_ours_show_none() -> None:
    text = f"hub_token={SECRET} and https://ada:{SECRET.replace('/', '')}@host"
    for error in (SartorError(text), RunFolderError(text), SartorWarning(text), ConfigurationError([text, text])):
        assert SECRET[:8] not in str(error) + repr(error)
    assert SECRET[:8] not in "".join(ConfigurationError([text, "other"]).problems)
    assert RunFolderError(text).errno is None


def test_a_traceback_shows_none_of_what_an_error_came_from() -> None:
    import traceback

    class Other(Exception):
        def __str__(self) -> str:
            return f"token={SECRET}"

    def fail(inner: Exception) -> None:
        try:
            raise inner
        except Exception as error:
            raise RuntimeError(f"api_key: '{SECRET}'") from error

    for inner in (OSError(f"cannot reach http://ada:{SECRET.replace('/', '')}@host"), Other()):
        with pytest.raises(RuntimeError) as caught, masked_errors():
            fail(inner)
        shown = "".join(traceback.format_exception(caught.value))
        assert SECRET[:8] not in shown.replace("SECRET", "")
        assert ("cannot reach" in shown) == (type(inner) is OSError)


def test_masked_settings_are_json() -> None:
    assert json.loads(json.dumps(masked({"a": [1, {"token": SECRET}], "b": None}))) == {
        "a": [1, {"token": MASK}],
        "b": None,
    }


def test_a_token_that_one_run_has_and_the_other_lacks_changes_no_setting() -> None:
    from sartor.run.resume import _changed

    before = {"model_init_kwargs": {"token": MASK, "revision": "main"}, "learning_rate": 0.1}
    without = {"model_init_kwargs": {"revision": "main"}, "learning_rate": 0.1}
    names = frozenset(before)
    assert not _changed(before, without, names)
    assert _changed(before, {**without, "learning_rate": 0.2}, names)

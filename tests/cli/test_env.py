"""`sartor env`: versions and hardware, and never a secret."""

import pytest

from sartor.cli import env
from sartor.errors import ConfigurationError


def test_versions_hardware_and_variables_are_printed_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abc123")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("UNRELATED_PASSWORD", "sesame")
    monkeypatch.setenv("SARTOR_MY_PASSWORD", "sesame")
    monkeypatch.setenv("HF_ENDPOINT", "https://ada:sesame@hub.example:8080/x")
    assert env.run([]) == 0
    text = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in text.splitlines())
    for name in (
        "sartor",
        "python",
        "torch",
        "transformers",
        "datasets",
        "peft",
        "accelerate",
        "cpu",
        "cores",
        "memory",
    ):
        assert lines[name], name
    assert lines["HF_TOKEN"] == "<masked>"
    assert lines["HF_HUB_OFFLINE"] == "1"
    assert lines["TOKENIZERS_PARALLELISM"] == "false"
    assert lines["SARTOR_MY_PASSWORD"] == "<masked>"
    assert lines["HF_ENDPOINT"] == "https://<masked>@hub.example:8080/x"
    assert "hf_abc123" not in text
    assert "sesame" not in text


def test_a_missing_package_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(env, "_PACKAGES", ("no-such-package",))
    env.run([])
    assert "no-such-package" in capsys.readouterr().out


def test_arguments_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="takes no arguments"):
        env.run(["--verbose"])

"""The copy on the Hub: repositories, pushes at the end and during training, and errors that say what to do.

What comes in is a run folder and a repository's name; what goes out is a commit with what `staging` lets leave.  Kept
true: no message, cause or warning carries the token, a push that fails leaves the run folder as it was, and none waits
for ever.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import KW_ONLY, InitVar, dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sartor.errors import HubError, RunFolderError, SartorError, SartorWarning
from sartor.masking import MASK
from sartor.report import staging
from sartor.report.transfer import (
    LINE,
    TIMEOUT_S,
    GivenUpError,
    StandstillError,
    UnreachableError,
    commit_folder,
    limited,
    wait_for,
)
from sartor.wording import one_line

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

T = TypeVar("T")

_DEFECTS = (TypeError, AttributeError, NameError, AssertionError)
_LOG_IN = "Log in with `hf auth login`, set HF_TOKEN, or pass a token (hub_token=)"
_ANSWERS = {
    400: "The Hub did not take the content: the answer below says why.",
    401: f"The Hub does not know the token, or none was sent. {_LOG_IN}.",
    402: "The Hub asks for a paid plan or more storage for this: see the billing page of your account.",
    403: "The token may not write there. Use a token with write access, and a repository under your own name or an "
    "organization that you may write to (hub_model_id=).",
    404: "There is no such repository, or the token may not see it. Check its name (hub_model_id=) and the token.",
    409: "Something else is changing the repository at the same time. Push again.",
    412: "The repository has changed meanwhile. Push again.",
    413: "A file is larger than the Hub takes. Save with a smaller max_shard_size.",
    429: "The Hub limits how often it may be asked. Wait some minutes, then push again.",
}
_RECONNECT_S = (1, 2, 4)
"""Before an upload tries again to connect."""


def repository_name(output_dir: Path | str, hub_model_id: str | None = None) -> str:
    """The repository that a run is pushed to, as transformers chooses it: `hub_model_id`, else the run folder's name.

    Without a namespace it will lie under the user whose token is used; `open_repository` tells the full id.

    Raises:
        HubError: the name cannot be a repository's.
    """
    name = hub_model_id if hub_model_id is not None else Path(output_dir).absolute().name
    if not staging.is_repository_id(name):
        origin = "hub_model_id" if hub_model_id is not None else "the run folder's name"
        raise HubError(
            f"{name!r} ({origin}) cannot be the name of a repository: letters, digits, '-', '_', '.', at most 96, with "
            "at most one '/'. Set hub_model_id, for example to 'your-name/my-model'."
        )
    return name


def open_repository(
    output_dir: Path | str,
    hub_model_id: str | None = None,
    *,
    token: str | None = None,
    private: bool | None = None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """Create the repository of a run if there is none yet, and return its full id, `user/name`.

    `private` counts only for a repository that is made here; None leaves it to the account's default.

    Raises:
        HubError: the name is not valid, the Hub refused, or it cannot be reached.
    """
    name = repository_name(output_dir, hub_model_id)
    return _create(name, token, private, None, timeout_s)


def push_folder(
    folder: Path | str,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = "End of training",
    blocking: bool = True,
    allow_patterns: Iterable[str] = staging.UPLOADED,
    ignore_patterns: Iterable[str] = (),
    made: Collection[str] | None = None,
    create: bool = True,
    timeout_s: float = TIMEOUT_S,
) -> CommitInfo | Future[CommitInfo]:
    """Upload a run folder's model, tokenizer, card and metrics as one commit; nothing else leaves.

    With `blocking=False` the files are chosen and checked now, uploaded in the background in the order of the calls,
    and a Future is returned; its `result()` raises what a blocking push would have raised.  What is saved into
    `folder` meanwhile does not change the push: safetensors writes a new file and renames it.  The end of the program
    waits for such a push; Ctrl-C gives it up.  `token=None` uses the one of this machine (`hf auth login`, HF_TOKEN).
    A push ends with an error where the Hub neither takes nor sends a byte for `timeout_s` seconds.

    Only regular files in `folder` leave, and of them only those that `made` names: the files that the run has written.
    Without it, those of the model that `from_pretrained` would load (see `staging.files_to_upload`).

    Raises:
        HubError: the Hub refused, cannot be reached, or a file contains the token.
        RunFolderError: no such folder, no weights in it or those of two models, or no room for the copies of its small
            files.
    """
    folder = Path(folder)
    files = staging.files_to_upload(folder, allow_patterns, ignore_patterns, made)
    if not any(path.suffix == ".safetensors" for path in files.values()):
        raise RunFolderError(f"{folder} holds no weights (*.safetensors): save the model there before it is pushed.")
    if create:
        repo_id = _create(repo_id, token, private, folder, timeout_s)
    upload = _Upload(files, folder, repo_id, commit_message, token=token, revision=revision, timeout_s=timeout_s)
    return upload.run() if blocking else upload.start()


def push_again(folder: Path | str, repo_id: str) -> str:
    """How a user pushes a folder that is there already."""
    return f"""python -c "from sartor.report.hub import push_folder; push_folder('{folder}', '{repo_id}')\""""


@dataclass(repr=False, eq=False)  # its token must not be shown
class _Upload:
    """One commit: its files are laid out when it is made, uploaded when it runs, and deleted afterwards."""

    files: InitVar[Mapping[str, Path]]
    folder: Path
    repo_id: str
    commit_message: str | None
    _: KW_ONLY
    token: str | None
    revision: str | None
    timeout_s: float
    path_in_repo: str | None = None

    def __post_init__(self, files: Mapping[str, Path]) -> None:
        _require_online(f"push to {self.repo_id}", self.folder)
        self._stage = staging.stage(files, self.folder, _secrets(self.token))

    def run(self, is_given_up: Callable[[], bool] = lambda: False) -> CommitInfo:
        where = self.repo_id + (f", branch {self.revision}" if self.revision else "")
        try:
            return _explained(
                lambda: self._send(is_given_up), f"push to {where}", self.token, self.folder, repo_id=self.repo_id
            )
        finally:
            self.discard()

    def _send(self, is_given_up: Callable[[], bool]) -> CommitInfo:
        for pause_s in (*_RECONNECT_S, None):
            try:
                with limited(self.timeout_s, is_given_up):
                    return commit_folder(
                        _api(self.token),
                        self._stage,
                        self.repo_id,
                        path_in_repo=self.path_in_repo,
                        message=self.commit_message,
                        revision=self.revision,
                    )
            except UnreachableError:
                if pause_s is None:
                    raise
                time.sleep(pause_s)
        raise AssertionError

    def start(self) -> Future[CommitInfo]:
        job = LINE.add(self.run)
        job.add_done_callback(lambda _: self.discard())  # one that was given up before it began never runs
        return job

    def discard(self) -> None:
        """The files that were laid out are needed no more."""
        staging.discard(self._stage)


class BackgroundPushes:
    """The pushes of one run while it trains; stands where transformers keeps its `push_in_progress`.

    A push that fails does not stop the training: it is told as a warning, once, at the next push or at the end.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        """Args:
        timeout_s: without a byte in either direction, after which a push has failed.
        """
        self._timeout_s = timeout_s
        self._jobs: dict[Future[CommitInfo], _Upload] = {}

    def is_done(self) -> bool:
        """Whether nothing is under way; tells of pushes that have failed meanwhile."""
        self._tell_failures()
        return not self._jobs

    def wait_until_done(self) -> None:
        """Wait for all pushes; tells of those that failed.  What ends the waiting, a signal say, gives them up."""
        try:
            wait_for(self._jobs)
        except BaseException:
            self.give_up()
            raise
        self._tell_failures()

    def give_up(self) -> bool:
        """Wait for no push any more, also not at the end of the program; whether one was under way."""
        self._tell_failures()
        jobs, self._jobs = self._jobs, {}
        LINE.give_up(jobs)
        for upload in jobs.values():
            upload.discard()
        return bool(jobs)

    def push_checkpoint(
        self,
        checkpoint: Path | str,
        output_dir: Path | str,
        repo_id: str,
        *,
        strategy: str,
        commit_message: str,
        always_push: bool = False,
        token: str | None = None,
        revision: str | None = None,
    ) -> bool:
        """Push a checkpoint that was just saved, as `hub_strategy` says; returns whether a push was started.

        "end" pushes nothing now.  "every_save" makes the checkpoint's model the repository's, with the card and
        metrics of `output_dir`.  "checkpoint" also keeps it under `last-checkpoint`, "all_checkpoints" under its own
        name; both with its trainer_state.json.
        While an earlier push is still under way it is left out, unless `always_push`.

        Args:
            strategy: one of these four, as SFTConfig has checked.

        Raises:
            HubError, RunFolderError: as `push_folder`, for what is found before the upload starts.
        """
        checkpoint, output_dir = Path(checkpoint), Path(output_dir)
        if strategy == "end" or not (self.is_done() or always_push):
            return False
        made = staging.names_in(checkpoint)  # whole or not at all, and by one run
        model = staging.files_to_upload(checkpoint, staging.MODEL_FILES, made=made)
        about = staging.files_to_upload(output_dir, made=(staging.CARD, staging.METRICS))
        where: dict[str, Any] = {"token": token, "revision": revision, "timeout_s": self._timeout_s}
        uploads = [_Upload(model | about, output_dir, repo_id, commit_message, **where)]
        if strategy != "every_save":
            whole = staging.files_to_upload(checkpoint, (*staging.MODEL_FILES, staging.TRAINER_STATE), made=made)
            uploads.append(
                _Upload(
                    whole,
                    output_dir,
                    repo_id,
                    f"{commit_message}, checkpoint",
                    **where,
                    path_in_repo="last-checkpoint" if strategy == "checkpoint" else checkpoint.name,
                )
            )
        self._jobs.update({upload.start(): upload for upload in uploads})
        return True

    def _tell_failures(self) -> None:
        finished = [job for job in self._jobs if job.done()]
        for job in finished:
            del self._jobs[job]
        for job in finished:
            error = job.exception()
            if isinstance(error, SartorError):
                warnings.warn(f"A push during training failed. {error}", SartorWarning, stacklevel=3)
            elif error is not None:
                raise error


def base_model_license(model_id: str, token: str | None = None) -> str | None:
    """The licence that a model's page on the Hub names; None where it names none or the Hub cannot be asked."""
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode() or not staging.is_hub_id(model_id):
        return None
    try:
        action = f"read the licence of {model_id}"
        info = _explained(lambda: _api(token).model_info(model_id, timeout=10), action, token, needs_token=False)
    except HubError:  # a card without a licence is better than no card
        return None
    return next((tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")), None)


def _api(token: str | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="sartor")


def _secrets(token: str | None) -> tuple[str, ...]:
    """The tokens that must not appear anywhere: the one given and the one of this machine."""
    from huggingface_hub import get_token

    return tuple(secret for secret in (token, get_token()) if secret)


def _require_online(action: str, folder: Path | None) -> None:
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise HubError(
            f"cannot {action}: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set. Unset it first.{_what_is_safe(folder)}"
        )


def _what_is_safe(folder: Path | None, repo_id: str | None = None) -> str:
    if folder is None:
        return ""
    again = "" if repo_id is None else f" Push it again: {push_again(folder, repo_id)}"
    return f" What was to be pushed is in {folder}, unchanged.{again}"


def _create(name: str, token: str | None, private: bool | None, folder: Path | None, timeout_s: float) -> str:
    def create() -> str:
        with limited(timeout_s):
            return _api(token).create_repo(name, private=private, exist_ok=True).repo_id

    return _explained(create, f"create the repository {name}", token, folder, repo_id=name)


def _explained(
    call: Callable[[], T],
    action: str,
    token: str | None,
    folder: Path | None = None,
    needs_token: bool = True,
    repo_id: str | None = None,
) -> T:
    """What `call` returns; whatever the Hub's client raises becomes a HubError that says what to do.

    The error carries no token, and the original is neither its cause nor its context, for the Hub's answer may repeat
    what it was sent: so it is raised outside of the handler, and this is no context manager.
    """
    secrets = _secrets(token)
    _require_online(action, folder)
    if needs_token and not secrets:
        raise HubError(f"cannot {action}: there is no token. {_LOG_IN}.{_what_is_safe(folder)}")
    try:
        return call()
    except (SartorError, *_DEFECTS):
        raise
    except Exception as error:  # what the client's transports raise is no part of its interface
        message = f"cannot {action}: {_explain(error)}{_what_is_safe(folder, repo_id)}"
    for secret in secrets:
        message = message.replace(secret, MASK)
    raise HubError(message)


def _explain(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionNotFoundError

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # of one file's upload
        error = error.__cause__
    if isinstance(error, GivenUpError):
        return "it was given up."
    if isinstance(error, StandstillError):
        return (
            f"the Hub at {constants.ENDPOINT} does not answer: {error} (hub_timeout_s). Check the network, and "
            "status.huggingface.co."
        )
    if isinstance(error, HFValidationError):
        return f"{one_line(error)} Set hub_model_id to a name such as 'your-name/my-model'."
    if isinstance(error, RevisionNotFoundError):
        return "there is no such branch. Make it with `hf repos branch create`, or leave hub_revision out."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        advice = _ANSWERS.get(status, f"The Hub has a problem of its own (status {status}). Push again later.")
        answer = f" It answered: {error.server_message}" if error.server_message else ""
        return f"{advice} (status {status}){answer}"
    if isinstance(error, ValueError) and not isinstance(
        error, JSONDecodeError
    ):  # the card's metadata, checked by the Hub before the upload
        return f"the Hub does not take the model card. {one_line(error)}"
    return (
        f"the Hub at {constants.ENDPOINT} cannot be reached, or the connection broke. Check the network and "
        f"HF_ENDPOINT, then push again. ({type(error).__name__}: {one_line(error)})"
    )

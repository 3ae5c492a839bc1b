"""How every command reads what it was asked for: its own words, then the option files that they name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sartor.cli import option_file
from sartor.cli.flags import Flag, Given, keys_of, parse, tokens

if TYPE_CHECKING:
    from sartor.config import SFTConfig


@dataclass(frozen=True, slots=True)
class Request:
    """What a command that knows the options of `sartor train` was asked for."""

    model: str
    data: tuple[str, ...]
    """Sources as they were written, perhaps with weights; none where the command can do without."""
    fields: Mapping[str, Any]
    """Keyword arguments of SFTConfig that have a part in the command."""
    own: Mapping[str, Any]
    """Those of the command's own flags that were given."""
    idle: tuple[str, ...] = ()
    """Options of `sartor train` that were given and have no part in the command."""


def read_options(
    command: str, argv: Sequence[str], flags: tuple[Flag, ...], *, positional: str = ""
) -> tuple[dict[str, Any], list[Given], list[str]]:
    """Read a command line and the files it names.

    Args:
        command: as it is typed after `sartor`.
        positional: the option that a word without a name is the value of; "": there is none.

    Returns:
        The values of the options that were given, by name; the options as they were written; a sentence per problem.
    """
    givens, rest = tokens(argv, flags, takes_words=bool(positional))
    problems: list[str] = []
    options = option_file.with_files(givens, flags, problems)
    known = keys_of(flags)
    if positional and rest:
        count = len(rest) if known[positional].kind == "list" else 1
        words, rest = rest[:count], rest[count:]
        if any(known.get(given.key.replace("-", "_")) is known[positional] for given in givens):
            problems.append(f"{', '.join(map(repr, words))} and --{positional} say the same: give one of them")
        options.append(Given(positional, tuple(words)))
    problems += [f"{text!r} belongs to no option" for text in rest]
    values, unreadable = parse(options, flags, command)
    return values, options, problems + unreadable


def request_of(values: Mapping[str, Any], own: Sequence[Flag], fields: Sequence[Flag]) -> Request:
    """The values of options, sorted into what a command does with them.

    Args:
        own: flags of the command's own that have a part in it.
        fields: those of SFTConfig that have.
    """
    own_names, field_names = ({flag.name for flag in flags} for flags in (own, fields))
    return Request(
        values["model"],
        tuple(values.get("data") or ()),
        {name: value for name, value in values.items() if name in field_names},
        {name: value for name, value in values.items() if name in own_names},
        tuple(name for name in values if name not in own_names | field_names),
    )


def rows_of(request: Request, name: str, data_cache: str | None) -> Any:
    """What `SFTTrainer` takes as a data set: the rows of one source, or of several with their weights.

    Args:
        name: "train", or "eval" for the rows to evaluate on: all of each source, whatever the weights.
        data_cache: the option of this name.

    Returns:
        None where no rows to evaluate on were asked for.

    Raises:
        SartorError: what is wrong with any of the sources.
    """
    own, texts = request.own, request.data
    split, config, revision = own.get("split"), own.get("dataset_config"), own.get("dataset_revision")
    if name == "eval":
        split = own.get("eval_split")
        if own.get("eval_data") is not None:
            texts, config, revision = (own["eval_data"],), None, None
        elif split is None:
            return None

    from sartor.data.encoding import mixture
    from sartor.data.reading import sources

    pairs = [mixture.parse_source(text) for text in texts]
    if len(pairs) == 1:
        # The weight of a lone source says nothing, but may be left over from several.
        return sources.read(
            pairs[0][0], split=split, config=config, revision=revision, name=name, data_cache=data_cache
        )
    if name == "eval":
        pairs = [(source, None) for source, _ in pairs]
    return mixture.read_parts(pairs, split=split, config=config, revision=revision, name=name, data_cache=data_cache)


def configuration(request: Request, fixed: Mapping[str, Any]) -> "SFTConfig":
    """The configuration of a command that trains nothing: what was asked for, but for what the command fixes."""
    from sartor.config import SFTConfig

    args = SFTConfig(**{**request.fields, **fixed})
    if request.own.get("model_revision") is not None:
        more = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
        args.model_init_kwargs = {**more, "revision": request.own["model_revision"]}
    return args


def tokenizer_of(model: str, args: "SFTConfig") -> tuple[Any, tuple[str, ...]]:
    """The tokenizer as a training would use it, and the texts at which the model's generation stops."""
    from sartor.hf import construction
    from sartor.run import loading

    keywords = construction.model_init_kwargs(args)
    tokenizer = loading.load_tokenizer(model, keywords)
    end_tokens = loading.end_tokens(model, tokenizer, keywords)
    if args.chat_template_path is not None:
        construction.apply_template(tokenizer, str(args.chat_template_path))
    construction.set_eos(tokenizer, args.eos_token)
    return tokenizer, tuple(end_tokens)

"""Environment variables that launchers set: honoured, or named in an error before anything waits for others."""

import os

_WORLD_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANK = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SWITCHES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's distribution",
}
_TRUE = ("1", "true", "yes", "y", "on", "t")


def is_true(value: str | None) -> bool:
    """Whether an environment variable's value means yes."""
    return value is not None and value.strip().lower() in _TRUE


def environment_problems() -> list[str]:
    """One sentence for each variable that asks for what is not supported.

    transformers would start to wait for the other processes while a configuration is constructed, or ignore the
    variable silently; so this is asked first.
    """
    variables = os.environ
    problems: list[str] = []
    for name in _WORLD_SIZE:
        if _integer(variables.get(name), 1) > 1:
            problems.append(
                f"the environment variable {name}={variables[name]} says that several processes train together, which "
                "is not supported yet: start one process, without torchrun or accelerate launch"
            )
    for name in _RANK:
        if _integer(variables.get(name), 0) > 0 and not problems:
            problems.append(
                f"the environment variable {name}={variables[name]} says that this is one of several processes, which "
                "is not supported yet: start one process, without torchrun or accelerate launch"
            )
    for name, what in _SWITCHES.items():
        if is_true(variables.get(name)):
            problems.append(
                f"the environment variable {name}={variables[name]} asks for {what}, which is not supported: unset it"
            )
    backend = variables.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend not in ("", "no"):
        problems.append(
            f"the environment variable ACCELERATE_DYNAMO_BACKEND={backend} asks for compiling, which is not "
            f"supported: unset it"
        )
    return problems


def precision_problem(bf16: bool, fp16: bool) -> str | None:
    """A sentence where ACCELERATE_MIXED_PRECISION contradicts `bf16` and `fp16`, which alone decide."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    permitted = "fp16" if fp16 else "bf16" if bf16 else "no"
    if asked in ("", "no", permitted):
        return None
    return (
        f"the environment variable ACCELERATE_MIXED_PRECISION={asked} contradicts bf16={bf16}, fp16={fp16}, which "
        f"decide here: unset it, or set {asked}=True"
        if asked in ("bf16", "fp16")
        else f"the environment variable ACCELERATE_MIXED_PRECISION={asked} is not supported: unset it, and use bf16 "
        f"or fp16"
    )


def _integer(value: str | None, default: int) -> int:
    try:
        return default if value is None else int(value)
    except ValueError:
        return default

"""Who started this process: alone, or one of a group by torchrun, srun or Lightning. Imports no torch."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dualscore.errors import ConfigError

TORCHRUN = "TORCHELASTIC_RUN_ID"
SLURM_TASKS = "SLURM_NTASKS"
RUN = "DUALSCORE_RUN"
"""The folder of a run that several processes train together."""
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "JSM_NAMESPACE_RANK")
BY_LIGHTNING = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BY_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BY_SRUN = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
NODE = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a user who starts one command on each of several computers sets."""
MEETING = ("MASTER_PORT", "STANDALONE_PORT")
"""Ports that Lightning would have this computer's processes meet at, instead of a free one."""


def forget_launchers() -> None:
    """Take this process, which does not train, for one of its own, whoever started it."""
    for name in (*RANKS, "WORLD_SIZE", "SLURM_PROCID", SLURM_TASKS, TORCHRUN):
        os.environ.pop(name, None)


def in_a_group(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, srun or Lightning started this process beside others, by what each sets."""
    torchrun = all(name in variables for name in (TORCHRUN, *BY_TORCHRUN))
    return torchrun or by_srun(variables) or _by_lightning(variables)


def _by_lightning(variables: Mapping[str, str]) -> bool:
    return RUN in variables and all(name in variables for name in BY_LIGHTNING)


@contextmanager
def started_together(folder: Path, grouped: bool) -> Iterator[None]:
    """Let processes that Lightning starts for other devices inherit the run's folder, and join it."""
    if RUN in os.environ:
        yield
        return
    os.environ[RUN] = str(folder)
    if not grouped:
        forget_meeting()
    try:
        yield
    finally:
        del os.environ[RUN]


def forget_meeting() -> None:
    """Let the processes that this one will start meet at a free port, not at one that an earlier job had."""
    for name in MEETING:
        os.environ.pop(name, None)


def check_settings(variables: Mapping[str, str] = os.environ) -> None:
    """Refuse variables that Lightning reads settings from; a ConfigError names them."""
    found = [k for k in sorted(variables) if k.startswith("PL_TRAINER_") or k == "LT_CLI_USED"]
    if names := [name for name in found if variables[name]]:
        raise ConfigError(
            f"{', '.join(f'{name}={variables[name]}' for name in names)}: set in the environment, where "
            "Lightning would take settings from that the experiment does not know; "
            f"`unset {' '.join(names)}`, and give settings as trainer.KEY=VALUE"
        )


def by_srun(variables: Mapping[str, str]) -> bool:
    """Whether srun started this process as one of several tasks; a shell in a job is none."""
    several = _number(variables, SLURM_TASKS, 1) > 1
    return several and TORCHRUN not in variables and all(name in variables for name in BY_SRUN)


def check_launch(devices: int, nodes: int, variables: Mapping[str, str] = os.environ) -> bool:
    """Refuse what a launcher left in the environment where it did not start this process.

    Args:
        devices: of each computer.
        nodes: computers.
        variables: the process's.

    Returns:
        Whether a launcher started it, as one of a group that is to train.

    Raises:
        ConfigError: a variable of a launcher is there without its launcher. Lightning would believe it, and
            say nothing, or wait for processes that nobody starts. Or one that Lightning takes settings from.
    """
    check_settings(variables)
    world = devices * nodes
    if TORCHRUN in variables:
        for name in BY_TORCHRUN:
            if name not in variables:
                raise _left_over(
                    TORCHRUN, variables, f"torchrun did not start this process: {name} is missing"
                )
        _check_size("WORLD_SIZE", world, variables)
        return world > 1
    if by_srun(variables):
        _check_size(SLURM_TASKS, world, variables)
        for name in set(RANKS) & set(variables):
            raise _left_over(name, variables, "srun, which started this process, does not set it")
        return True
    if world > 1 and _by_lightning(variables):
        _check_size("WORLD_SIZE", world, variables)  # Lightning starts processes for other devices so
        return True
    if _number(variables, SLURM_TASKS, 1) > 1:
        raise _left_over(
            SLURM_TASKS, variables, "this process is not one of that many tasks: begin it with srun"
        )
    by_hand = nodes > 1 and all(name in variables for name in NODE)
    if by_hand:
        _number(variables, "MASTER_PORT")
    for name in (*RANKS, "SLURM_PROCID"):  # Lightning takes each for the rank
        if name not in variables or (by_hand and name == "NODE_RANK"):
            continue
        # 0 is true of one device; of several Lightning takes it for a process that was started with others.
        harmless = name in ("NODE_RANK", "GROUP_RANK", "SLURM_PROCID") or world == 1
        if _number(variables, name) or not harmless:
            raise _left_over(name, variables, "no launcher started this process")
    if "WORLD_SIZE" in variables:
        _check_size("WORLD_SIZE", world, variables)
    here = ("localhost", "127.0.0.1", "::1", socket.gethostname())
    if nodes == 1 < world and variables.get("MASTER_ADDR", here[0]) not in here:
        raise _left_over("MASTER_ADDR", variables, "all devices are to be on this computer")
    if nodes > 1 and not by_hand:
        raise ConfigError(
            f"trainer.nodes={nodes}: nothing starts the processes of other computers; begin with srun "
            "(dualscore submit does) or torchrun"
        )
    return nodes > 1


def _number(variables: Mapping[str, str], name: str, default: int = 0) -> int:
    value = variables.get(name, str(default))
    if not value.isascii() or not value.isdigit():
        raise _left_over(name, variables, "that is no number")
    return int(value)


def _check_size(name: str, world: int, variables: Mapping[str, str]) -> None:
    if _number(variables, name) != world:
        raise _left_over(name, variables, f"trainer.devices × trainer.nodes is {world}")


def _left_over(name: str, variables: Mapping[str, str], why: str) -> ConfigError:
    return ConfigError(
        f"{name}={variables[name]} is set in the environment, but {why}; if it is left over, `unset {name}`"
    )

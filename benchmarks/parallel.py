"""Two processes that train together, one thread each, against one."""

import os
import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dualscore.assemble import blank_statistics, build_score_model, image_shape
from dualscore.objective import dual_score_matching
from dualscore.settings.config import ExperimentConfig
from dualscore.training.optimizers import make_optimizer


class _Loss(nn.Module):
    """As Lightning does it: the whole training step runs inside DDP's forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return dual_score_matching(self.model, clean, noise, t).total.mean()  # type: ignore[arg-type]


def _train(rank: int, world: int, port: int, config: ExperimentConfig, repeats: int, out: Any) -> None:  # noqa: ANN401 - a queue
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    model = build_score_model(config, blank_statistics(image_shape(config)))
    loss = DistributedDataParallel(_Loss(model))
    optimizer = make_optimizer(model, config.optim)
    clean = torch.rand(config.data.batch_size, *image_shape(config))
    noise, t = torch.randn_like(clean), torch.full_like(clean[:, 0, 0, 0], 0.1)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(clean, noise, t).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    if rank == 0:
        out.put(statistics.median(times[1:]))
    dist.barrier()
    # Gloo's destructor holds Python's lock while it joins a thread which may still want it for the
    # last reduction: ended the ordinary way, one process in three hung here for ever.
    os._exit(0)


def _seconds(world: int, config: ExperimentConfig, repeats: int) -> float:
    context = mp.get_context("spawn")
    out = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_train, (world, port, config, repeats, out), nprocs=world)  # type: ignore[no-untyped-call]
    seconds: float = out.get()
    return seconds


def parallel_figures(config: ExperimentConfig, repeats: int) -> dict[str, float]:
    """The rate of two processes of one thread against twice that of one, in turns.

    Args:
        config: the experiment; each process has a batch of its size.
        repeats: steps timed each time.

    Returns:
        The figure by name.
    """
    ratios = []
    for _ in range(2):
        one, two = _seconds(1, config, repeats), _seconds(2, config, repeats)
        ratios.append(one / two)
    return {"two processes, of twice the rate of one": statistics.median(ratios)}

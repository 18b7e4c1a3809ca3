"""What the network runs on: the device, its precision, memory, and the processes that torchrun starts."""

from __future__ import annotations

import ctypes
import io
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tinybeauty.errors import UserError, one_line
from tinybeauty.workers import count_cores


@dataclass(frozen=True)
class Team:
    """The processes of one `torchrun` that train together; without torchrun, one alone.

    Attributes:
        rank: number of this process.
        size: how many there are.
        local_rank: number on this machine; the one with 0 draws demo pairs and decodes for the others.
        local_size: how many are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that validates, writes, logs and draws."""
        return self.rank == 0

    @contextmanager
    def local_first(self) -> Iterator[None]:
        """Let the first process of this machine go ahead; the others follow when it is done."""
        if self.size > 1 and self.local_rank:
            dist.barrier()
        yield
        if self.size > 1 and not self.local_rank:
            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def average(self, values: Tensor) -> Tensor:
        """Return the mean over all processes, in place."""
        return self.all_reduce(values).div_(self.size)


ALONE = Team()


def choose_threads(team: Team) -> None:
    """Let PyTorch use its share of the cores that this process may use; a person's OMP_NUM_THREADS wins.

    PyTorch counts the machine's cores, and a container may have fewer. More threads are never asked for
    where there is one process: the network's bytes depend on their number.
    """
    share = max(1, count_cores() // team.local_size)
    wanted = os.environ.get("OMP_NUM_THREADS")
    if (team.size > 1 and wanted in (None, "1")) or (
        wanted is None and share < torch.get_num_threads()
    ):  # 1 is torchrun's own, too few where there are more cores
        torch.set_num_threads(share)


@contextmanager
def join_team() -> Iterator[Team]:
    """Give the team that `torchrun` has started this process in; without torchrun, a team of one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(os.environ.get(name, "").isdecimal() for name in names):
        choose_threads(ALONE)
        yield ALONE
        return
    team = Team(*(int(os.environ[name]) for name in names))
    if team.size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    choose_threads(team)
    with ExitStack() as stack:
        if not team.leads:  # rank 0 speaks for all
            stack.enter_context(redirect_stdout(io.StringIO()))
        yield team
    if team.size > 1:  # not after an error: torchrun ends the others, and leaving would wait for them
        dist.destroy_process_group()


def has_fast_bfloat16(name: str) -> bool:
    """Return whether a kind of device has bfloat16 instructions; elsewhere it is emulated, and slower."""
    if name == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return name == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_device(name: str, precision: str, team: Team) -> tuple[torch.device, torch.dtype]:
    """Return the device and the precision of the convolutions, and print the reason for both.

    Args:
        name: `auto` (the best found), `cuda`, `mps` or `cpu`.
        precision: `auto` (the fastest), `bfloat16` or `float32`.
        team: the processes that share this machine's devices.

    Raises:
        UserError: the device is not there, or torchrun has started more processes than there are GPUs.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [kind for kind in there if there[kind]]
    device_why, precision_why = "as configured", "as configured"
    if name == "auto":
        name, device_why = found[0], "the best found"
    if name not in found:
        raise UserError(f"device is {name}, which is not there (found: {', '.join(found)}); set device: auto")
    if precision == "auto" and has_fast_bfloat16(name):
        precision, precision_why = "bfloat16", "the fastest here"
    elif precision == "auto":
        precision, precision_why = "float32", "no fast bfloat16 here"
    what = torch.cuda.get_device_name() if name == "cuda" else f"{name}, {torch.get_num_threads()} threads"
    print(f"device    {what} ({device_why}); {precision} ({precision_why})")
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, where a validation says so
    if name != "cuda":
        return torch.device(name), getattr(torch, precision)
    if team.local_size > torch.cuda.device_count():
        raise UserError(
            f"torchrun has started {team.local_size} processes here for {torch.cuda.device_count()} GPUs; "
            "give it as many as there are, or set device: cpu"
        )
    torch.cuda.set_device(team.local_rank)
    return torch.device(name, team.local_rank), getattr(torch, precision)


def can_compile(device: torch.device) -> bool:
    """Return whether torch.compile works here, which wants a C++ compiler, headers, a home; say so if not."""
    try:
        image = torch.ones(2, 8, 8, device=device, requires_grad=True)
        torch.compile(lambda image: (image * 2).relu())(image).sum().backward()
    except Exception as error:  # what it is built of raises a dozen kinds
        reason = textwrap.shorten(one_line(error), 100)
        print(f"          torch.compile does not work here ({reason}): training without it")
        return False
    return True


class Recording(NamedTuple):
    """A CUDA graph, and the tensors that it reads, leaves as gradients and returns."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    gradients: list[Tensor | None]
    results: dict[str, Tensor]


class Replay:
    """A backward pass on a GPU, its kernels recorded (a CUDA graph) and from then on launched as one.

    A step of this network is hundreds of small kernels: to launch them one by one from Python takes twice as
    long as to run them. Numbers of Python's that the pass uses stay what they were when it was recorded.

    Args:
        backward: takes tensors, leaves gradients in the parameters, returns tensors that need none.
        parameters: those.
    """

    EAGER = 10  # calls with a shape before it is recorded: by then BatchNorm's momentum is what it stays

    def __init__(self, backward: Callable[..., dict[str, Tensor]], parameters: list[nn.Parameter]) -> None:
        self.backward, self.parameters = backward, parameters
        self.calls: Counter[torch.Size] = Counter()
        self.recordings: dict[torch.Size, Recording] = {}
        self.pool = torch.cuda.graph_pool_handle()  # they run one after the other, in the same memory

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Do what `backward` does; what is returned holds until the next call."""
        shape = inputs[0].shape
        self.calls[shape] += 1
        if shape not in self.recordings:
            if self.calls[shape] <= self.EAGER or not self.has_room():
                return self.backward(*inputs)
            self.recordings[shape] = self.record(inputs)
        recording = self.recordings[shape]
        for kept, given in zip(recording.inputs, inputs, strict=True):
            kept.copy_(given)
        recording.graph.replay()
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.results

    def has_room(self) -> bool:
        """Return whether memory is free as much as was ever used: a recording keeps its own."""
        return torch.cuda.mem_get_info()[0] > torch.cuda.max_memory_allocated()

    def record(self, inputs: tuple[Tensor, ...]) -> Recording:
        """Record the pass for inputs of these shapes and memory layouts; it does not run."""
        kept, graph = [torch.empty_like(given) for given in inputs], torch.cuda.CUDAGraph()
        # thread_local: another thread reads the next batch meanwhile.
        with torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local"):
            results = self.backward(*kept)
        return Recording(graph, kept, [parameter.grad for parameter in self.parameters], results)


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks: it gives large ones back and faults them in again in every step."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block by mmap, which would be unmapped when freed
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never give the top of the heap back
    except (OSError, TypeError, AttributeError):
        pass  # not glibc

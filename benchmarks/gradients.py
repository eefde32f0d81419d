"""Sums of the gradients of a stage over its copies, beside other ways to sum them.

    PYTHONPATH=. python benchmarks/gradients.py --million 300 --dtype bfloat16

Parameters are those of layers with a hidden size of 1,024: matrices of 1 to 4 million values and vectors. Every way is
held against the sum in float64 first: ``error`` is the largest, in units of the last place that the dtype has in the
sum of the absolute values. Times are those of the slowest rank, the median of the repeats: until the GPU is done, and
until the host goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hetsched.parallel.copies import TorchCopies, copies_of
from hetsched.parallel.data import sum_gradients
from hetsched.runtime.report import gather_objects
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.train.launch import launch

SHAPES = [(1024, 1024)] * 4 + [(4096, 1024), (4096,), (1024, 4096)] + [(1024,)] * 5
"""Of one layer."""
Way = Callable[[Sequence[nn.Parameter]], object]


def by_all_reduce(parameters: Sequence[nn.Parameter], *, dtype: torch.dtype | None = None) -> None:
    """As one message of a dtype, by default their own, in which every addition is rounded."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    together = torch.cat([gradient.reshape(-1) for gradient in gradients]).to(dtype or gradients[0].dtype)
    dist.all_reduce(together)
    parts = torch.split(together.to(gradients[0].dtype), [gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(of) for part, of in zip(parts, gradients, strict=True)])


def ways() -> dict[str, Way]:
    """All of them, on this rank's GPU; what connects them is made here."""
    group = dist.group.WORLD
    assert group is not None
    return {
        "hetsched": partial(sum_gradients, copies=copies_of(group, device=torch.device("cuda", dist.get_rank()))),
        "hetsched, torch's collectives": partial(sum_gradients, copies=TorchCopies(group)),
        "all-reduce in float32": partial(by_all_reduce, dtype=torch.float32),
        "all-reduce in their dtype": by_all_reduce,
    }


class Case:
    """Gradients of one rank, and what they add up to.

    Args:
        million: values, at least.
        dtype: of the gradients.
    """

    def __init__(self, million: float, dtype: torch.dtype) -> None:
        rank, device = dist.get_rank(), torch.device("cuda", dist.get_rank())
        num_layers = max(1, round(1e6 * million / sum(int(np.prod(shape)) for shape in SHAPES)))
        shapes = SHAPES * num_layers
        self.parameters = [nn.Parameter(torch.empty(shape, dtype=dtype, device=device)) for shape in shapes]
        self.made = [self._random(shape, rank, n, dtype) for n, shape in enumerate(shapes)]
        for p in self.parameters:
            p.grad = torch.empty_like(p)

    def _random(self, shape: tuple[int, ...], rank: int, number: int, dtype: torch.dtype) -> Tensor:
        device = torch.device("cuda", dist.get_rank())
        generator = torch.Generator(device).manual_seed(1000 * rank + number)
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    @property
    def num_values(self) -> int:
        return sum(p.numel() for p in self.parameters)

    def begin(self) -> None:
        """Gradients as they were, and all ranks here."""
        torch._foreach_copy_([p.grad for p in self.parameters if p.grad is not None], self.made)
        dist.all_reduce(torch.zeros(1, device=self.parameters[0].device))
        torch.cuda.synchronize()

    def error(self, way: Way) -> float:
        """The largest; see the module."""
        self.begin()
        way(self.parameters)
        worst = 0.0
        for number, p in list(enumerate(self.parameters))[:: max(1, len(self.parameters) // 24)]:
            others = [self._random(tuple(p.shape), rank, number, p.dtype) for rank in range(dist.get_world_size())]
            together = torch.stack([of.double() for of in others])
            unit = torch.finfo(p.dtype).eps / 2 * torch.exp2(torch.frexp(together.abs().sum(0))[1].double())
            assert p.grad is not None
            worst = max(worst, float(((p.grad.double() - together.sum(0)).abs() / unit).max()))
        return worst

    def milliseconds(self, way: Way) -> tuple[float, float]:
        """Of the GPU and of the host, on this rank."""
        self.begin()
        began = time.perf_counter()
        way(self.parameters)
        held = time.perf_counter()
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began), 1e3 * (held - began)


def work(args: argparse.Namespace) -> None:
    """One rank."""
    torch.cuda.set_device(dist.get_rank())
    case = Case(args.million, getattr(torch, args.dtype))
    for name, way in ways().items():
        error = max(gather_objects(case.error(way), group=None))
        times = [max(gather_objects(case.milliseconds(way), group=None)) for _ in range(args.warmup + args.repeats)]
        median, host = (round(float(x), 3) for x in np.median(times[args.warmup :], axis=0))
        if dist.get_rank() == 0:
            line = {"way": name, "values": case.num_values, "tensors": len(case.parameters), "dtype": args.dtype}
            print(json.dumps({**line, "error": round(error, 3), "ms": median, "host_ms": host}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", type=float, default=300, help="values, at least")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    parser.add_argument("--commit", default="unknown", help="what to print as the commit")
    args = parser.parse_args()
    if args.gpus < 2 or torch.cuda.device_count() < args.gpus:
        print("benchmarks/gradients.py: needs two GPUs or more; nothing was measured", file=sys.stderr)
        return
    setup = {"gpu": torch.cuda.get_device_name(), "num_gpus": args.gpus, "torch": torch.__version__}
    print(json.dumps({**setup, "commit": args.commit}), flush=True)
    launch(work, args, num_ranks=args.gpus, backend=BACKEND)


if __name__ == "__main__":
    main()

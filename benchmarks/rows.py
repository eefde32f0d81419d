"""Row kernels against a plain copy and against what people write today, on one GPU.

    python benchmarks/rows.py --hidden 1024 2048 4096 8192

Bandwidth counts each byte that must move once: what is kept is read once and written once. The copy is a
device-to-device copy of as many bytes as the merge writes, timed in the same run. Every result is checked first; a
wrong one ends the run before any time is printed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import triton as triton_package
from torch import Tensor

from hetsched import ops
from hetsched.kernels.rows import naive, triton, triton_sum


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median and the 20th and 80th percentiles."""

    median: float
    p20: float
    p80: float


@dataclass(frozen=True)
class Case:
    """A microbatch's merge; ``order`` comes from the host and ``inverse`` from the forward."""

    table: Tensor
    ids: Tensor
    slot: Tensor
    rows: Tensor
    order: Tensor
    inverse: Tensor

    @property
    def num_bytes_forward(self) -> int:
        return 2 * self.ids.shape[0] * self.table.shape[1] * self.table.element_size()

    @property
    def num_bytes_backward(self) -> int:
        num_unique = torch.unique(self.ids[self.slot < 0]).numel()
        moved = self.ids.shape[0] + self.rows.shape[0] + num_unique
        return moved * self.table.shape[1] * self.table.element_size()


def measure(call: Callable[[], object], *, repeats: int) -> Timing:
    """Times ``call`` with events; a kernel that idles first hides the host's launches."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(2_000_000)  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    times.sort()
    return Timing(times[repeats // 2], times[repeats // 5], times[repeats * 4 // 5])


def make_case(num_tokens: int, num_rows: int, hidden: int, *, vocab_size: int, is_skewed: bool = False) -> Case:
    """Images of 500 rows at random places of the sequence; ids uniform, or skewed as a language's words are."""
    run = 500
    num_runs = num_rows // run
    gaps = torch.randint(0, num_tokens - num_rows + 1, (num_runs,)).sort().values
    starts = gaps + torch.arange(num_runs) * run
    where = (starts[:, None] + torch.arange(run)).flatten()
    slot = torch.full((num_tokens,), -1)
    slot[where] = torch.arange(num_runs * run)
    ids = torch.randint(0, vocab_size, (num_tokens,))
    if is_skewed:
        # Density 1/id, Zipf's law: exp of a uniform variable.
        ids = (torch.rand(num_tokens) * math.log(vocab_size)).exp().long().clamp_(max=vocab_size - 1)
    make = {"dtype": torch.bfloat16, "device": "cuda"}
    return Case(
        table=torch.randn(vocab_size, hidden, **make),  # type: ignore[call-overload]
        ids=ids.cuda(),
        slot=slot.cuda(),
        rows=torch.randn(num_runs * run, hidden, **make),  # type: ignore[call-overload]
        order=naive.text_order(ids, slot).int().cuda(),
        inverse=naive.invert(slot, num_runs * run, is_slot=True).cuda(),
    )


def peers(case: Case) -> dict[str, Callable[[], Tensor]]:
    """What people write today."""
    mask = (case.slot >= 0)[:, None]
    where = (case.slot >= 0).nonzero().squeeze(1)

    def boolean_index_put() -> Tensor:
        out = F.embedding(case.ids, case.table)
        out[case.slot >= 0] = case.rows
        return out

    return {
        "masked_scatter": lambda: F.embedding(case.ids, case.table).masked_scatter(mask, case.rows),
        "boolean index put": boolean_index_put,
        "index_copy": lambda: F.embedding(case.ids, case.table).index_copy_(0, where, case.rows),
    }


def check(case: Case, grad: Tensor, table_grad: Tensor) -> None:
    """Every path gives the same rows; the gradients are the naive ones."""
    truth = naive.merge(case.table, case.ids, case.slot, [case.rows], vocab_start=0, vocab_size=case.table.shape[0])
    for name, call in {"merge": lambda: ops.merge(case.table, case.ids, case.slot, [case.rows]), **peers(case)}.items():
        if not torch.equal(call(), truth):
            raise SystemExit(f"{name} gives wrong rows; nothing was timed")
    rows_grad = backward(case, grad, table_grad)
    sums = naive.sum_rows(grad.float(), case.ids, case.slot, num_rows=case.table.shape[0], vocab_start=0)
    if not torch.equal(rows_grad, grad[case.slot >= 0]):
        raise SystemExit("the rows' gradient is wrong; nothing was timed")
    if not torch.allclose(table_grad.float(), sums, rtol=2**-8, atol=1e-4):
        raise SystemExit("the table's gradient is wrong; nothing was timed")
    ops.raise_faults("cuda")


def backward(case: Case, grad: Tensor, table_grad: Tensor) -> Tensor:
    """Both gradients of the merge; the table's is zeroed and its ids are sorted beforehand."""
    triton_sum.sum_rows_into(table_grad, grad, case.ids, case.slot, case.order, vocab_start=0)
    return triton.take(grad, case.inverse)


def run_case(case: Case, *, repeats: int) -> dict[str, object]:
    """Times of the copy, the merge, its peers and its backward, and the fractions that matter."""
    grad = torch.randn(case.ids.shape[0], case.table.shape[1], device="cuda").bfloat16()
    table_grad = torch.zeros_like(case.table)
    check(case, grad, table_grad)
    out = torch.empty_like(grad)
    copy = measure(lambda: out.copy_(grad), repeats=repeats)
    merge = measure(lambda: ops.merge(case.table, case.ids, case.slot, [case.rows]), repeats=repeats)
    back = measure(lambda: backward(case, grad, table_grad), repeats=repeats)
    others = {name: measure(call, repeats=max(5, repeats // 5)) for name, call in peers(case).items()}
    copy_rate = 2 * out.numel() * out.element_size() / copy.median
    return {
        "copy_gb_per_s": copy_rate / 1e6,
        "merge_of_copy": case.num_bytes_forward / merge.median / copy_rate,
        "backward_of_copy": case.num_bytes_backward / back.median / copy_rate,
        "merge_over_masked_scatter": others["masked_scatter"].median / merge.median,
        "ms": {name: asdict(t) for name, t in {"copy": copy, "merge": merge, "backward": back, **others}.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/rows.py needs a GPU: nothing was measured", file=sys.stderr)
        return
    torch.manual_seed(0)
    where = Path(__file__).resolve().parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=where, capture_output=True, text=True)
    header = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton_package.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "tokens": args.tokens,
        "rows": args.rows,
        "vocab": args.vocab,
        "dtype": "bfloat16",
    }
    print(json.dumps(header))
    for hidden, is_skewed in itertools.product(args.hidden, (False, True)):
        case = make_case(args.tokens, args.rows, hidden, vocab_size=args.vocab, is_skewed=is_skewed)
        result = {"hidden": hidden, "ids": "skewed" if is_skewed else "uniform", **run_case(case, repeats=args.repeats)}
        print(json.dumps(result), flush=True)
        del case
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

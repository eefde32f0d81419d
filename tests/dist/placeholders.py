"""A model of one stage that merges rows into text; its placeholders may be wrong. And the steps that meet them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hetsched import Batch, Engine, JobError, Sample, StageMeta, ops, parse_plan

NUM_TOKENS, NUM_ROWS, HIDDEN = 11, 5, 8
Merge = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def merge_at_once(table: Tensor, ids: Tensor, slot: Tensor, rows: Tensor) -> Tensor:
    """The CPU path, which raises where it finds the fault."""
    return ops.merge(table, ids, slot, [rows])


def merge_recorded(table: Tensor, ids: Tensor, slot: Tensor, rows: Tensor) -> Tensor:
    """A kernel in the interpreter: records the fault and goes on, as on a GPU."""
    from hetsched.kernels.rows import triton

    triton.invert(slot, rows.shape[0], is_slot=True)
    return ops.gather(table, ids)


def merge_on_gpu(table: Tensor, ids: Tensor, slot: Tensor, rows: Tensor) -> Tensor:
    """The same step with its rows on a GPU."""
    return ops.merge(table.cuda(), ids.cuda(), slot.cuda(), [rows.cuda()]).cpu()


class Text(nn.Module):
    """Embedding and loss; its third token is filled by row ``slot``."""

    def __init__(self, merge: Merge, *, slot: int) -> None:
        super().__init__()
        self.merge, self.slot = merge, slot
        self.table = nn.Parameter(torch.ones(7, HIDDEN, dtype=torch.float64))

    def forward(self, rows: Tensor | None, meta: StageMeta) -> tuple[Tensor, Tensor]:
        ids = meta.inputs["ids"]
        slot = torch.full_like(ids, -1)
        slot[2:3] = self.slot
        merged = self.merge(self.table, ids, slot, torch.zeros(NUM_ROWS, HIDDEN, dtype=torch.float64))
        return merged.sum(), torch.tensor(len(meta.cu_seqlens) - 1)


class TextSource:
    """Samples of text alone."""

    def describe(self, index: int) -> Sample:
        return Sample(index, NUM_TOKENS, 1)

    def load_sample(self, index: int) -> Mapping[str, Tensor]:
        return {"ids": torch.arange(NUM_TOKENS) % 7}

    def load_item(self, module: str, key: int) -> Mapping[str, Tensor]:
        raise AssertionError("there are no items")


def make_engine(merge: Merge, *, bad_rank: int | None, num_ranks: int) -> Engine:
    """An engine on ``num_ranks`` ranks, of which one may be given a slot that no row has."""
    plan = parse_plan(f"""
name = "placeholders"
world_size = {num_ranks}
microbatches = 2
dtype = "float64"
schedule.pipeline = "1f1b"
modules.llm = {{ hidden = {HIDDEN}, first_rank = 0, layout.dp = {num_ranks} }}
""")
    slot = 9 if dist.get_rank() == bad_rank else 3
    return Engine(plan, {"llm": lambda stage, mesh: Text(merge, slot=slot)}, timeout_s=30.0)


def words_of_a_step(merge: Merge, bad_rank: int | None, is_training: bool, num_ranks: int) -> list[str]:
    """What two steps on this rank raise, the second one with all placeholders right; "" where nothing."""
    engine = make_engine(merge, bad_rank=bad_rank, num_ranks=num_ranks)
    run = engine.step if is_training else engine.evaluate
    words = []
    for _ in range(2):
        try:
            run(Batch.of(TextSource(), range(2 * num_ranks)))
            words.append("")
        except (ValueError, JobError) as error:
            words.append(str(error))
        engine.stages["llm", 0].slot = 3  # type: ignore[assignment]
    return words

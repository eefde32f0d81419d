"""A model and a loop of one's own: which of four clips has the highest tone? Two ranks encode, a third judges.

Run: torchrun --nproc-per-node 3 examples/custom_trainer.py
"""

import torch
import torch.distributed as dist
from torch import nn

from hetsched import Batch, Engine, Item, Placeholder, Sample, parse_plan

PLAN = """
name = "tones"
world_size = 3
microbatches = 4
modules = { audio = { hidden = 32, first_rank = 0, layout.dp = 2 }, judge = { hidden = 32, first_rank = 2 } }
boundaries = [{ producer = "audio", consumer = "judge" }]
"""
FRAMES, BANDS, CLIPS = 6, 16, 4


class Tones:
    """Sample i has CLIPS clips; its label is the clip with the highest tone."""

    def describe(self, index):
        clips = [Item("audio", CLIPS * index + i, num_inputs=FRAMES, num_rows=1) for i in range(CLIPS)]
        return Sample(index, num_tokens=CLIPS, weight=1, placeholders=tuple(map(Placeholder, clips, range(CLIPS))))

    def tone(self, key):
        return torch.rand((), generator=torch.Generator().manual_seed(key)) * (BANDS - 1)

    def load_sample(self, index):
        tones = torch.stack([self.tone(CLIPS * index + i) for i in range(CLIPS)])
        return {"is_highest": (tones == tones.max()).float()}

    def load_item(self, module, key):
        return {"spectrum": torch.exp(-((torch.arange(BANDS) - self.tone(key)) ** 2)).repeat(FRAMES, 1)}


class Audio(nn.Module):
    """One row per clip, from the mean over its frames."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(BANDS, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, rows, meta):
        return self.net(meta.inputs["spectrum"].unflatten(0, (-1, FRAMES)).mean(1))


class Judge(nn.Module):
    """A score per clip; cross-entropy over the clips of a sample."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(32, 1)

    def forward(self, rows, meta):
        scores = self.score(meta.boundary["audio"].rows).view(-1, CLIPS)
        truth = meta.inputs["is_highest"].view(-1, CLIPS)
        return nn.functional.cross_entropy(scores, truth, reduction="sum"), len(truth)


def main(steps=60):
    torch.manual_seed(0)  # replicas start from the same weights
    engine = Engine(parse_plan(PLAN), {"audio": lambda stage, mesh: Audio(), "judge": lambda stage, mesh: Judge()})
    optimizer = torch.optim.SGD(engine.parameters(), lr=0.3, momentum=0.9)
    losses = []
    for step in range(steps):
        losses.append(engine.step(Batch.of(Tones(), range(32 * step, 32 * step + 32))).loss)
        optimizer.step()
    if dist.get_rank() == 0:
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()

# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
The model of ``distributed.py`` as a Lightning module
=====================================================

Lightning starts the processes, wraps the module in DistributedDataParallel and shards the data;
here is only what it cannot know: the loss, the optimiser, and that each rank needs a random state
of its own (``seed_everything`` gives all of them the same one).

    python examples/pyro/distributed_lightning.py --devices 2 --loss adversarial
"""

from __future__ import annotations

import argparse

import pyro
import torch
from distributed import build, make_optimizer
from studies.distributed_study import digits, parse_args, write_summary
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

try:
    import lightning as L
except ImportError as error:
    raise SystemExit(
        f"This example needs the extra 'lightning' ({error}). "
        "Install it with: pip install 'pyro-spread[pyro,lightning]'"
    ) from error


class LitLoss(L.LightningModule):
    """A loss with its model, guide and critic."""

    def __init__(self, args, objective):
        super().__init__()
        self.args, self.objective = args, objective

    def on_fit_start(self):
        # After the params are made, which are the same on all ranks.
        pyro.set_rng_seed(self.args.seed + self.global_rank)

    def training_step(self, batch):
        loss = self.objective(*batch)
        self.log("loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return make_optimizer(self.args, self.objective)


def main(args, devices):
    train, test = (torch.from_numpy(images) for images in digits())
    module = LitLoss(args, build(args, len(train), train.shape[1]))
    batch_size = args.batch_size // devices
    loader = DataLoader(TensorDataset(train), batch_size, shuffle=True, drop_last=True)
    trainer = L.Trainer(
        accelerator="gpu" if args.cuda else "cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=args.num_steps,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=not args.smoke_test,
    )
    trainer.fit(module, loader)
    params = nn.utils.parameters_to_vector(module.parameters()).detach()
    told = torch.stack([params.norm(), torch.randn((), device=params.device)])
    norms, draws = trainer.strategy.all_gather(told).reshape(-1, 2).T
    if trainer.is_global_zero:
        with torch.no_grad():
            held_out = float(module.objective(test.to(params.device)))
        write_summary(
            args,
            world_size=trainer.world_size,
            steps=trainer.global_step,
            held_out_loss=held_out,
            params_norm_of_each_rank=norms.tolist(),
            next_draw_of_each_rank=draws.tolist(),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--devices", type=int, default=1)
    mine, rest = parser.parse_known_args()
    main(parse_args(__doc__.strip().split("\n")[0], rest), mine.devices)

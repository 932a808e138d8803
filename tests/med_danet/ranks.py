"""One of two ranks; in a module of its own, which a spawned process can import."""

import os

import torch


def train_one_rank(rank, folder, folders):
    """Three epochs with the rank's own batches; nnU-Net's own set-up of DDP needs CUDA, so that it is made here."""
    torch.set_num_threads(1)
    os.environ.update(folders)
    from contract.trainer import STRIDES, TrainerContract
    from med_danet.small import OPTIONS, TWO
    from med_danet.small import arch_kwargs as tiny_kwargs

    data, weights = [], []

    class Rank(TrainerContract):
        trainer = "MedDANetTrainer"
        options = OPTIONS
        arch_kwargs = tiny_kwargs(STRIDES, TWO)

        def batch(self, trainer, number):
            batch = super().batch(trainer, 10_000 * rank + number)
            data.append(float(batch["data"].sum()))
            return batch

    test = Rank()
    trainer = test.build()
    trainer.initialize()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    trainer.is_ddp, trainer.local_rank = True, rank
    trainer.network = torch.nn.parallel.DistributedDataParallel(trainer.network)
    for _ in range(3):
        test.run_epoch(trainer)
        weights.append({name: p.detach().clone() for name, p in trainer.net.named_parameters()})
    torch.save({"weights": weights, "data": data, "epochs": trainer.current_epoch}, f"{folder}/rank{rank}")
    torch.distributed.destroy_process_group()

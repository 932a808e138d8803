"""One of two ranks; in a module of its own, which a spawned process can import."""

import os

import torch


def train_one_rank(rank, folder, folders):
    """Three epochs with the rank's own batches, with labels of both kinds.

    nnU-Net's own set-up of DDP needs CUDA, so that it is made here.
    """
    torch.set_num_threads(1)
    os.environ.update(folders)
    from contract.trainer import STRIDES, TrainerContract
    from med_danet.small import OPTIONS, TWO, Cases
    from med_danet.small import arch_kwargs as tiny_kwargs

    data = []

    class Rank(TrainerContract):
        trainer = "MedDANetTrainer"
        options = OPTIONS
        arch_kwargs = tiny_kwargs(STRIDES, TWO)

        def batch(self, trainer, number):
            batch = super().batch(trainer, 10_000 * rank + number)
            data.append(float(batch["data"].sum()))
            return batch

    test, trainers, found = Rank(), {}, {}
    for kind in ("batch", "once"):
        trainers[kind] = test.build(test.handmade(labels=kind))
        trainers[kind].initialize()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for kind, trainer in trainers.items():
        weights = []
        trainer.get_tr_and_val_datasets = lambda: (Cases(), None)
        trainer.is_ddp, trainer.local_rank = True, rank
        trainer.network = torch.nn.parallel.DistributedDataParallel(trainer.network)
        for _ in range(3):
            test.run_epoch(trainer)
            weights.append({name: p.detach().clone() for name, p in trainer.net.named_parameters()})
        found[kind] = {"weights": weights, "data": list(data), "epochs": trainer.current_epoch}
        data.clear()
    found["once"]["labels"] = trainer._labelled.labels
    torch.save(found, f"{folder}/rank{rank}")
    torch.distributed.destroy_process_group()

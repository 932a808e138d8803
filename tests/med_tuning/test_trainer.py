"""MedTuningTrainer keeps the trainer contract; what is loaded when, what is stored and how, is tested here."""

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from contract.on_request import thorough
from contract.trainer import COMPILED, STOCK_COMMANDS, STRIDES, TrainerContract, assert_equal, checkpoint
from end_to_end.stock import Workspace, segmentations
from med_tuning.training import BACKBONE, OPTIONS, SETTINGS, arch_kwargs

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_json
from nnunet_ext.med_tuning.weights import sha256_of
from nnunet_ext.trainers.base import ExtTrainer
from nnunet_ext.weights.checkpoints import read_checkpoint

FROZEN = "backbone.blocks.2.mlp.fc1.weight"


def weights_file(path):
    """Weights of a backbone as timm would have saved them."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        torch.save(timm.create_model(BACKBONE, pretrained=False, num_classes=2, **SETTINGS).state_dict(), path)
    return torch.load(path)


class TestMedTuningTrainer(TrainerContract, on_request=(*STOCK_COMMANDS, COMPILED)):
    trainer = "MedTuningTrainer"
    planner = "MedTuningPlanner"
    plans = "MedTuningPlans"
    arch_kwargs = arch_kwargs(STRIDES)
    options = OPTIONS

    def tiny(self, workspace, name="TinyPlans", **options):
        words = super().tiny(workspace, name, **{"save_every": 1, **options})
        plans = workspace.plans(name)
        planar = plans["configurations"].get("2d")
        if planar is not None:
            deep = plans["configurations"]["3d_fullres"]
            planar.update({"patch_size": [32, 32], "batch_size": 4, "nnunet_ext": deep["nnunet_ext"]})
            planar["architecture"]["arch_kwargs"] = arch_kwargs([stride[1:] for stride in STRIDES], patch_size=[32, 32])
            workspace.write_plans(plans, name)
        return words

    @pytest.fixture
    def file(self, workspace):
        return weights_file(workspace.root / "weights.pth")

    def pretrained(self, workspace, **options):
        return self.handmade(pretrained=True, weights_file=str(workspace.root / "weights.pth"), **options)

    # the weights

    def test_a_new_training_takes_the_weights_and_says_so(self, workspace, file):
        trainer = self.build(self.pretrained(workspace))
        trainer.initialize()
        loaded = trainer.network.state_dict()[FROZEN]
        assert torch.equal(loaded, file[FROZEN.removeprefix("backbone.")].half().float())
        digest = sha256_of(workspace.root / "weights.pth")
        plans = trainer.plans_manager.plans["configurations"]["3d_fullres"]
        assert plans["nnunet_ext"]["weights_sha256"] == digest
        trainer.save_checkpoint(str(workspace.root / "a.pth"))
        saved = read_checkpoint(workspace.root / "a.pth")
        assert saved["nnunet_ext"]["state"]["weights"] == {
            "backbone": BACKBONE, "source": "file weights.pth", "sha256": digest, "tensors": 53,
        }  # fmt: skip
        assert digest in (workspace.model_fold(trainer) / os.path.basename(trainer.log_file)).read_text()

    def test_without_weights_the_seed_decides(self, workspace, file):
        networks = []
        for plans in (self.pretrained(workspace), self.handmade()):
            trainer = self.build(plans)
            trainer.initialize()
            networks.append(trainer.network.state_dict())
        assert not torch.equal(networks[0][FROZEN], networks[1][FROZEN])
        head = "decoder.seg_layers.0.weight"
        assert torch.equal(networks[0][head], networks[1][head])

    def test_continuing_needs_no_weights_file(self, workspace, file):
        trainer = self.build(self.pretrained(workspace))
        trainer.initialize()
        self.run_epoch(trainer)
        path = str(workspace.root / "latest.pth")
        trainer.save_checkpoint(path)
        before = deepcopy(trainer.network.state_dict())
        os.remove(workspace.root / "weights.pth")
        resumed = self.build({**self.pretrained(workspace), "continue_training": True})
        resumed.load_checkpoint(path)
        assert_equal(resumed.network.state_dict(), before)
        assert resumed.weights == trainer.weights

    def test_validation_of_a_finished_fold_needs_no_weights_file(self, workspace, file):
        trainer = self.build(self.pretrained(workspace))
        trainer.initialize()
        fold = workspace.model_fold(trainer)
        trainer.save_checkpoint(str(fold / "checkpoint_final.pth"))
        os.remove(workspace.root / "weights.pth")
        self.build(self.pretrained(workspace)).load_checkpoint(str(fold / "checkpoint_final.pth"))
        with pytest.raises(ConfigurationError, match="does not exist"):  # a new training does
            self.build(self.pretrained(workspace)).initialize()

    def test_pretrained_weights_of_nnunet_are_not_overwritten(self, workspace, file, monkeypatch):
        from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

        source = self.build(self.handmade(seed=9))
        source.initialize()
        path = str(workspace.root / "source.pth")
        source.save_checkpoint(path)
        trainer = self.build(self.pretrained(workspace))
        trainer.initialize()
        load_pretrained_weights(trainer.network, path)
        assert torch.equal(trainer.network.state_dict()[FROZEN], source.network.state_dict()[FROZEN])
        assert trainer.weights is not None
        monkeypatch.setattr(ExtTrainer, "on_train_start", lambda self: None)  # there is no data to train on
        trainer.on_train_start()
        assert trainer.weights is None
        assert trainer.plans_manager.plans["configurations"]["3d_fullres"]["nnunet_ext"]["weights_sha256"] is None

    def started(self, workspace, monkeypatch, **options):
        """A new training up to its first epoch, of which nnU-Net would write the plans into the model folder."""
        trainer = self.build(self.pretrained(workspace, **options))
        trainer.initialize()
        monkeypatch.setattr(ExtTrainer, "on_train_start", lambda self: None)  # there is no data to train on
        trainer.on_train_start()
        return trainer

    def test_no_path_of_this_machine_goes_into_the_model_folder(self, workspace, file, monkeypatch):
        trainer = self.started(workspace, monkeypatch)
        plans = trainer.plans_manager.plans
        assert plans["configurations"]["3d_fullres"]["nnunet_ext"]["weights_file"] == "weights.pth"
        assert str(workspace.root) not in json.dumps(plans)
        trainer.save_checkpoint(str(workspace.root / "a.pth"))
        assert str(workspace.root) not in json.dumps(read_checkpoint(workspace.root / "a.pth")["init_args"]["plans"])

    def test_folds_of_other_weights_are_noticed(self, workspace, file, monkeypatch):
        trainer = self.started(workspace, monkeypatch)
        assert "mixes two backbones" not in self.log_of(trainer)
        model = Path(trainer.output_folder_base)
        plans = deepcopy(trainer.plans_manager.plans)
        write_json(model / "plans.json", plans)
        (model / "fold_1").mkdir()
        (model / "fold_1" / "checkpoint_final.pth").touch()
        assert "mixes two backbones" not in self.log_of(self.started(workspace, monkeypatch))
        plans["configurations"]["3d_fullres"]["nnunet_ext"]["weights_sha256"] = "abc"
        write_json(model / "plans.json", plans)
        log = self.log_of(self.started(workspace, monkeypatch))
        assert "WARNING: the folds in" in log and "SHA256 abc" in log and "mixes two backbones" in log

    def test_a_missing_file_is_refused_before_anything_is_written(self, workspace):
        with pytest.raises(ConfigurationError, match="weights.pth does not exist"):
            self.build(self.pretrained(workspace))
        assert list(workspace.results.iterdir()) == []

    def test_offline_without_weights_the_trainer_says_what_to_do(self, workspace, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workspace.root))
        with pytest.raises(ConfigurationError, match="weights_file=FILE.*pretrained=false"):
            self.build(self.handmade(pretrained=True))
        assert list(workspace.results.iterdir()) == []
        scratch = self.handmade(pretrained=True)
        scratch["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["tuning"] = "scratch"
        self.build(scratch).initialize()

    # what learns, and how it is stored

    def test_frozen_tensors_are_bit_identical_after_20_steps(self, workspace, file):
        trainer = self.build(self.pretrained(workspace, num_iterations_per_epoch=20))
        trainer.initialize()
        before = deepcopy(trainer.network.state_dict())
        self.run_epoch(trainer)
        trainer.save_checkpoint(str(workspace.root / "a.pth"))
        saved = read_checkpoint(workspace.root / "a.pth")["network_weights"]
        frozen = set(trainer.net.frozen_names())
        assert FROZEN in frozen and "backbone.pos_embed" not in frozen
        for name, value in trainer.network.state_dict().items():
            if name in frozen:
                assert torch.equal(value, before[name]) and torch.equal(saved[name].float(), value)
                assert (saved[name].dtype == torch.float16) == (value.ndim > 1)
            else:
                assert saved[name].dtype == value.dtype and torch.equal(saved[name], value)
        still = [n for n, p in trainer.network.named_parameters() if p.requires_grad and torch.equal(p, before[n])]
        assert all("align" in name for name in still), still  # the first one takes in zeros

    def test_the_optimizer_holds_what_is_trainable(self, workspace):
        trainer = self.build()
        trainer.initialize()
        decayed, free = trainer.optimizer.param_groups
        assert (decayed["weight_decay"], free["weight_decay"]) == (trainer.weight_decay, 0.0)
        names = {id(p): n for n, p in trainer.network.named_parameters()}
        held = [names[id(p)] for group in (decayed, free) for p in group["params"]]
        assert sorted(held) == sorted(n for n, p in trainer.network.named_parameters() if p.requires_grad)
        for parameter in free["params"]:
            name = names[id(parameter)]
            assert parameter.ndim < 2 or "pos_embed" in name or ".frequency." in name
        undecayed = {names[id(p)] for p in free["params"]}
        assert "backbone.pos_embed" in undecayed and any(".frequency." in name for name in undecayed)

    def test_the_authors_adam(self, workspace):
        trainer = self.build(self.handmade(optimizer="adam"))
        trainer.initialize()
        (group,) = trainer.optimizer.param_groups
        assert type(trainer.optimizer) is torch.optim.Adam and group["amsgrad"]
        assert group["weight_decay"] == trainer.weight_decay

    def test_final_checkpoints_hold_no_moments_and_can_be_trained_on(self, workspace):
        trainer = self.build()
        trainer.initialize()
        self.run_epoch(trainer)
        trainer.current_epoch -= 1
        paths = [str(workspace.root / name) for name in ("checkpoint_latest.pth", "checkpoint_final.pth")]
        for path in paths:
            trainer.save_checkpoint(path)
        sizes = [os.path.getsize(path) for path in paths]
        assert sizes[1] < sizes[0]
        resumed = self.build()
        resumed.load_checkpoint(paths[1])
        assert np.isfinite(self.run_epoch(resumed)).all()
        log = (workspace.model_fold(resumed) / os.path.basename(resumed.log_file)).read_text()
        assert "no moments of the optimizer" in log

    def test_rates_depend_on_the_epoch_alone(self, workspace):
        trainer = self.build(self.handmade(num_epochs=10, warmup_epochs=2))
        trainer.initialize()
        rates = []
        for epoch in (5, 0, 1, 2, 9):
            trainer.lr_scheduler.step(epoch)
            rates.append({group["lr"] for group in trainer.optimizer.param_groups})
        assert rates == [{trainer.options.rate(epoch)} for epoch in (5, 0, 1, 2, 9)]
        assert list(rates[2]) == [pytest.approx(0.001)]

    def test_what_is_tuned_and_the_slice_filters_are_written_every_epoch(self, workspace):
        trainer = self.build()
        trainer.initialize()
        self.run_epoch(trainer)
        written = json.loads((workspace.model_fold(trainer) / "med_tuning.json").read_text())
        assert (written["epoch"], written["backbone"], written["tuning"]) == (0, BACKBONE, "med_adapter")
        assert written["weights"] is None and len(written["filters"]) == 4
        assert all(len(f["W_F"]) == len(f["b_F"]) == 8 for f in written["filters"].values())
        parts = written["parts"]
        total = sum(p.numel() for p in trainer.network.parameters())
        assert sum(counts["total"] for counts in parts.values()) == total
        assert parts["adapters"]["total"] == parts["adapters"]["trainable"] > 0
        assert 0 < parts["backbone"]["trainable"] < parts["backbone"]["total"]
        rows = json.loads((workspace.model_fold(trainer) / "med_tuning_history.json").read_text())
        assert all(0 < value < 0.1 for value in rows[0]["filter_change"].values())

    @pytest.mark.parametrize("tuning", ["full", "head", "lora"])
    def test_other_tunings_train(self, workspace, file, tuning):
        plans = self.pretrained(workspace)
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["tuning"] = tuning
        trainer = self.build(plans)
        trainer.initialize()
        assert np.isfinite(self.run_epoch(trainer)).all()
        written = json.loads((workspace.model_fold(trainer) / "med_tuning.json").read_text())
        assert written["filters"] == {} and written["weights"]["tensors"] == 53

    def test_unknown_names_are_refused(self, workspace):
        for key, value, message in (
            ("tuning", "prefix", "Unknown tuning 'prefix'. Known: med_adapter"),
            ("backbone", "vit_tinny_patch16_224", "no model 'vit_tinny_patch16_224'.*Close names: "),
            ("backbone", "resnet50", "neither a plain ViT nor a Swin"),
            ("alpha", 100, "'alpha' must be"),
            ("decoder", "unet3", "Unknown decoder 'unet3'. Known: upernet"),
        ):
            plans = self.handmade()
            plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"][key] = value
            with pytest.raises(ConfigurationError, match=message):
                self.build(plans)
        assert list(workspace.results.iterdir()) == []

    # through the stock commands

    @pytest.mark.slow
    def test_killed_continued_predicted_exported_and_imported_without_the_weights_file(self, planned, tmp_path):
        path = tmp_path / "weights.pth"
        file = weights_file(path)
        words = self.tiny(
            planned, "OfflinePlans", num_epochs=6, num_iterations_per_epoch=12, pretrained=True, weights_file=str(path)
        )
        planned.train_and_kill(2, "3d_fullres", 0, *words)
        path.unlink()
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
        planned.train("3d_fullres", 0, *words, "--c", **offline)
        fold = planned.model(self.trainer, "OfflinePlans", "3d_fullres") / "fold_0"
        saved = checkpoint(fold)
        assert saved["current_epoch"] == 6 and saved["optimizer_state"]["state"] == {}
        assert torch.equal(saved["network_weights"][FROZEN], file[FROZEN.removeprefix("backbone.")].half())
        digest = saved["nnunet_ext"]["state"]["weights"]["sha256"]
        assert len(digest) == 64

        # What the trained network itself made of its validation case must come out of an exported model again.
        validated = segmentations(fold / "validation")
        (case,) = validated
        (tmp_path / "images").mkdir()
        image = case.replace(".nii.gz", "_0000.nii.gz")
        shutil.copy(planned.raw / planned.dataset / "imagesTr" / image, tmp_path / "images")
        names = [*words, "-c", "3d_fullres", "-f", 0]
        planned.run("nnUNetv2_export_model_to_zip", "-d", 7, "-o", tmp_path / "model.zip", *names)
        other = Workspace(planned.root, results="imported")
        other.run("nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip")
        again = other.predict(tmp_path / "images", tmp_path / "again", *names, **offline)
        assert np.array_equal(again[case], validated[case])

    @pytest.mark.slow
    @thorough
    def test_2d_through_the_stock_commands(self, planned, tmp_path):
        words = self.tiny(planned)
        planned.run("nnUNetv2_preprocess", "-d", 7, "-plans_name", "TinyPlans", "-c", "2d", "-np", 1)
        planned.train("2d", 0, *words, "--npz")
        images = planned.raw / planned.dataset / "imagesTs"
        predicted = planned.predict(images, tmp_path / "out", *words, "-c", "2d", "-f", 0)
        assert list(predicted) == ["case_005.nii.gz", "case_006.nii.gz"]

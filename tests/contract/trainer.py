"""What every trainer must do: quickly in this process, and through the stock commands in subprocesses (slow)."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from contract.on_request import OnRequest, thorough
from end_to_end.stock import Workspace, handmade_plans, make_dataset, segmentations, shrink, stock_architecture
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch._inductor.compile_fx import compile_fx

from nnunet_ext.discovery.registry import PLANNERS, TRAINERS
from nnunet_ext.errors import ConfigurationError

LABELS = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "a": 1, "b": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
REGIONS = {
    **LABELS,
    "labels": {"background": 0, "whole": [1, 2], "inner": 2, "ignore": 3},
    "regions_class_order": [1, 2],
}
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]


OWN_PROCESS = "nnUNet_ext_own_process"  # set where a test has a process for itself

# E2ENet runs all tests through the stock commands, the other methods those that differ for them, and all on request.
STOCK_COMMANDS = (
    "test_five_folds_choose_predict_ensemble_export_and_import",
    "test_validation_can_be_repeated",
    "test_pretrained_weights_arrive",
    "test_killed_training_continues",
    "test_compiled_prediction_is_the_same",
    "test_regions_and_ignore_label_through_all_folds_at_once",
    "test_cascade",
)
COMPILED = "test_epochs_compile_as_on_a_gpu_and_only_in_the_first"  # E2ENet and what is compiled in parts run it


class TrainerContract(OnRequest):
    """A method subclasses this and says its names, its tiny network and its tiny schedule."""

    trainer: str
    planner: str
    plans: str
    arch_kwargs: dict  # a tiny network for STRIDES, JSON values, strides included
    options: dict  # a schedule in which all that moves during training moves within 3 epochs of 4 iterations
    configurations: tuple = ("3d_fullres",)  # those that are preprocessed
    keeps_random_numbers = False  # whether a checkpoint holds those of the process
    graphs: tuple = (4, 4, 4)  # compiled by the end of each epoch: network and Dice, in steps and in validations
    longer: dict = {}  # options besides num_epochs of a training that goes on

    @property
    def trainer_class(self):
        return getattr(import_module(TRAINERS[self.trainer]), self.trainer)

    @property
    def network_class(self):
        return self.trainer_class.network_class

    def architecture(self):
        return {
            "network_class_name": f"{self.network_class.__module__}.{self.network_class.__name__}",
            "arch_kwargs": deepcopy(self.arch_kwargs),
            "_kw_requires_import": [],
        }

    # in this process

    @pytest.fixture
    def workspace(self, tmp_path, monkeypatch):
        workspace = Workspace(tmp_path)
        for name, value in workspace.folders.items():
            monkeypatch.setenv(name, value)
        for name in ("2d", "3d_fullres"):
            data = workspace.preprocessed / workspace.dataset / f"nnUNetPlans_{name}"
            data.mkdir(parents=True)
            (data / "case_000.b2nd").touch()  # the trainer asks for the kind of its data when it is initialised
        return workspace

    def handmade(self, **options):
        return handmade_plans(self.architecture(), strides=STRIDES, **{**self.options, **options})

    def build(self, plans=None, *, configuration="3d_fullres", fold=0, labels=LABELS):
        plans = self.handmade() if plans is None else plans
        return self.trainer_class(deepcopy(plans), configuration, fold, deepcopy(labels), torch.device("cpu"))

    def batch(self, trainer, number):
        """Batch `number` of a fixed sequence, with targets for every output that nnU-Net would make."""
        rng = torch.Generator().manual_seed(number)
        patch = trainer.configuration_manager.patch_size
        data = torch.randn(2, trainer.num_input_channels, *patch, generator=rng)
        heads = trainer.label_manager.num_segmentation_heads
        target = torch.randint(0, heads, (2, 1, *patch), generator=rng).float()
        if trainer.label_manager.has_regions:  # one channel per region, and the ignore label's
            target = torch.cat([target == k for k in range(heads + 1)], 1).float()
        scales = trainer._get_deep_supervision_scales()
        if scales is None:
            return {"data": data, "target": target}
        sizes = [[round(p * s) for p, s in zip(patch, scale, strict=True)] for scale in scales]
        return {"data": data, "target": [torch.nn.functional.interpolate(target, size=size) for size in sizes]}

    def rates_of_steps(self, trainer):
        """A list that takes the learning rate of each step of the optimizer from now on."""
        rates = []
        step = trainer.optimizer.step
        trainer.optimizer.step = lambda: (rates.append(trainer.optimizer.param_groups[0]["lr"]), step())
        return rates

    def run_epoch(self, trainer):
        """One epoch as nnU-Net's run_training goes through it; returns the training losses."""
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        first = trainer.current_epoch * 1000
        steps = [trainer.train_step(self.batch(trainer, first + i)) for i in range(trainer.num_iterations_per_epoch)]
        trainer.on_train_epoch_end(steps)
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            checks = [
                trainer.validation_step(self.batch(trainer, first + 500 + i))
                for i in range(trainer.num_val_iterations_per_epoch)
            ]
            trainer.on_validation_epoch_end(checks)
        trainer.on_epoch_end()
        return [float(step["loss"]) for step in steps]

    def snapshot(self, trainer):
        return deepcopy((trainer.network.state_dict(), trainer.optimizer.state_dict(), trainer.method_state()))

    @pytest.mark.parametrize("border", [1, 2])
    def test_resuming_at_an_epoch_border_equals_never_having_stopped(self, workspace, border):
        whole = self.build(self.handmade(num_epochs=3))
        whole.initialize()
        losses = []
        for epoch in range(3):
            losses.append(self.run_epoch(whole))
            if epoch + 1 == border:
                # as nnU-Net's on_train_end: save_checkpoint notes current_epoch + 1
                whole.current_epoch -= 1
                whole.save_checkpoint(f"{workspace.root}/border.pth")
                whole.current_epoch += 1
        resumed = self.build(self.handmade(num_epochs=3))
        resumed.initialize()
        with torch.no_grad():
            for value in resumed.network.state_dict().values():
                value.zero_()
        resumed.load_checkpoint(f"{workspace.root}/border.pth")
        assert resumed.current_epoch == border
        assert [self.run_epoch(resumed) for _ in range(border, 3)] == losses[border:]
        assert_equal(self.snapshot(resumed), self.snapshot(whole))

    def test_training_learns_something_and_writes_its_history(self, workspace):
        trainer = self.build()
        trainer.initialize()
        before = deepcopy(trainer.network.state_dict())
        self.run_epoch(trainer)
        assert any(not torch.equal(before[k], v) for k, v in trainer.network.state_dict().items())
        rows = json.loads((workspace.model_fold(trainer) / f"{trainer.method}_history.json").read_text())
        assert [row["epoch"] for row in rows] == [0]
        assert np.isfinite(rows[0]["train_loss"])

    def test_mirroring_can_be_left_out(self, workspace):
        """In training and, through the checkpoint, in prediction."""
        for mirroring in (True, False):
            trainer = self.build(self.handmade(mirroring=mirroring))
            trainer.initialize()
            axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1]
            assert (axes is not None) == mirroring
            trainer.save_checkpoint(str(workspace.root / "checkpoint_latest.pth"))
            saved = torch.load(workspace.root / "checkpoint_latest.pth", weights_only=False)
            assert (saved["inference_allowed_mirroring_axes"] is not None) == mirroring

    def types_of_products(self, trainer):
        """Whether the module trains -> types of what linear layers and convolutions give, from now on."""
        seen = {True: set(), False: set()}

        def note(module, inputs, output):
            seen[module.training].add(output.dtype)

        for module in trainer.network.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
                module.register_forward_hook(note)
        return seen

    def test_training_in_bfloat16_on_a_cpu(self, workspace, monkeypatch):
        """Steps are, losses and predictions are not; copies of the network have their own weights."""
        monkeypatch.setattr("nnunet_ext.trainers.base.has_bfloat16", lambda: True)
        trainer = self.build(self.handmade(train_bfloat16=True, num_iterations_per_epoch=2))
        trainer.initialize()
        seen, loss, outputs = self.types_of_products(trainer), trainer.loss, []
        monkeypatch.setattr(trainer, "loss", lambda output, target: outputs.append(output) or loss(output, target))
        self.run_epoch(trainer)
        assert seen == {True: {torch.bfloat16}, False: {torch.float32}}
        assert {(output[0] if isinstance(output, list) else output).dtype for output in outputs} == {torch.float32}
        copies = [deepcopy(part).train() for part in trainer.trained_parts()]
        for parameter in trainer.network.parameters():
            parameter.data.fill_(torch.nan)
        data = self.batch(trainer, 0)["data"]
        for copy in copies:
            output = copy(data if len(copies) == 1 else trainer.net.fold(data))
            assert (output[0] if isinstance(output, list) else output).isfinite().all()

    def test_training_in_bfloat16_without_its_instructions(self, workspace, monkeypatch):
        monkeypatch.setattr("nnunet_ext.trainers.base.has_bfloat16", lambda: False)
        trainer = self.build(self.handmade(train_bfloat16=True))
        trainer.initialize()
        assert "no bfloat16 instructions" in self.log_of(trainer)
        seen = self.types_of_products(trainer)
        trainer.trained_parts()[0].train()
        trainer.network(self.batch(trainer, 0)["data"])
        assert torch.bfloat16 not in seen[True] | seen[False]

    def test_a_training_on_a_cpu_keeps_the_memory_it_frees(self, workspace, monkeypatch):
        asked = []
        monkeypatch.setattr("nnunet_ext.trainers.base.keep_freed_memory", lambda: asked.append(True))
        self.build().initialize()
        assert asked == [True]

    def test_a_training_on_a_cpu_takes_the_threads_that_it_may_have(self, workspace):
        torch.set_num_threads(3)  # as nnU-Net's command does, for the cores of the machine
        self.build().initialize()
        assert torch.get_num_threads() == int(os.environ["nnUNet_ext_threads"]) == 1

    def test_a_bad_number_of_threads_is_refused_before_there_is_a_folder(self, workspace, monkeypatch):
        monkeypatch.setenv("nnUNet_ext_threads", "few")
        before = sorted(workspace.results.rglob("*"))
        with pytest.raises(ConfigurationError, match="must be a number of threads from 1, found 'few'"):
            self.build(fold=4)
        assert sorted(workspace.results.rglob("*")) == before

    def test_the_seed_decides_the_initial_weights(self, workspace):
        def weights(**options):
            trainer = self.build(self.handmade(**options))
            trainer.initialize()
            return torch.cat([p.flatten() for p in trainer.network.parameters()])

        assert torch.equal(weights(seed=1), weights(seed=1))
        assert not torch.equal(weights(seed=1), weights(seed=2))

    def test_regions_and_ignore_label_train_with_finite_losses(self, workspace):
        trainer = self.build(labels=REGIONS)
        trainer.initialize()
        assert np.isfinite(self.run_epoch(trainer)).all()

    def test_stock_plans_get_the_methods_default_network(self, workspace):
        for class_name in ("PlainConvUNet", "ResidualEncoderUNet"):
            architecture = stock_architecture(STRIDES)
            architecture["network_class_name"] = architecture["network_class_name"].replace("PlainConvUNet", class_name)
            if class_name == "ResidualEncoderUNet":
                kwargs = architecture["arch_kwargs"]
                kwargs["n_blocks_per_stage"] = kwargs.pop("n_conv_per_stage")
            trainer = self.build(handmade_plans(architecture, strides=STRIDES, **self.options))
            trainer.initialize()
            assert type(trainer.network) is self.network_class

    def test_prediction_loads_what_training_saved(self, workspace):
        trainer = self.build()
        trainer.initialize()
        self.run_epoch(trainer)
        network = self.trainer_class.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, 3, enable_deep_supervision=False
        )
        network.load_state_dict(trainer.network.state_dict())
        trainer.set_deep_supervision_enabled(False)
        x = self.batch(trainer, 1)["data"]
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(x), trainer.network.eval()(x), rtol=0, atol=0)

    def test_an_interrupted_write_leaves_the_old_checkpoint(self, workspace, monkeypatch):
        trainer = self.build()
        trainer.initialize()
        path = workspace.root / "checkpoint_latest.pth"
        trainer.save_checkpoint(str(path))
        good = path.read_bytes()
        save = torch.save

        def full_disk(content, file):
            if not hasattr(file, "getbuffer"):  # the write to disk, not the one to memory
                file.write(b"half a checkpoint")
                raise OSError("No space left on device")
            save(content, file)

        monkeypatch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            trainer.save_checkpoint(str(path))
        assert path.read_bytes() == good
        assert [p.name for p in workspace.root.iterdir() if "checkpoint" in p.name] == [path.name]

    def test_a_truncated_checkpoint_is_refused(self, workspace):
        trainer = self.build()
        trainer.initialize()
        path = workspace.root / "checkpoint_latest.pth"
        trainer.save_checkpoint(str(path))
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(ConfigurationError, match="cannot be read"):
            trainer.load_checkpoint(str(path))

    def test_a_checkpoint_of_another_trainer_is_refused(self, workspace):
        trainer = self.build()
        trainer.initialize()
        path = str(workspace.root / "other.pth")
        torch.save({"network_weights": {}}, path)
        with pytest.raises(ConfigurationError, match="was not written by"):
            trainer.load_checkpoint(path)

    # continuing

    def continued(self, **options):
        """A trainer as `nnUNetv2_train --c` makes it."""
        return self.build({**self.handmade(**options), "continue_training": True})

    def after(self, epochs, names, **options):
        """A trainer after so many epochs that saved the checkpoint of each name after the epoch of that number."""
        trainer = self.build(self.handmade(**{"num_epochs": epochs, "save_every": 1000, **options}))
        trainer.initialize()
        trainer.save_checkpoint = lambda path: None  # nnU-Net's own best, and Med-DANet's border
        for epoch in range(1, epochs + 1):
            self.run_epoch(trainer)
            for name, when in names.items():
                if when == epoch:
                    trainer.current_epoch -= 1
                    type(trainer).save_checkpoint(trainer, f"{trainer.output_folder}/checkpoint_{name}.pth")
                    trainer.current_epoch += 1
        return trainer

    @staticmethod
    def log_of(trainer):
        return Path(trainer.log_file).read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("names", "asked", "taken"),
        [
            ({"latest": 1, "best": 2}, "latest", "best"),
            ({"latest": 2, "best": 1}, "latest", "latest"),
            ({"latest": 2, "best": 2}, "latest", "latest"),
            ({"final": 1, "latest": 2}, "final", "latest"),  # of a training that was prolonged
        ],
        ids=str,
    )
    def test_a_training_continues_from_its_newest_checkpoint(self, workspace, names, asked, taken):
        whole = self.after(3, names)
        resumed = self.continued(num_epochs=3)
        resumed.load_checkpoint(f"{whole.output_folder}/checkpoint_{asked}.pth")
        assert resumed.current_epoch == max(names.values())
        said = f"continues from checkpoint_{taken}.pth, which stands after {resumed.current_epoch} epochs"
        assert (said in self.log_of(resumed)) == (asked != taken)

    def run_to_the_end(self, result, number):
        """The whole training from where nnU-Net's `--c` takes it up; run in a process that may be killed."""
        seed = 0 if self.keeps_random_numbers else number  # what a new process draws must not matter
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        trainer = self.continued(num_epochs=5, save_every=2, **self.longer)
        trainer.initialize()
        maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
        started, losses = trainer.current_epoch, []
        while trainer.current_epoch < trainer.num_epochs:
            losses.append(self.run_epoch(trainer))
        torch.save((started, losses, self.snapshot(trainer)), f"{result}.part")
        os.replace(f"{result}.part", result)

    def test_a_patch_that_the_plans_do_not_say_is_refused(self, workspace):
        trainer = self.build()
        trainer.configuration_manager.configuration["patch_size"] = [8, 8, 8]  # as some subclasses do
        with pytest.raises(ConfigurationError, match="changed the patch to"):
            trainer.initialize()

    @pytest.mark.slow
    def test_killed_at_random_moments_it_ends_as_if_never_killed(self, workspace, request):
        """nnUNet_ext_kills says how often; a run is killed until it comes to its end, then the next begins.

        In a process of its own, because torch cannot fork one in which gradients have been computed.
        """
        if OWN_PROCESS not in os.environ:
            words = [sys.executable, "-m", "pytest", "-q", "-s", "-m", "slow", "-p", "no:cacheprovider"]
            words += ["-o", "addopts=--import-mode=importlib", request.node.nodeid]
            variables = {**os.environ, OWN_PROCESS: "1", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(words, cwd=request.config.rootpath, env=variables, capture_output=True, text=True)
            print(done.stdout[-4000:])
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
            return
        kills, rng = int(os.environ.get("nnUNet_ext_kills", 5)), random.Random(0)
        context, threads = multiprocessing.get_context("fork"), torch.get_num_threads()
        torch.set_num_threads(1)  # torch's pool does not survive a fork
        results, continued = [], 0

        def child(name):
            process = context.Process(target=self.run_to_the_end, args=(workspace.root / name, len(results)))
            process.start()
            return process

        try:
            start = time.monotonic()
            reference = child("reference.pt")
            reference.join(300)
            seconds = time.monotonic() - start
            assert reference.exitcode == 0
            _, losses, snapshot = torch.load(workspace.root / "reference.pt", weights_only=False)
            while kills > 0:
                shutil.rmtree(workspace.results)
                workspace.results.mkdir()
                name = f"run{len(results)}.pt"
                while not (workspace.root / name).exists():
                    process = child(name)
                    if kills > 0:
                        process.join(rng.uniform(0.2, 0.8) * seconds)
                        if process.exitcode is None:
                            process.kill()
                            kills -= 1
                    process.join(300)
                    assert process.exitcode in (0, -signal.SIGKILL)
                started, ours, end = torch.load(workspace.root / name, weights_only=False)
                assert ours == losses[started:]
                assert_equal(end, snapshot)
                continued += started > 0
                results.append(started)
        finally:
            torch.set_num_threads(threads)
        print(f"{self.trainer}: runs that were killed went on at epochs {sorted(results)}")
        assert continued > 0

    @pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b""])
    def test_half_a_checkpoint_is_passed_over_with_a_line(self, workspace, damage):
        whole = self.after(2, {"latest": 2, "best": 1})
        latest = Path(whole.output_folder, "checkpoint_latest.pth")
        latest.write_bytes(damage(latest.read_bytes()))
        resumed = self.continued(num_epochs=2)
        resumed.load_checkpoint(str(latest))
        assert resumed.current_epoch == 1
        log = self.log_of(resumed)
        assert "checkpoint_latest.pth cannot be used" in log and "continues from checkpoint_best.pth" in log
        latest.with_name("checkpoint_best.pth").write_bytes(b"")
        with pytest.raises(ConfigurationError, match="No whole checkpoint is in .* Start this training anew"):
            self.continued(num_epochs=2).load_checkpoint(str(latest))

    def test_a_validation_takes_no_other_checkpoint_than_it_asks_for(self, workspace):
        whole = self.after(2, {"final": 1, "best": 2})
        trainer = self.build(self.handmade(num_epochs=2))
        final = Path(whole.output_folder, "checkpoint_final.pth")
        trainer.load_checkpoint(str(final))
        assert trainer.current_epoch == 1
        final.write_bytes(b"")
        with pytest.raises(ConfigurationError, match="cannot be read"):
            self.build(self.handmade(num_epochs=2)).load_checkpoint(str(final))

    def test_a_prolonged_training_says_how_its_schedules_jump(self, workspace):
        whole = self.after(3, {"final": 3})
        resumed = self.continued(num_epochs=6, **self.longer)
        resumed.load_checkpoint(f"{whole.output_folder}/checkpoint_final.pth")
        if resumed.num_epochs == whole.num_epochs:  # its length is a number of iterations
            return
        (line,) = (line for line in self.log_of(resumed).splitlines() if "This training was planned for" in line)
        assert f"planned for {whole.num_epochs} epochs and now has {resumed.num_epochs}" in line
        said = float(line.split("learning rate ")[1].split(" -> ")[1].split(",")[0].strip(". "))
        rates = self.rates_of_steps(resumed)
        self.run_epoch(resumed)
        assert rates[0] == pytest.approx(said, rel=1e-3)

    def test_releases_are_stored_with_the_model(self, workspace):
        whole = self.after(2, {"final": 2})
        state = checkpoint(Path(whole.output_folder))["nnunet_ext"]
        assert state["versions"] == {name: version(name) for name in ("nnunet-ext", "nnunetv2", "torch")}

    def test_a_compilation_that_fails_costs_a_line(self, workspace, monkeypatch):
        if not self.network_class.supports_compile:
            pytest.skip("not claimed")

        def failing(graph, inputs):
            raise RuntimeError("no compiler here\nand more")

        compile_network = torch.compile
        monkeypatch.setattr(torch, "compile", lambda network: compile_network(network, backend=failing))
        monkeypatch.setattr(self.trainer_class, "_do_i_compile", lambda trainer: True)
        monkeypatch.delenv("nnUNet_compile", raising=False)
        torch._dynamo.reset()
        trainer, plain = self.build(), None
        trainer.initialize()
        losses = self.run_epoch(trainer)
        lines = [line for line in self.log_of(trainer).splitlines() if "torch.compile failed" in line]
        assert len(lines) == 2 and all("no compiler here" in line and "and more" not in line for line in lines)
        assert f"so {self.network_class.__name__} runs without it" in lines[0] and "Dice" in lines[1]
        monkeypatch.setattr(self.trainer_class, "_do_i_compile", lambda trainer: False)
        plain = self.build()
        plain.initialize()
        assert self.run_epoch(plain) == losses

        monkeypatch.setattr(self.trainer_class, "_do_i_compile", lambda trainer: True)
        monkeypatch.setenv("nnUNet_compile", "t")
        torch._dynamo.reset()
        asked = self.build()
        asked.initialize()
        with pytest.raises(Exception, match="no compiler here"):
            self.run_epoch(asked)

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=thorough)])
    def test_epochs_compile_as_on_a_gpu_and_only_in_the_first(self, workspace, monkeypatch, backend):
        compile_network, graphs = torch.compile, []

        def counting(graph, inputs):
            graphs.append(graph)
            return compile_fx(graph, inputs) if backend == "inductor" else graph

        monkeypatch.setattr(torch, "compile", lambda network: compile_network(network, backend=counting))
        monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda trainer: True)
        monkeypatch.setenv("nnUNet_compile", "t")  # an error is one
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        trainer = self.build()
        trainer.initialize()
        made, losses = [], []
        for _ in range(3):
            losses.append(self.run_epoch(trainer))
            made.append(len(graphs))
        assert not torch._dynamo.utils.counters["graph_break"]
        assert tuple(made[:2]) == self.graphs[:2] and made[1] <= made[2] <= self.graphs[2]  # torch 2.11 makes fewer
        assert ("is not compiled as a whole: " in self.log_of(trainer)) != self.network_class.supports_compile
        monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda trainer: False)
        plain = self.build()
        plain.initialize()
        expected = [self.run_epoch(plain) for _ in range(3)]
        np.testing.assert_allclose(losses, expected, rtol=0.01 if backend == "inductor" else 1e-6)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda plans, c: c["nnunet_ext"].update(num_epoch=3), "Unknown training option .*num_epoch. Known: "),
            (lambda plans, c: c["nnunet_ext"].update(num_epochs="3"), "'num_epochs' must be int"),
            (lambda plans, c: c["nnunet_ext"].update(num_epochs=0), "'num_epochs' must be at least 1"),
            (lambda plans, c: c.update(nnunet_ext=[1]), "must be a dict"),
            (lambda plans, c: c["architecture"]["arch_kwargs"].update(widht=3), "Unknown arch_kwargs .*widht. Known: "),
            (lambda plans, c: plans["configurations"].pop("3d_fullres"), "no configuration '3d_fullres'. It has: 2d"),
        ],
    )
    def test_bad_plans_are_refused_before_anything_is_written(self, workspace, change, message):
        plans = self.handmade()
        change(plans, plans["configurations"]["3d_fullres"])
        with pytest.raises(ConfigurationError, match=message):
            self.build(plans)
        assert list(workspace.results.iterdir()) == []

    def test_a_2d_configuration_is_refused_by_name_where_the_method_is_3d(self, workspace):
        if self.network_class.supports_2d:
            self.build(configuration="2d").initialize()
            return
        with pytest.raises(ConfigurationError, match=f"{self.trainer} is a 3D method"):
            self.build(configuration="2d")
        assert list(workspace.results.iterdir()) == []

    @pytest.mark.parametrize("name", ["nnUNet_preprocessed", "nnUNet_results"])
    def test_a_missing_environment_variable_is_named(self, workspace, monkeypatch, name):
        monkeypatch.delenv(name)
        with pytest.raises(ConfigurationError, match=f"{name} is not set"):
            self.build()

    # through the stock commands

    def tiny(self, workspace, name="TinyPlans", **options):
        """A plans file with this name from the planner's own, shrunk."""
        plans = shrink(workspace.plans(self.plans), {**self.options, **options}, self.arch_kwargs)
        workspace.write_plans(plans, name)
        return ["-tr", self.trainer, "-p", name]

    def plan_dataset(self, folder):
        """A workspace in `folder` with a data set that the method's planner has planned and preprocessed."""
        workspace = Workspace(folder)
        make_dataset(workspace)
        workspace.plan(self.planner, *self.configurations)
        assert workspace.plans(self.plans)["experiment_planner_used"] == self.planner
        assert self.planner in PLANNERS
        return workspace

    @pytest.fixture(scope="class")
    def planned(self, tmp_path_factory):
        """A data set planned and preprocessed by the method's planner."""
        return self.plan_dataset(tmp_path_factory.mktemp(self.trainer))

    @pytest.fixture(scope="class")
    def trained(self, planned):
        """All five folds, with probabilities."""
        words = self.tiny(planned)
        splits = planned.preprocessed / planned.dataset / "splits_final.json"
        if not splits.exists():  # the first two trainings would write and read it at the same time
            cases = [f"case_{n:03d}" for n in range(5)]
            splits.write_text(json.dumps([{"train": [c for c in cases if c != v], "val": [v]} for v in cases]))
        planned.together(*(lambda f=f: planned.train("3d_fullres", f, *words, "--npz") for f in range(5)))
        return planned

    @pytest.mark.slow
    def test_five_folds_choose_predict_ensemble_export_and_import(self, trained, tmp_path):
        names = ["-tr", self.trainer, "-p", "TinyPlans", "-c", "3d_fullres"]
        images = trained.raw / trained.dataset / "imagesTs"
        trained.run("nnUNetv2_find_best_configuration", 7, *names, "-np", 1)
        assert (trained.results / trained.dataset / "inference_instructions.txt").is_file()

        all_folds = trained.predict(images, tmp_path / "all", *names, "--save_probabilities")
        one_fold = trained.predict(images, tmp_path / "one", *names, "-f", 0, "--save_probabilities")
        assert list(all_folds) == ["case_005.nii.gz", "case_006.nii.gz"] == list(one_fold)
        trained.run("nnUNetv2_ensemble", "-i", tmp_path / "all", tmp_path / "one", "-o", tmp_path / "both", "-np", 1)
        both = segmentations(tmp_path / "both")
        for name in all_folds:
            probabilities = [
                np.load(tmp_path / k / name.replace("nii.gz", "npz"))["probabilities"] for k in ("all", "one")
            ]
            assert np.array_equal(both[name], sum(probabilities).argmax(0))

        archive = tmp_path / "model.zip"
        trained.run("nnUNetv2_export_model_to_zip", "-d", 7, "-o", archive, *names)
        other = Workspace(trained.root, results="imported")
        other.run("nnUNetv2_install_pretrained_model_from_zip", archive)
        again = other.predict(images, tmp_path / "again", *names)
        assert all(np.array_equal(again[name], all_folds[name]) for name in all_folds)

    @pytest.mark.slow
    def test_validation_can_be_repeated(self, trained):
        words = ["-tr", self.trainer, "-p", "TinyPlans"]
        summary = trained.model(self.trainer, "TinyPlans", "3d_fullres") / "fold_1" / "validation" / "summary.json"
        before = json.loads(summary.read_text())
        summary.unlink()
        trained.train("3d_fullres", 1, *words, "--val")
        assert json.loads(summary.read_text())["foreground_mean"] == before["foreground_mean"]
        summary.unlink()
        trained.train("3d_fullres", 1, *words, "--val_best", "--val")
        assert summary.is_file()

    @pytest.mark.slow
    def test_pretrained_weights_arrive(self, trained):
        model = trained.model(self.trainer, "TinyPlans", "3d_fullres")
        words = self.tiny(trained, "FineTunePlans", num_epochs=1, num_iterations_per_epoch=1, initial_lr=1e-9)
        trained.train("3d_fullres", 0, *words, "-pretrained_weights", model / "fold_2" / "checkpoint_final.pth")
        source = checkpoint(model / "fold_2")["network_weights"]
        tuned = checkpoint(trained.model(self.trainer, "FineTunePlans", "3d_fullres") / "fold_0")["network_weights"]
        # BatchNorm's statistics follow the data, whatever the learning rate.
        skip = (".seg_layers.", ".running_")
        compared = [k for k, v in source.items() if v.is_floating_point() and not any(part in k for part in skip)]
        assert len(compared) > 5
        for key in compared:  # one step at 1e-9 moves a weight by less than 1e-6
            torch.testing.assert_close(tuned[key], source[key], rtol=0, atol=1e-6)

    @pytest.mark.slow
    def test_killed_training_continues(self, planned):
        words = self.tiny(planned, "KilledPlans", num_epochs=6, num_iterations_per_epoch=12)
        fold = planned.model(self.trainer, "KilledPlans", "3d_fullres") / "fold_0"
        planned.train_and_kill(2, "3d_fullres", 0, *words)
        assert not (fold / "checkpoint_final.pth").exists()
        saved = checkpoint(fold, "checkpoint_latest.pth")
        output = planned.train("3d_fullres", 0, *words, "--c").stdout
        assert f"Epoch {saved['current_epoch']}" in output and "Epoch 0" not in output
        assert checkpoint(fold)["current_epoch"] == 6
        history = json.loads((fold / f"{self.trainer_class.method}_history.json").read_text())
        assert [row["epoch"] for row in history] == list(range(-1, 6))

    @pytest.mark.slow
    def test_compiled_prediction_is_the_same(self, trained, tmp_path):
        if not self.network_class.supports_compile:
            pytest.skip(f"{self.network_class.__name__} does not claim torch.compile")
        words = ["-tr", self.trainer, "-p", "TinyPlans", "-c", "3d_fullres", "-f", 0]
        images = trained.raw / trained.dataset / "imagesTs"
        plain = trained.predict(images, tmp_path / "plain", *words)
        compiled = trained.predict(images, tmp_path / "compiled", *words, nnUNet_compile="1")
        for name in plain:  # another summation order may tip a voxel that lies on the fence
            assert np.mean(plain[name] == compiled[name]) > 0.999

    @pytest.mark.slow
    def test_regions_and_ignore_label_through_all_folds_at_once(self, tmp_path):
        workspace = Workspace(tmp_path)
        make_dataset(workspace, cases=4, tests=1, channels=2, regions=True, ignore=True)
        workspace.plan(self.planner)
        words = self.tiny(workspace)
        workspace.train("3d_fullres", "all", *words)
        images = workspace.raw / workspace.dataset / "imagesTs"
        predicted = workspace.predict(images, tmp_path / "out", *words, "-c", "3d_fullres", "-f", "all")
        assert set(np.unique(predicted["case_004.nii.gz"])) <= {0, 1, 2}

    @pytest.mark.slow
    def test_cascade(self, planned, tmp_path):
        words = self.tiny(planned, "CascadePlans")
        plans = planned.plans("CascadePlans")
        fullres = plans["configurations"]["3d_fullres"]
        plans["configurations"]["3d_lowres"] = {
            **fullres,
            "data_identifier": "CascadePlans_3d_lowres",
            "spacing": [1.2 * s for s in fullres["spacing"]],
            "next_stage": "3d_cascade_fullres",
        }
        plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        planned.write_plans(plans, "CascadePlans")
        planned.run("nnUNetv2_preprocess", "-d", 7, "-plans_name", "CascadePlans", "-c", "3d_lowres", "-np", 1)
        planned.train("3d_lowres", "all", *words)  # which predicts every case for the next stage
        planned.train("3d_cascade_fullres", 0, *words)
        images = planned.raw / planned.dataset / "imagesTs"
        planned.predict(images, tmp_path / "low", *words, "-c", "3d_lowres", "-f", "all")
        final = planned.predict(
            images, tmp_path / "full", *words, "-c", "3d_cascade_fullres", "-f", 0,
            "-prev_stage_predictions", tmp_path / "low",
        )  # fmt: skip
        assert final["case_005.nii.gz"].shape == (20, 32, 32)


def checkpoint(fold, name="checkpoint_final.pth"):
    return torch.load(fold / name, weights_only=False)


def assert_equal(a, b):
    """Equality of nested states, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b

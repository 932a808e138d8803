"""What all our trainers share: options from plans, networks from plans, atomic checkpoints, method state, reports."""

import os
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import distributed as dist
from torch import nn
from torch._dynamo import OptimizedModule

from nnunet_ext.costs.complexity import complexity_report, complexity_text
from nnunet_ext.discovery.compatibility import check_nnunet_version, versions
from nnunet_ext.discovery.devices import cpu_threads
from nnunet_ext.errors import ConfigurationError, show_configuration_errors_as_text
from nnunet_ext.files import read_json, write_json
from nnunet_ext.layers.compiling import fall_back_to_eager
from nnunet_ext.layers.precision import has_bfloat16, train_in_bfloat16
from nnunet_ext.layers.unwrap import unwrap
from nnunet_ext.methods import method_of, method_of_trainer
from nnunet_ext.planning.options import PLANS_KEY, TrainingOptions, architecture_options, dotted_path, refuse_unknown
from nnunet_ext.prediction.memory import keep_freed_memory
from nnunet_ext.trainers.checks import check_other_folds, check_patch, check_preprocessed
from nnunet_ext.trainers.resumable import ResumableTrainer

CUDA = torch.device("cuda")  # the default in nnU-Net's signature

show_configuration_errors_as_text()


def named_arch_kwargs(configuration_manager: ConfigurationManager, network_class: type) -> dict[str, Any] | None:
    """The arch_kwargs of the configuration where it names this network; None where it names another, as stock plans."""
    if configuration_manager.network_arch_class_name != dotted_path(network_class):
        return None
    return configuration_manager.network_arch_init_kwargs


def _planned_for(trainer: str) -> str:
    method = method_of_trainer(trainer)
    if method is None:
        return "Take plans of its own method, or nnUNetPlans."
    return f"Take -p {method.plans_name}; nnUNetv2_plan_experiment -d DATASET -pl {method.planner} makes them."


class NoScheduler:
    """For rates that a trainer sets by iterations: nnU-Net asks a scheduler to step once an epoch."""

    def step(self, epoch: int | None = None) -> None:
        """Does nothing."""


class ExtTrainer(ResumableTrainer):
    """Base of the method trainers. A method gives the class attributes and overrides the methods marked "method:"."""

    network_class: ClassVar[type[Any]]
    options_class: ClassVar[type[TrainingOptions]] = TrainingOptions
    arch_kwargs_at: ClassVar[Callable[..., dict[str, Any]]]  # strides, patch_size -> the network's default arch_kwargs

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: Any = CUDA) -> None:
        # nnU-Net creates the results folder in its constructor: all that can be refused is refused before.
        options = self.checked_options(plans, configuration, dataset_json)
        check_other_folds(type(self), plans, configuration, fold)
        if torch.device(device).type == "cpu":
            torch.set_num_threads(cpu_threads())
        self.continues = bool(plans.get("continue_training"))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.options = options
        self.enable_deep_supervision = self.network_class.supports_deep_supervision
        self.num_epochs = options.num_epochs
        self.num_iterations_per_epoch = options.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = options.num_val_iterations_per_epoch
        self.initial_lr = options.initial_lr
        self.weight_decay = options.weight_decay
        self.save_every = options.save_every
        self.seed = options.seed + (fold if isinstance(fold, int) else 0)
        self.history: list[dict[str, Any]] = []

    # method: what a method says of itself

    @classmethod
    def arch_kwargs_from_configuration(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """The network's arch_kwargs for a plan that does not name our network (stock plans)."""
        return cls.arch_kwargs_at(configuration_manager.pool_op_kernel_sizes, configuration_manager.patch_size)

    def on_initialized(self) -> None:
        """method: called once when network and optimizer exist, before the first step."""

    def history_row(self) -> dict[str, Any]:
        """method: what the method learned in this epoch, as JSON values."""
        return {}

    # options and network

    @property
    def net(self) -> Any:
        """The network itself, without what DDP and torch.compile put around it."""
        return unwrap(self.network)

    @classmethod
    def checked_options(cls, plans: dict, configuration: str, dataset_json: dict) -> TrainingOptions:
        """The training options of the plans; everything that can be known to fail is refused here.

        Raises:
            ConfigurationError: in one sentence what is wrong and what to do.
        """
        check_nnunet_version()
        for path in (nnUNet_preprocessed, nnUNet_results):
            if not path.is_set():
                raise ConfigurationError(
                    f"The environment variable {path.env_var_name} is not set. nnU-Net needs nnUNet_raw, "
                    f"nnUNet_preprocessed and nnUNet_results; see nnU-Net's documentation/setting_up_paths.md."
                )
        if configuration not in plans.get("configurations", {}):
            known = ", ".join(plans.get("configurations", {})) or "none"
            raise ConfigurationError(
                f"The plans file '{plans.get('plans_name')}' has no configuration '{configuration}'. It has: {known}."
            )
        plans_manager = PlansManager(plans)
        configuration_manager = plans_manager.get_configuration(configuration)
        owner = method_of(configuration_manager.network_arch_class_name)
        if owner is not None and not issubclass(cls.network_class, owner.network_class()):
            raise ConfigurationError(
                f"The plans '{plans.get('plans_name')}' are those of {owner.title} ({owner.trainer}), whose options "
                f"{cls.__name__} does not know. {_planned_for(cls.__name__)}"
            )
        options = cls.options_class.from_plans(configuration_manager.configuration.get(PLANS_KEY))
        with torch.device("meta"):  # no memory, no random numbers: only what the constructor checks
            network: Any = cls.build_network_architecture(
                plans_manager,
                configuration_manager,
                determine_num_input_channels(plans_manager, configuration_manager, dataset_json),
                plans_manager.get_label_manager(dataset_json).num_segmentation_heads,
            )
        if hasattr(network, "check_patch_size"):
            network.check_patch_size(configuration_manager.patch_size)
        return options

    @classmethod
    def whole_arch_kwargs(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """The planned arch_kwargs with the network's defaults."""
        return {**architecture_options(cls.network_class), **cls.planned_arch_kwargs(configuration_manager)}

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network that the plans name, or the method's default for the configuration. nnU-Net calls this twice:

        in training, and at prediction (on the class) with deep supervision off.
        """
        dimensions = len(configuration_manager.patch_size)
        if dimensions == 2 and not cls.network_class.supports_2d:
            raise ConfigurationError(
                f"{cls.__name__} is a 3D method and cannot train a 2d configuration. Use 3d_fullres or 3d_lowres."
            )
        arch_kwargs = cls.planned_arch_kwargs(configuration_manager)
        known = architecture_options(cls.network_class)
        refuse_unknown(arch_kwargs, known, f"arch_kwargs of {dotted_path(cls.network_class)}")
        return cls.network_class(
            num_input_channels, num_output_channels, deep_supervision=enable_deep_supervision, **arch_kwargs
        )

    @classmethod
    def planned_arch_kwargs(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """The arch_kwargs in the plans where they name our network, else the method's default for them."""
        named = named_arch_kwargs(configuration_manager, cls.network_class)
        return cls.arch_kwargs_from_configuration(configuration_manager) if named is None else named

    def initialize(self) -> None:
        """nnU-Net's, with seeded weights; random numbers of the rest are as if nothing had been drawn."""
        check_patch(self.plans_manager, self.configuration_manager, self.configuration_name)
        if self.device.type == "cpu":
            keep_freed_memory()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            super().initialize()
        compiled = [*self.network.modules(), *self.loss.modules()]  # nnU-Net compiles the Dice loss too
        if (why := self.why_not_compiled()) and super()._do_i_compile():
            compiled += (parts := self.compile_parts())
            name, instead = self.network_class.__name__, ", ".join(type(part._orig_mod).__name__ for part in parts)
            self.print_to_log_file(
                f"{name} is not compiled as a whole: {why}." + (f" Its parts are: {instead}." if parts else "")
            )
        if "nnUNet_compile" not in os.environ:
            for module in compiled:
                if isinstance(module, OptimizedModule):
                    fall_back_to_eager(module, self.print_to_log_file)
        if self.options.train_bfloat16 and self.device.type == "cpu":
            if has_bfloat16():
                for part in self.trained_parts():
                    train_in_bfloat16(unwrap(part))
            else:
                self.print_to_log_file("This CPU has no bfloat16 instructions: training is in float32.")
        self.on_initialized()

    def trained_parts(self) -> list[nn.Module]:
        """method: the modules that training steps call."""
        return [self.net]

    def _do_i_compile(self) -> bool:
        return not self.why_not_compiled() and super()._do_i_compile()

    def why_not_compiled(self) -> str:
        """method: why the network is not compiled as a whole, in a clause; empty where it is."""
        network = self.network_class
        return "" if network.supports_compile else getattr(network, "no_fixed_graph", "it does not claim to support it")

    def compile_parts(self) -> list[Any]:
        """method: compiles what of such a network can be."""
        return []

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switches the network's list output on or off; our networks have no `.decoder`."""
        self.net.deep_supervision = enabled

    def gathered(self, value: Any) -> list[Any]:
        """The value of each rank, in their order; on all of them."""
        values: list[Any] = [value]
        if self.is_ddp:
            values = [None] * dist.get_world_size()
            dist.all_gather_object(values, value)
        return values

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """nnU-Net's; without `mirroring` as its `nnUNetTrainerNoMirroring`."""
        rotation, dummy_2d, size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.options.mirroring:
            axes = None
            self.inference_allowed_mirroring_axes: Any = None
        return rotation, dummy_2d, size, axes

    # reports

    def on_train_start(self) -> None:
        """nnU-Net's; then prints and saves the network's cost, and takes up the history where the training stands."""
        if not self.was_initialized:
            self.initialize()
        dataset = self.dataset_class(self.preprocessed_dataset_folder)
        check_preprocessed(dataset, self.plans_manager, self.configuration_manager, self.configuration_name)
        super().on_train_start()
        if self.local_rank != 0:
            return
        report = complexity_report(self.net, self.num_input_channels, self.configuration_manager.patch_size)
        write_json(os.path.join(self.output_folder, "complexity.json"), {**report, "versions": versions()})
        self.print_to_log_file(complexity_text(report), add_timestamp=False)
        if self.current_epoch and os.path.isfile(self._history_file):
            self.history = [row for row in read_json(self._history_file) if row["epoch"] < self.current_epoch]
        elif self.current_epoch == 0:  # the state before the first step, which pretrained weights may have set
            self.history = [{"epoch": -1, **self.history_row()}]

    @property
    def _history_file(self) -> str:
        return os.path.join(self.output_folder, f"{self.method}_history.json")

    def on_epoch_end(self) -> None:
        """nnU-Net's; then adds the epoch's row to `<method>_history.json` (the row of epoch -1 is the start)."""
        row: dict[str, Any] = {"epoch": self.current_epoch}
        for ours, theirs in (("train_loss", "train_losses"), ("val_loss", "val_losses"), ("dice", "mean_fg_dice")):
            value = float(np.round(self.logger.get_value(theirs, step=-1), 6))
            row[ours] = value if np.isfinite(value) else None
        row.update(self.history_row())
        super().on_epoch_end()
        if self.local_rank == 0:
            self.history.append(row)
            write_json(self._history_file, self.history)

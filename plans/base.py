"""What all our planners share: nnU-Net's planning with a method's own network and its memory."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed

from nnunet_ext.discovery.commands import typed_command
from nnunet_ext.discovery.compatibility import check_nnunet_version
from nnunet_ext.errors import show_configuration_errors_as_text
from nnunet_ext.methods import default_plans_name
from nnunet_ext.planning.options import PLANS_KEY, TrainingOptions, dotted_path
from nnunet_ext.resampling.separable import resample_separable

show_configuration_errors_as_text()


class ExtPlanner(ExperimentPlanner):
    """Plans a method's network in the configurations that it supports, and nnU-Net's U-Net in the others (2d).

    nnU-Net's rules for spacing, aspect, divisibility and batch size are kept; what is asked of the method is how many
    feature-map elements a training step keeps. A method sets the class attributes.
    """

    network_class: ClassVar[type[Any]]
    options_class: ClassVar[type[TrainingOptions]] = TrainingOptions
    arch_kwargs_at: ClassVar[Callable[..., dict[str, Any]]]  # strides, patch_size -> the network's arch_kwargs

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        check_nnunet_version()
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name or default_plans_name(type(self).__name__),
            overwrite_target_spacing,
            suppress_transpose,
        )

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Shares nnU-Net's preprocessed data where ours is the same: 2d and 3d_fullres, preprocessed as by default.

        (3d_lowres depends on the patch size, which depends on the network.)
        """
        as_default = (
            self.preprocessor_name == "DefaultPreprocessor"
            and self.overwrite_target_spacing is None
            and not self.suppress_transpose
        )
        if configuration_name in ("2d", "3d_fullres") and as_default:
            return f"nnUNetPlans_{configuration_name}"
        return super().generate_data_identifier(configuration_name)

    def determine_resampling(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """nnU-Net's orders, by the functions that are equal to its own and faster."""
        _, of_data, _, of_seg = super().determine_resampling(*args, **kwargs)
        return resample_separable, of_data, resample_separable, of_seg

    def determine_segmentation_softmax_export_fn(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As `determine_resampling`."""
        _, arguments = super().determine_segmentation_softmax_export_fn(*args, **kwargs)
        return resample_separable, arguments

    def plan_experiment(self) -> dict:
        """nnU-Net's; then says which preprocessed data are nnU-Net's own, and what is left to preprocess."""
        plans = super().plan_experiment()
        for name, configuration in plans["configurations"].items():
            if "data_identifier" in configuration:
                print(self._data_text(name, configuration["data_identifier"]))
        return plans

    def _data_text(self, name: str, identifier: str) -> str:
        folder = os.path.join(str(nnUNet_preprocessed), self.dataset_name, identifier)
        cases = sum(file.endswith(".pkl") for file in os.listdir(folder)) if os.path.isdir(folder) else 0
        whose = ", which nnU-Net's own plans use too" if identifier.startswith("nnUNetPlans_") else ""
        if cases >= len(self.dataset):
            return (
                f"{name}: preprocessed data are there ({identifier}{whose}). Nothing is left to do; "
                f"nnUNetv2_preprocess would delete them and make them again."
            )
        number = str(int(self.dataset_name[7:10]))
        words = ["nnUNetv2_preprocess", "-d", number, "-plans_name", self.plans_identifier, "-c", name]
        command = typed_command(words)
        return f"{name}: preprocessed data are not there yet ({identifier}{whose}). They are made by: {command}"

    @classmethod
    def static_estimate_VRAM_usage(
        cls,
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict,
        arch_kwargs_req_import: Sequence[str],
    ) -> float:
        """Feature-map elements in nnU-Net's currency.

        nnU-Net's reference values count one element per convolution output, while a training step keeps two (the
        convolution's output and its activation); our networks count all that is kept.
        """
        if arch_class_name != dotted_path(cls.network_class):
            return ExperimentPlanner.static_estimate_VRAM_usage(
                patch_size, input_channels, output_channels, arch_class_name, arch_kwargs, arch_kwargs_req_import
            )
        with torch.device("meta"):
            kwargs = cls.arch_kwargs_at(arch_kwargs["strides"], patch_size)
            network = cls.network_class(input_channels, output_channels, **kwargs)
        return network.compute_conv_feature_map_size(patch_size) / 2

    def get_plans_for_configuration(self, spacing: Any, *args: Any, **kwargs: Any) -> dict:
        """nnU-Net's plan of one configuration, with our network and the method's options written down."""
        ours = len(spacing) == 3 or self.network_class.supports_2d
        self.UNet_class = self.network_class if ours else PlainConvUNet
        plan = super().get_plans_for_configuration(spacing, *args, **kwargs)
        if ours:
            plan["architecture"] = {
                "network_class_name": dotted_path(self.network_class),
                "arch_kwargs": self.arch_kwargs_at(plan["architecture"]["arch_kwargs"]["strides"], plan["patch_size"]),
                "_kw_requires_import": [],
            }
            plan[PLANS_KEY] = asdict(self.options_class())
        return plan

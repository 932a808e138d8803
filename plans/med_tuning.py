"""MedTuningPlanner: nnU-Net's sizing with the feature maps that tuning keeps, for a network that knows its patch."""

from nnunet_ext.med_tuning.network import FEWEST_TOKENS, TOKEN_SIDE, MedTuningNet, arch_kwargs_at, token_side
from nnunet_ext.med_tuning.options import MedTuningOptions
from nnunet_ext.med_tuning.weights import is_at_hand
from nnunet_ext.planning.options import architecture_options
from nnunet_ext.plans.base import ExtPlanner


class MedTuningPlanner(ExtPlanner):
    """Writes `MedTuningPlans`: ViT-B/16 with UPerNet and Med-Adapters."""

    network_class = MedTuningNet
    options_class = MedTuningOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)

    def plan_experiment(self) -> dict:
        """nnU-Net's; says where the weights are not on this machine, so that they are fetched in time."""
        plans = super().plan_experiment()
        for name, configuration in plans["configurations"].items():
            if "patch_size" in configuration and token_side(configuration["patch_size"]) < TOKEN_SIDE:
                side = token_side(configuration["patch_size"])
                print(
                    f"{name}: tokens of {side} x {side} pixels instead of {TOKEN_SIDE} x {TOKEN_SIDE}, so that slices "
                    f"of {configuration['patch_size'][-2:]} have at least {FEWEST_TOKENS} x {FEWEST_TOKENS} of them."
                )
        backbone = architecture_options(self.network_class)["backbone"]
        if not is_at_hand(backbone, self.options_class()):
            print(
                f"The pretrained weights of {backbone} are not on this machine. Training downloads them; where it is "
                f"offline, name a file (nnunet_ext plan --method med_tuning --set weights_file=FILE) or train from "
                f"random weights (--set pretrained=false)."
            )
        return plans

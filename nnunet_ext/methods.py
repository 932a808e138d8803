"""The methods by name: what the command line must know of each before anything heavy is imported."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nnunet_ext.errors import ConfigurationError


@dataclass(frozen=True)
class Method:
    """A method's names for nnU-Net and the dotted paths of its parts, which are imported when asked for."""

    name: str
    title: str
    trainer: str
    planner: str
    plans_name: str
    network: str
    options: str
    arch_kwargs: str
    costs: str
    presets: str
    code_settings: str | None = None
    further_costs: str | None = None
    plan_check: str | None = None

    def network_class(self) -> Any:
        """The network's class; its dotted path is what plans files name."""
        return _locate(self.network)

    def options_class(self) -> Any:
        """The dataclass of the training options."""
        return _locate(self.options)

    def trainer_class(self) -> Any:
        """The trainer's class."""
        from nnunet_ext.discovery.registry import TRAINERS

        return _locate(f"{TRAINERS[self.trainer]}.{self.trainer}")

    def arch_kwargs_from_strides(self) -> Callable[..., dict[str, Any]]:
        """The function strides -> default arch_kwargs."""
        return _locate(self.arch_kwargs)

    def cost_report(self) -> Callable[..., dict[str, Any]]:
        """The function (channels, classes, patch_size, arch_kwargs) -> parameters and costs.

        Free of torch, but for Med-Tuning.
        """
        return _locate(self.costs)

    def preset_settings(self) -> dict[str, dict[str, Any]]:
        """Preset name -> settings for `nnunet_ext plan`."""
        return _locate(self.presets)

    def settings_of_code(self) -> Callable[..., dict[str, Any]]:
        """The function (file of a searched architecture) -> settings for `nnunet_ext plan`.

        Raises:
            ConfigurationError: the method searches no architecture.
        """
        if self.code_settings is None:
            raise ConfigurationError(f"{self.title} has no architecture code; --code is for methods that search one.")
        return _locate(self.code_settings)

    def further_cost_reports(self) -> Callable[..., dict[str, dict[str, Any]]]:
        """The function (channels, classes, configuration) -> name -> cost report of the method's other networks."""
        return _locate(self.further_costs) if self.further_costs else lambda *_: {}

    def check_plan(self, network: Any, options: Any) -> None:
        """What the method asks besides of a planned network (on the meta device) and its training options.

        Raises:
            ConfigurationError: training with them would fail.
        """
        if self.plan_check is not None:
            _locate(self.plan_check)(network, options)


METHODS = {
    "dints": Method(
        name="dints",
        title="DiNTS",
        trainer="DiNTSTrainer",
        planner="DiNTSPlanner",
        plans_name="DiNTSPlans",
        network="nnunet_ext.dints.network.DiNTSNet",
        options="nnunet_ext.dints.options.DiNTSOptions",
        arch_kwargs="nnunet_ext.dints.network.arch_kwargs_from_strides",
        costs="nnunet_ext.dints.costs.cost_report",
        presets="nnunet_ext.dints.presets.PRESETS",
        code_settings="nnunet_ext.dints.architecture_code.code_settings",
        further_costs="nnunet_ext.dints.costs.further_cost_reports",
    ),
    "e2enet": Method(
        name="e2enet",
        title="E2ENet",
        trainer="E2ENetTrainer",
        planner="E2ENetPlanner",
        plans_name="E2ENetPlans",
        network="nnunet_ext.e2enet.network.E2ENet",
        options="nnunet_ext.e2enet.options.E2ENetOptions",
        arch_kwargs="nnunet_ext.e2enet.network.arch_kwargs_from_strides",
        costs="nnunet_ext.e2enet.costs.cost_report",
        presets="nnunet_ext.e2enet.presets.PRESETS",
    ),
    "med_danet": Method(
        name="med_danet",
        title="Med-DANet",
        trainer="MedDANetTrainer",
        planner="MedDANetPlanner",
        plans_name="MedDANetPlans",
        network="nnunet_ext.med_danet.network.MedDANet",
        options="nnunet_ext.med_danet.options.MedDANetOptions",
        arch_kwargs="nnunet_ext.med_danet.network.arch_kwargs_from_strides",
        costs="nnunet_ext.med_danet.costs.cost_report",
        presets="nnunet_ext.med_danet.presets.PRESETS",
        further_costs="nnunet_ext.med_danet.costs.further_cost_reports",
    ),
    "med_tuning": Method(
        name="med_tuning",
        title="Med-Tuning",
        trainer="MedTuningTrainer",
        planner="MedTuningPlanner",
        plans_name="MedTuningPlans",
        network="nnunet_ext.med_tuning.network.MedTuningNet",
        options="nnunet_ext.med_tuning.options.MedTuningOptions",
        arch_kwargs="nnunet_ext.med_tuning.network.arch_kwargs_from_strides",
        costs="nnunet_ext.med_tuning.costs.cost_report",
        presets="nnunet_ext.med_tuning.presets.PRESETS",
        plan_check="nnunet_ext.med_tuning.weights.check_plan",
    ),
}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigurationError: unknown name; the known ones are listed.
    """
    if name not in METHODS:
        raise ConfigurationError(f"Unknown method '{name}'. Known: {', '.join(sorted(METHODS))}.")
    return METHODS[name]


def method_of(network_class_name: str) -> Method | None:
    """The method whose network this is."""
    return next((m for m in METHODS.values() if m.network == network_class_name), None)


def _locate(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)

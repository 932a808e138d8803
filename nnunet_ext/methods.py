"""The methods: one entry says all that the rest of the package must know of a method, before anything is imported.

Registry, demo, report, doctor, `nnunet_ext plan`, `info`, `transfer` and the packaging derive from the entries;
docs/adding_a_method.md says how a method is added.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from nnunet_ext.errors import ConfigurationError


@dataclass(frozen=True)
class Method:
    """A method's names, and the dotted paths of its parts, which are imported when they are asked for.

    Args:
        name: on our command line, and of its folder.
        title: in texts.
        summary: when to use it, in a clause.
        trainer_paths: classes of the trainers; the first trains the network that predicts.
        planner_path: class of the planner, which is called ...Planner.
        network_path: class of the network; its dotted path is what plans files name.
        options_path: dataclass of the training options.
        arch_kwargs_path: function (strides, patch_size) -> default arch_kwargs.
        presets_path: dict preset -> settings for `nnunet_ext plan`.
        docs: its page in the repository.
        report_paths: `method` of a trainer -> function ModelFolder -> `report.parts.Section`, or None where it has
            nothing to say.
        curves_path: function Fold -> `report.figures.training.Topology`, what the method adds to the curves.
        demo_path: function (device, real_images, steps) -> settings on top of the demo's short schedule; without it the
            demo does not offer the method.
        code_settings_path: function (file of a searched architecture) -> settings for `nnunet_ext plan`.
        parts_path: function network -> its parameters by part.
        further_costs_path: function (channels, classes, configuration) -> name -> costs of the method's other networks.
        plan_check_path: function (network on the meta device, options) that raises where training would fail.
        needs_path: function () -> (whether it is there, a sentence): what the method looks for on a machine, for
            `nnunet_ext doctor`.
        predicts: whether its models segment; a search's do not.
    """

    name: str
    title: str
    summary: str
    trainer_paths: tuple[str, ...]
    planner_path: str
    network_path: str
    options_path: str
    arch_kwargs_path: str
    presets_path: str
    docs: str
    report_paths: Mapping[str, str] = field(default_factory=dict)
    curves_path: str | None = None
    demo_path: str | None = None
    code_settings_path: str | None = None
    parts_path: str | None = None
    further_costs_path: str | None = None
    plan_check_path: str | None = None
    needs_path: str | None = None
    predicts: bool = True

    # names for nnU-Net

    @property
    def trainers(self) -> tuple[str, ...]:
        """Names of the trainers, for `-tr`."""
        return tuple(path.rpartition(".")[2] for path in self.trainer_paths)

    @property
    def trainer(self) -> str:
        """Name of the trainer whose models predict."""
        return self.trainers[0]

    @property
    def planner(self) -> str:
        """Name of the planner, for `-pl`."""
        return self.planner_path.rpartition(".")[2]

    @property
    def plans_name(self) -> str:
        """Name of the plans that the planner writes, for `-p`."""
        return default_plans_name(self.planner)

    # parts

    def trainer_class(self) -> Any:
        """The class of `trainer`."""
        return _locate(self.trainer_paths[0])

    def network_class(self) -> Any:
        """The network's class."""
        return _locate(self.network_path)

    def options_class(self) -> Any:
        """The dataclass of the training options."""
        return _locate(self.options_path)

    def arch_kwargs_at(self, strides: Any, patch_size: Any) -> dict[str, Any]:
        """The default arch_kwargs for a plan's strides and patch (voxels), JSON values only."""
        return _locate(self.arch_kwargs_path)(strides, patch_size)

    def preset_settings(self) -> dict[str, dict[str, Any]]:
        """Preset name -> settings for `nnunet_ext plan`."""
        return _locate(self.presets_path)

    def sections(self) -> dict[str, Callable[..., Any]]:
        """`method` of a trainer -> what it adds to the report."""
        return {name: _locate(path) for name, path in self.report_paths.items()}

    def curves(self) -> Callable[..., Any] | None:
        """The function that says what is drawn beside a fold's curves."""
        return _locate(self.curves_path) if self.curves_path else None

    def demo_settings(self) -> Callable[..., dict[str, Any]]:
        """The function (device, real_images, steps) -> settings on top of the demo's schedule.

        Raises:
            ConfigurationError: the demo does not offer the method.
        """
        if self.demo_path is None:
            raise ConfigurationError(f"{self.title} has no short schedule, so that the demo cannot show it.")
        return _locate(self.demo_path)

    def settings_of_code(self) -> Callable[..., dict[str, Any]]:
        """The function (file of a searched architecture) -> settings for `nnunet_ext plan`.

        Raises:
            ConfigurationError: the method searches no architecture.
        """
        if self.code_settings_path is None:
            raise ConfigurationError(f"{self.title} has no architecture code; --code is for methods that search one.")
        return _locate(self.code_settings_path)

    def parts(self) -> Callable[..., dict[str, dict[str, int]]] | None:
        """The function network -> its parameters, all and trainable, by part."""
        return _locate(self.parts_path) if self.parts_path else None

    def further_cost_reports(self) -> Callable[..., dict[str, dict[str, Any]]]:
        """The function (channels, classes, configuration) -> name -> cost report of the method's other networks."""
        return _locate(self.further_costs_path) if self.further_costs_path else lambda *_: {}

    def check_plan(self, network: Any, options: Any) -> None:
        """What the method asks besides of a planned network (on the meta device) and its training options.

        Raises:
            ConfigurationError: training with them would fail.
        """
        if self.plan_check_path is not None:
            _locate(self.plan_check_path)(network, options)

    def needs(self) -> Callable[[], tuple[bool, str]] | None:
        """The function that tells whether this machine has what the method looks for."""
        return _locate(self.needs_path) if self.needs_path else None


METHODS = {
    method.name: method
    for method in (
        Method(
            name="dints",
            title="DiNTS",
            summary="a topology searched on your own data, or the published one; large 3D data sets, GPUs with memory",
            trainer_paths=("nnunet_ext.trainers.dints.DiNTSTrainer",),
            planner_path="nnunet_ext.plans.dints.DiNTSPlanner",
            network_path="nnunet_ext.dints.network.DiNTSNet",
            options_path="nnunet_ext.dints.options.DiNTSOptions",
            arch_kwargs_path="nnunet_ext.dints.network.arch_kwargs_at",
            presets_path="nnunet_ext.dints.presets.PRESETS",
            docs="docs/dints.md",
            report_paths={"dints": "nnunet_ext.dints.report.section"},
            demo_path="nnunet_ext.dints.presets.demo_settings",
            code_settings_path="nnunet_ext.dints.code_file.code_settings",
        ),
        Method(
            name="dints_search",
            title="DiNTS search",
            summary="searches an architecture code for DiNTS on your own data",
            trainer_paths=("nnunet_ext.trainers.dints_search.DiNTSSearchTrainer",),
            planner_path="nnunet_ext.plans.dints.DiNTSSearchPlanner",
            network_path="nnunet_ext.dints.network.DiNTSSearchNet",
            options_path="nnunet_ext.dints.options.DiNTSSearchOptions",
            arch_kwargs_path="nnunet_ext.dints.network.search_arch_kwargs_at",
            presets_path="nnunet_ext.dints.presets.SEARCH_PRESETS",
            docs="docs/dints.md",
            report_paths={"dints_search": "nnunet_ext.dints.report.search_section"},
            predicts=False,
        ),
        Method(
            name="e2enet",
            title="E2ENet",
            summary="multi-organ CT, MRI; small models to store and ship",
            trainer_paths=("nnunet_ext.trainers.e2enet.E2ENetTrainer",),
            planner_path="nnunet_ext.plans.e2enet.E2ENetPlanner",
            network_path="nnunet_ext.e2enet.network.E2ENet",
            options_path="nnunet_ext.e2enet.options.E2ENetOptions",
            arch_kwargs_path="nnunet_ext.e2enet.network.arch_kwargs_at",
            presets_path="nnunet_ext.e2enet.presets.PRESETS",
            docs="docs/e2enet.md",
            report_paths={"e2enet": "nnunet_ext.e2enet.report.section"},
            curves_path="nnunet_ext.e2enet.report.topology",
            demo_path="nnunet_ext.e2enet.presets.demo_settings",
            needs_path="nnunet_ext.e2enet.packed.library.found_here",
        ),
        Method(
            name="med_danet",
            title="Med-DANet",
            summary="volumes with many empty or easy slices; each slice takes the 2D network that it needs, or none",
            trainer_paths=("nnunet_ext.trainers.med_danet.MedDANetTrainer",),
            planner_path="nnunet_ext.plans.med_danet.MedDANetPlanner",
            network_path="nnunet_ext.med_danet.network.MedDANet",
            options_path="nnunet_ext.med_danet.options.MedDANetOptions",
            arch_kwargs_path="nnunet_ext.med_danet.network.arch_kwargs_at",
            presets_path="nnunet_ext.med_danet.presets.PRESETS",
            docs="docs/med_danet.md",
            report_paths={"med_danet": "nnunet_ext.med_danet.report.section"},
            demo_path="nnunet_ext.med_danet.presets.demo_settings",
            further_costs_path="nnunet_ext.med_danet.costs.further_cost_reports",
        ),
        Method(
            name="med_tuning",
            title="Med-Tuning",
            summary="little data: a 2D transformer pretrained on natural images, frozen but for small adapters",
            trainer_paths=("nnunet_ext.trainers.med_tuning.MedTuningTrainer",),
            planner_path="nnunet_ext.plans.med_tuning.MedTuningPlanner",
            network_path="nnunet_ext.med_tuning.network.MedTuningNet",
            options_path="nnunet_ext.med_tuning.options.MedTuningOptions",
            arch_kwargs_path="nnunet_ext.med_tuning.network.arch_kwargs_at",
            presets_path="nnunet_ext.med_tuning.presets.PRESETS",
            docs="docs/med_tuning.md",
            report_paths={"med_tuning": "nnunet_ext.med_tuning.report.section"},
            demo_path="nnunet_ext.med_tuning.presets.demo_settings",
            parts_path="nnunet_ext.med_tuning.costs.part_counts",
            plan_check_path="nnunet_ext.med_tuning.weights.check_plan",
            needs_path="nnunet_ext.med_tuning.weights.found_here",
        ),
    )
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
    return next((m for m in METHODS.values() if m.network_path == network_class_name), None)


def method_of_trainer(trainer: str) -> Method | None:
    """The method to which a trainer of that name belongs."""
    return next((method for method in METHODS.values() if trainer in method.trainers), None)


def default_plans_name(planner: str) -> str:
    """What a planner of that name calls its plans."""
    return f"{planner.removesuffix('Planner')}Plans"


def _locate(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)

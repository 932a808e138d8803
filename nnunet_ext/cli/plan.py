"""`nnunet_ext plan`: writes a plans file beside the existing ones."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.cli.arguments import add_dataset, add_overwrite
from nnunet_ext.discovery.commands import typed_command
from nnunet_ext.discovery.devices import device_words
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import METHODS, Method, get_method, method_of
from nnunet_ext.planning.options import refuse_unknown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nnunet_ext plan`."""
    add_dataset(parser)
    parser.add_argument(
        "--method",
        choices=sorted(METHODS),
        help="whose network and options to write (default: as --preset or --from say)",
    )
    parser.add_argument(
        "--preset",
        dest="presets",
        action="append",
        default=[],
        metavar="METHOD/NAME",
        help="named settings, for example e2enet/s90, or s90 beside --method; repeatable, later ones and --set win",
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="PLANS",
        help="plans to start from (default: the method's own where they exist, else nnUNetPlans)",
    )
    parser.add_argument(
        "--code",
        type=Path,
        metavar="FILE",
        help="a searched architecture (architecture.json, or the reference's .pt or .pth), for methods that search one",
    )
    parser.add_argument("--name", required=True, metavar="PLANS", help="name of the new plans, for nnU-Net's -p")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="training option, network argument, patch_size, batch_size, resampling; VALUE is JSON or text; repeatable",
    )
    parser.add_argument(
        "--configuration",
        dest="configurations",
        action="append",
        metavar="NAME",
        help="change only this configuration; repeatable (default: all that the method supports)",
    )
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    """Derives, checks and writes the plans, and says how to train with them."""
    from nnunet_ext.planning.derive import derive_plans, parse_settings
    from nnunet_ext.planning.describe import CONFIGURATION_SETTINGS
    from nnunet_ext.planning.plans_files import preprocessed_folder, read_dataset_json, read_plans, write_plans

    folder = preprocessed_folder(args.dataset)
    source = None if args.source is None else read_plans(folder, args.source)
    name = args.method
    if name is None and not args.presets and source is not None:
        name = method_of_plans(source)
    wanted = parse_settings(args.settings)
    if name is None and not args.presets and wanted and set(wanted) <= set(CONFIGURATION_SETTINGS):
        return _run_without_method(args, folder, wanted)
    method, settings = chosen_method_and_presets(name, args.presets)
    if args.code is not None:
        settings.update(method.settings_of_code()(args.code))
    settings.update(wanted)
    if source is None:
        there = [name for name in (method.plans_name, "nnUNetPlans") if (folder / f"{name}.json").is_file()]
        if not there:
            raise ConfigurationError(
                f"{folder} has neither {method.plans_name} nor nnUNetPlans to start from. Make them with: "
                f"{_planning(folder, method)} (or name others with --from)."
            )
        args.source = there[0]
        source = read_plans(folder, args.source)
    plans = derive_plans(
        source,
        read_dataset_json(folder),
        method,
        name=args.name,
        settings=settings,
        configurations=args.configurations,
    )
    memory = []
    if args.code is not None:
        from nnunet_ext.planning.fit import fit_patches

        dataset_json = read_dataset_json(folder)
        memory = fit_patches(plans, source, dataset_json, method, keep_patch="patch_size" in settings)
    what = write_plans(folder, plans, overwrite=args.overwrite)
    print(f"From {args.source}:")
    print(f"{folder / args.name}.json {'holds these plans already' if what == 'unchanged' else what}")
    changed = [name for name, values in plans["configurations"].items() if values != source["configurations"][name]]
    for name in changed:
        values = plans["configurations"][name]
        patch = "x".join(map(str, values["patch_size"]))
        print(f"  {name}: {method.title}, patch {patch}, batch {values['batch_size']}")
    for line in memory:
        print(f"  {line}")
    foreign = [
        name
        for name in changed
        if source["configurations"][name]["architecture"]["network_class_name"] != method.network_path
    ]
    if foreign and not {"patch_size", "batch_size"} & set(settings):
        print(
            f"Patch and batch are those of {args.source}, sized for another network. {method.planner} sizes them for "
            f"{method.title}: {_planning(folder, method)}"
        )
    configuration = "3d_fullres" if "3d_fullres" in changed else next(iter(changed), "3d_fullres")
    print(f"Train with: {_training(folder, configuration, '-tr', method.trainer, '-p', args.name)}")
    return 0


def _planning(folder: Path, method: Method) -> str:
    return typed_command(["nnUNetv2_plan_experiment", "-d", _number(folder.name), "-pl", method.planner])


def _training(folder: Path, configuration: str, *words: str) -> str:
    return typed_command(["nnUNetv2_train", folder.name, configuration, "0", *words, *device_words()])


def _run_without_method(args: argparse.Namespace, folder: Path, settings: Mapping[str, Any]) -> int:
    """Plans of any network, with another patch, batch or resampling."""
    from nnunet_ext.planning.plain import derive_plain
    from nnunet_ext.planning.plans_files import read_plans, write_plans
    from nnunet_ext.planning.resampling import SETTING

    source = args.source or "nnUNetPlans"
    plans = derive_plain(
        read_plans(folder, source), name=args.name, settings=settings, configurations=args.configurations
    )
    what = write_plans(folder, plans, overwrite=args.overwrite)
    print(f"From {source}:")
    print(f"{folder / args.name}.json {'holds these plans already' if what == 'unchanged' else what}")
    configuration = (args.configurations or ["3d_fullres"])[0]
    if SETTING in settings:
        words = ["-d", _number(folder.name), "-plans_name", args.name, "-c", configuration]
        print(f"Data that are not there yet are made by: {typed_command(['nnUNetv2_preprocess', *words])}")
    print(f"Train with: {_training(folder, configuration, '-p', args.name)}")
    return 0


def method_of_plans(plans: Mapping[str, Any]) -> str | None:
    """The name of the method whose networks the plans hold; None where there is none, or several."""
    architectures = [values["architecture"] for values in plans["configurations"].values() if "architecture" in values]
    names = {method.name for a in architectures if (method := method_of(a.get("network_class_name"))) is not None}
    return names.pop() if len(names) == 1 else None


def chosen_method_and_presets(name: str | None, presets: Sequence[str]) -> tuple[Method, dict[str, Any]]:
    """The method, from its name or from the presets, and the presets' settings in their order.

    Raises:
        ConfigurationError: neither is given, an unknown preset, or presets of several methods.
    """
    pairs = [_method_and_preset(preset, name) for preset in presets]
    names = {method for method, _ in pairs} | ({name} if name else set())
    if len(names) != 1:
        found = ", ".join(sorted(names)) or "neither"
        raise ConfigurationError(
            f"Give one --method, presets of one method (METHOD/NAME), or plans of one with --from; found {found}."
        )
    method = get_method(names.pop())
    settings: dict[str, Any] = {}
    known = method.preset_settings()
    for _, preset in pairs:
        refuse_unknown([preset], known, f"preset of {method.title}")
        settings.update(known[preset])
    return method, settings


def _method_and_preset(text: str, method: str | None) -> tuple[str, str]:
    """ "e2enet/s90" -> e2enet, s90; "s90" belongs to `method`."""
    owner, slash, preset = text.partition("/")
    if slash:
        return owner, preset
    if method is not None:
        return method, text
    if text in METHODS:
        raise ConfigurationError(f"--preset {text} names a method. Its presets: nnunet_ext presets {text}")
    owners = [f"{name}/{text}" for name, known in METHODS.items() if text in known.preset_settings()]
    if owners:
        raise ConfigurationError(f"--preset {text} needs its method: --preset {' or --preset '.join(owners)}")
    raise ConfigurationError(f"No method has a preset '{text}'. See: nnunet_ext presets METHOD")


def _number(dataset: str) -> str:
    return str(int(dataset[7:10])) if dataset[7:10].isdigit() else dataset

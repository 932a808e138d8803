"""A fold's network in ONNX, and beside it what a program must know to predict with it as nnU-Net does."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.discovery.compatibility import versions
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_atomically, write_json
from nnunet_ext.prediction.graph import apart, first_line, fixed_graph, quiet

BOUND = 1e-3  # of the logits' range, as of networks in OpenVINO
LARGEST = 2**31 - 1  # bytes of a protobuf message
ADVICE = "Leave --onnx out."


def check_onnx() -> None:
    """Refuses where the packages that write ONNX are not there.

    Raises:
        ConfigurationError: which, and how to install them.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ConfigurationError(f'--onnx needs {" and ".join(missing)}. Run: pip install "nnunet-ext[onnx]"')


def write_onnx(network: nn.Module, x: Tensor, path: Path) -> dict[str, float] | None:
    """Writes `network` for images of the size of `x [1, C, *patch]`, "image" -> "logits", both float32.

    Returns how far ONNX Runtime's logits are from torch's (`prediction.graph.agreement`), None where it is not
    installed.

    Raises:
        ConfigurationError: the network cannot be written, or ONNX Runtime computes other logits.
    """
    exported = fixed_graph(network, x, "ONNX", ADVICE)
    name = type(network).__name__
    with torch.no_grad(), quiet():
        try:
            program = torch.onnx.export(
                exported, (x,), dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
            )
            assert program is not None
            proto = program.model_proto
        except Exception as error:  # of many kinds
            raise ConfigurationError(f"{name} cannot be converted to ONNX: {first_line(error)}. {ADVICE}") from error
        expected = exported.module()(x)
    _forget_sources(proto)
    if proto.ByteSize() > LARGEST:
        raise ConfigurationError(f"{name} is too large for one ONNX file, {proto.ByteSize() / 1e9:.1f} GB. {ADVICE}")
    content = proto.SerializeToString(deterministic=True)
    write_atomically(path, lambda file: file.write(content))
    return _compared(content, x, expected, name)


def _forget_sources(proto: Any) -> None:
    """Removes what torch notes of each node: the lines of Python it comes from, with this machine's paths."""
    for graph in (proto.graph, *proto.functions):
        for item in (graph, *graph.node, *graph.value_info, *getattr(graph, "initializer", ())):
            if hasattr(item, "metadata_props"):
                del item.metadata_props[:]
            item.doc_string = ""
    for item in (*proto.graph.input, *proto.graph.output):
        del item.metadata_props[:]
    del proto.metadata_props[:]


def _compared(content: bytes, x: Tensor, expected: Tensor, name: str) -> dict[str, float] | None:
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found = apart(expected, torch.from_numpy(session.run(None, {"image": x.numpy()})[0]))
    if not found["relative to range"] <= BOUND:
        raise ConfigurationError(
            f"{name} computes other logits in ONNX Runtime than in torch: they differ by "
            f"{found['relative to range']:.2g} of their range, allowed is {BOUND:g}. {ADVICE}"
        )
    return found


def write_sidecar(predictor: Any, fold: str, x: Tensor, found: dict[str, float] | None, path: Path) -> None:
    """JSON with what stands around the network in nnU-Net's prediction.

    Images are read, transposed, cropped to what is not 0, normalised and resampled to the spacing, in this order; the
    logits of overlapping patches are weighted and added, resampled back, and made labels.
    """
    plans, configuration, labels = predictor.plans_manager, predictor.configuration_manager, predictor.label_manager
    names = [str(name) for name in predictor.dataset_json["channel_names"].values()]
    numbers = plans.plans.get("foreground_intensity_properties_per_channel", {})
    axes = predictor.allowed_mirroring_axes
    content = {
        "fold": fold,
        "trainer": predictor.trainer_name,
        "plans": plans.plans_name,
        "input": {"name": "image", "shape": list(x.shape), "type": "float32"},
        "output": {
            "name": "logits",
            "shape": [1, labels.num_segmentation_heads, *x.shape[2:]],
            "type": "float32",
            "activation": "sigmoid" if labels.has_regions else "softmax",
        },
        "patch_size": list(configuration.patch_size),
        "spacing": list(configuration.spacing),
        "transpose_forward": list(plans.transpose_forward),
        "transpose_backward": list(plans.transpose_backward),
        "axes": "patch size, spacing and mirroring axes are in the order of the array that the image reader gives, "
        "transposed by transpose_forward",
        "image_reader_writer": plans.plans.get("image_reader_writer"),
        "file_ending": predictor.dataset_json["file_ending"],
        "normalisation": [
            {
                "channel": name,
                "scheme": scheme,
                "inside the nonzero mask only": bool(masked),
                "intensities of the training data": numbers.get(str(number), {}),
            }
            for number, (name, scheme, masked) in enumerate(
                zip(names, configuration.normalization_schemes, configuration.use_mask_for_norm, strict=True)
            )
        ],
        "resampling": {
            key: configuration.configuration.get(key)
            for key in (
                "resampling_fn_data",
                "resampling_fn_data_kwargs",
                "resampling_fn_probabilities",
                "resampling_fn_probabilities_kwargs",
            )
        },
        "labels": predictor.dataset_json["labels"],
        "regions_class_order": predictor.dataset_json.get("regions_class_order"),
        "mirroring_axes": None if axes is None else list(axes),
        "step_size": predictor.tile_step_size,
        "weighted by a Gaussian": bool(predictor.use_gaussian),
        "compared with torch in ONNX Runtime": found,
        "versions": versions(),
    }
    write_json(path, content)

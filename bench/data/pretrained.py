"""Loads models and their tokenizers by name, and refuses what cannot be loaded.

A name is one of bench.data.assets.MODELS, a folder in Hugging Face layout, a GGUF file, or a name on the Hugging Face
hub. Weights are read from safetensors or GGUF only, never unpickled, and code that comes with a model runs only if
asked. A folder that was saved by methods.checkpoint is checked against its manifest, whatever its layers look like.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data import assets, converted, model_folder
from bench.data import model_folder as hub_models
from bench.data.file_hashes import sha256_of_file
from methods import model_files
from methods.errors import UserError, first_line_of
from methods.files import hash_file

if TYPE_CHECKING:
    import torch

    from methods.model.decoder import Place
    from methods.model.layer_store import LayerStore


DTYPES = ("float32", "bfloat16", "float16")


def check(name: str, trust_remote_code: bool = False) -> None:
    """Refuse a model that cannot be loaded, before any work. Raises UserError, which says what would be right."""
    if name in assets.MODELS or _is_gguf(name):
        return
    if Path(name).is_dir():
        model_folder.check_folder(name, Path(name), trust_remote_code)
    elif Path(name).exists() or not _is_hub_name(name):
        raise UserError(f"{name!r} is no model: give {_choices()}")
    elif (cached := hub_models.find_in_cache(name)) is not None:
        model_folder.check_folder(name, cached, trust_remote_code)
    else:
        hub_models.check_on_hub(name, _choices(), trust_remote_code)


def name_of_model(name: str) -> str:
    """Return the name of a model in tables."""
    if name in assets.MODELS:
        return assets.MODELS[name].title
    path = Path(name)
    return path.stem if _is_gguf(name) else path.resolve().name if path.is_dir() else name


def make_shell(name: str, trust_remote_code: bool = False) -> torch.nn.Module:
    """Return the model without weights, on the meta device: shapes, no memory. Raises UserError for an unknown type."""
    import torch

    from methods.checkpoint.pruned_config import auto_class_of

    try:
        config = _config(name, trust_remote_code)
        model_folder.refuse_layers(Path(name), getattr(config.get_text_config(), "num_hidden_layers", 1))
        with torch.device("meta"):
            model: torch.nn.Module = auto_class_of(config).from_config(config, trust_remote_code=trust_remote_code)
        if empty := [parameter for parameter, weight in model.named_parameters() if not weight.numel()]:
            raise ValueError(f"{empty[0]} has a size of 0")
    except UserError:
        raise
    except Exception as error:  # whatever transformers makes of a description that it does not expect
        reason = first_line_of(error)
        raise UserError(f"transformers makes no causal language model of {name}: {reason}") from error
    return model


def load(
    name: str,
    device: Place,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    store: LayerStore | None = None,
) -> tuple[torch.nn.Module, Any]:
    """Return (model, tokenizer), the model in evaluation mode on `device`, its weights in `dtype`.

    device  one, or several over which the layers are spread; weights go straight there
    store   lets weights lie in files, whatever the device: those of the model where they are stored in `dtype`; the
            others are converted one layer at a time

    Raises UserError where weights are missing or have other shapes than the configuration says.
    """
    from transformers.utils import logging

    from methods.checkpoint import save_load
    from methods.checkpoint.pruned_config import PrunedConfig, auto_class_of
    from methods.checkpoint.transformers_compat import load_with_all_weights
    from methods.model import decoder
    from methods.model.decoder import Decoder

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder, options = _source(name, trust_remote_code, weights=True)
    if save_load.is_checkpoint(folder):
        model = save_load.load(folder, dtype=dtype, device=device, store=store).model
    else:
        if store is None:
            options |= decoder.options_of_loading(lambda: Decoder(make_shell(name, trust_remote_code)), device)
        stored_dtype = dtype if store is None else "auto"
        options |= {"dtype": stored_dtype, "use_safetensors": True}
        try:
            if isinstance(config := _config(name, trust_remote_code), PrunedConfig):
                options["config"] = config
            model = load_with_all_weights(auto_class_of(config), folder, left_over=True, **options)
        except ValueError as error:
            raise UserError(f"{name} does not load: {first_line_of(error)}; copy or download it again") from error
        if store is not None:
            Decoder(model, store).cast(dtype)
    return model.eval(), load_tokenizer(name, trust_remote_code)


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a model, without the model. Raises UserError where its files are none."""
    from transformers import AutoTokenizer

    folder, options = _source(name, trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        tokenizer("a")
    except Exception as error:  # whatever transformers and tokenizers make of files that are damaged
        raise UserError(
            f"the tokenizer of {name} cannot be read ({first_line_of(error)}); copy or download {folder} again"
        ) from error
    return tokenizer


def find_folder(name: str) -> Path:
    """Return the folder of a model with its weights, in the layout of Hugging Face."""
    folder, _ = _source(name, weights=True)
    return folder


def sha256_of_weights(name: str, *, download: bool = True) -> str:
    """Return the sha256 of the weight file, or of the list of sha256 and names where there are several.

    Files that are not loaded do not count. A file that has not changed since it was read is not read again
    (bench.data.file_hashes).

    download  whether weights of a hub model are downloaded; otherwise the hub's published hashes count, if any
    """
    if _is_gguf(name):
        return sha256_of_file(Path(name))
    hashes = hub_models.published_sha256(name) if is_on_hub(name) and not download else None
    if hashes is None:
        folder, _ = _source(name, weights=True)
        hashes = {file: sha256_of_file(folder / file) for file in model_files.find_weight_files(folder)}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{sha256}  {file}\n" for file, sha256 in hashes.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256_of_config(name: str, trust_remote_code: bool = False) -> str | None:
    """Return the sha256 of a folder's configuration files, and of code that comes with the model where that may run.

    None for a GGUF file, whose weights' hash covers its configuration.
    """
    if _is_gguf(name):
        return None
    folder, _ = _source(name)
    files = [folder / file for file in ("config.json", "generation_config.json") if (folder / file).is_file()]
    files += sorted(folder.glob("*.py")) if trust_remote_code else []
    return hashlib.sha256("".join(f"{hash_file(file)}  {file.name}\n" for file in files).encode()).hexdigest()


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; 'auto' is a GPU if there is one, else the CPU. Raises UserError for others."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9]\d?))?", name):
        raise UserError(f"device is auto, cpu, cuda or cuda:N; got {name!r}")
    device = torch.device(name)
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise UserError(f"device {name} was asked for, but torch sees {gpus} GPUs; use cpu or auto")
    return device


def devices_of_cell(device: torch.device, gpus: int) -> list[torch.device]:
    """Return the devices of a cell's model: of several GPUs the first ones that its process sees.

    Raises UserError where torch sees fewer.
    """
    import torch

    if gpus < 2:
        return [device]
    if (visible := torch.cuda.device_count()) < gpus:
        raise UserError(
            f"a model is to be spread over {gpus} GPUs, and torch sees {visible}; give fewer --gpus-per-cell"
        )
    return [torch.device("cuda", number) for number in range(gpus)]


def resolve_dtype(name: str, device: torch.device, *, is_here: bool = True) -> torch.dtype:
    """Return the dtype of a name. Raises UserError for any but 'auto' and DTYPES.

    'auto' is bfloat16. It is float32 on a CPU of this machine that does not multiply bfloat16 natively, and on any CPU
    of another machine (`is_here` false).
    """
    import torch

    from bench.system import environment

    if name == "auto":
        native = device.type != "cpu" or (is_here and environment.has_bfloat16())
        name = "bfloat16" if native else "float32"
    if name not in DTYPES:
        raise UserError(f"dtype is auto, {', '.join(DTYPES)}; got {name!r}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def dtype_of_weights(name: str, trust_remote_code: bool = False) -> str | None:
    """Return the dtype of the weights by the model's configuration; None where that is none of DTYPES.

    None for a GGUF file, whose tensors are of several types.
    """
    if _is_gguf(name):
        return None
    dtype = str(_config(name, trust_remote_code).dtype).removeprefix("torch.")
    return dtype if dtype in DTYPES else None


def licence_of_model(name: str) -> str | None:
    """Return the licence of a model by its short name, from its folder; None where it names none."""
    if name in assets.MODELS:
        return assets.ASSETS[assets.MODELS[name].asset].licence
    if _is_gguf(name) or not (card := _source(name)[0] / "README.md").is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    front = text.split("---", 2)[1] if text.startswith("---") else ""
    match = re.search(r"^license:\s*['\"]?([\w.-]+)", front, re.MULTILINE)
    return match[1] if match else None


def is_on_hub(name: str) -> bool:
    """Say whether `name` counts as a name on the hub, since it is no known model, file or folder."""
    return name not in assets.MODELS and not Path(name).exists() and _is_hub_name(name)


def _source(name: str, trust_remote_code: bool = False, *, weights: bool = False) -> tuple[Path, dict[str, Any]]:
    """Return (folder, options) for the `from_pretrained` of transformers; of a hub model with its weights if `weights`.

    Raises UserError for a folder of which transformers would load what no hash covers.
    """
    if _is_gguf(name):
        folder = converted.folder_of_gguf(Path(name), hashes=weights)
    elif name in assets.MODELS:
        folder = assets.fetch_model(name)
    else:
        folder = Path(name) if Path(name).is_dir() else hub_models.download_model(name, weights=weights)
    model_files.refuse_unhashed(name, folder)
    return folder, {"trust_remote_code": trust_remote_code}


def _config(name: str, trust_remote_code: bool) -> Any:
    """Return the configuration of a model; a PrunedConfig where a folder of any form says that layers differ."""
    from transformers import AutoConfig

    from methods.checkpoint import pruned_config  # noqa: F401  registers PrunedConfig
    from methods.model.architectures import FAMILIES

    folder, options = _source(name, trust_remote_code)
    config = AutoConfig.from_pretrained(folder, **options)
    if config.is_heterogeneous and config.model_type in FAMILIES:
        from methods.checkpoint import heterogeneous

        return heterogeneous.pruned_config_of(config)
    return config


def _is_gguf(name: str) -> bool:
    return name.endswith(".gguf") and Path(name).is_file()


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is not None and not name.endswith(".gguf")


def _choices() -> str:
    models = ", ".join(assets.MODELS)
    return (
        f"a known model ({models}), a folder with config.json and safetensors, a .gguf file or a hub name (ORG/MODEL)"
    )

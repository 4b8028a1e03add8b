"""Loads models and their tokenizers by name, and refuses what cannot be loaded.

A name is one of bench.data.assets.MODELS, a folder in Hugging Face layout, a GGUF file, or a name on the Hugging Face
hub. Weights are read from safetensors or GGUF only, never unpickled, and code that comes with a model runs only if
asked. A folder that was saved by methods.checkpoint is checked against its manifest, whatever its layers look like.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data import assets, model_folder
from bench.data.file_hashes import remembered_sha256
from methods.errors import UserError, first_line
from methods.files import sha256

if TYPE_CHECKING:
    import torch

    from methods.model.layer_store import LayerStore
    from methods.model.spread import Place

DTYPES = ("float32", "bfloat16", "float16")
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py", "README.md"]
HUB_LEFT_OUT = ["consolidated*", "original/*", "onnx/*"]  # the same weights in other layouts


def check(name: str, trust_remote_code: bool = False) -> None:
    """Refuse a model that cannot be loaded, before any work. Raises UserError saying what would be right."""
    if name in assets.MODELS or _is_gguf(name):
        return
    if Path(name).is_dir():
        model_folder.check(name, Path(name), trust_remote_code)
    elif Path(name).exists() or not _is_hub_name(name):
        raise UserError(f"{name!r} is no model: give {_choices()}")
    elif (cached := _cached(name)) is not None:
        model_folder.check(name, cached, trust_remote_code)
    else:
        _check_on_hub(name, trust_remote_code)


def display_name(name: str) -> str:
    """Return the name that tables give the model."""
    if name in assets.MODELS:
        return assets.MODELS[name].title
    path = Path(name)
    return path.stem if _is_gguf(name) else path.resolve().name if path.is_dir() else name


def shell(name: str, trust_remote_code: bool = False) -> torch.nn.Module:
    """Make the model without weights, on the meta device: shapes, no memory. Raises UserError for an unknown type."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        config = _config(name, trust_remote_code)
        model_folder.refuse_layers(Path(name), getattr(config.get_text_config(), "num_hidden_layers", 1))
        with torch.device("meta"):
            model: torch.nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=trust_remote_code
            )
        if empty := [parameter for parameter, weight in model.named_parameters() if not weight.numel()]:
            raise ValueError(f"{empty[0]} has a size of 0")
    except Exception as error:  # whatever transformers makes of a description that it does not expect
        reason = first_line(error)
        raise UserError(f"transformers makes no causal language model of {name}: {reason}") from error
    return model


def load(
    name: str,
    device: Place,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    store: LayerStore | None = None,
) -> tuple[torch.nn.Module, Any]:
    """Load (model, tokenizer): the model in evaluation mode on `device`, its weights in `dtype`.

    device  one, or several over which the layers are spread; weights go straight there, but those of a GGUF file
    store   lets weights lie in files, whatever the device: those of the model where they are stored in `dtype`; the
            others are converted one layer at a time
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from methods.checkpoint import save_load
    from methods.model import spread
    from methods.model.decoder import Decoder

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if _is_gguf(name):
        from bench.data import gguf_reader

        model, tokenizer = gguf_reader.load(Path(name), dtype)
        return spread.put(model, device).eval(), tokenizer
    folder, options = _source(name, trust_remote_code)
    if save_load.is_checkpoint(folder):
        model = save_load.load(folder, dtype=dtype, device=device, store=store).model
    else:
        if store is None:
            options |= spread.loading(lambda: Decoder(shell(name, trust_remote_code)), device)
        wanted = dtype if store is None else "auto"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=wanted, use_safetensors=True, **options)
        if store is not None:
            Decoder(model, store).cast(dtype)
    return model.eval(), load_tokenizer(name, trust_remote_code)


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model alone. Raises UserError where its files are none."""
    from transformers import AutoTokenizer

    if _is_gguf(name):
        from bench.data import gguf_reader

        return gguf_reader.tokenizer(Path(name))
    folder, options = _source(name, trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        tokenizer("a")
    except Exception as error:  # whatever transformers and tokenizers make of files that are damaged
        raise UserError(
            f"the tokenizer of {name} cannot be read ({first_line(error)}); copy or download {folder} again"
        ) from error
    return tokenizer


def weights_sha256(name: str) -> str:
    """Return the sha256 of the weight file, or of the list of sha256 and names where there are several.

    A file that has not changed since it was read is not read again (bench.data.file_hashes).
    """
    folder, options = _source(name)
    files = [folder / options["gguf_file"]] if "gguf_file" in options else sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return remembered_sha256(files[0])
    lines = "".join(f"{remembered_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def config_sha256(name: str, trust_remote_code: bool = False) -> str | None:
    """Return the sha256 of a folder's configuration files, and of code that comes with the model where that may run.

    None for a GGUF file, whose weights' hash covers its configuration.
    """
    folder, options = _source(name)
    if "gguf_file" in options:
        return None
    files = [folder / file for file in ("config.json", "generation_config.json") if (folder / file).is_file()]
    files += sorted(folder.glob("*.py")) if trust_remote_code else []
    return hashlib.sha256("".join(f"{sha256(file)}  {file.name}\n" for file in files).encode()).hexdigest()


def resolve_device(name: str) -> torch.device:
    """Turn a name into a device; 'auto' is a GPU if there is one, else the CPU. Raises UserError for any other."""
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


def devices(device: torch.device, gpus: int) -> list[torch.device]:
    """Return on which devices a cell's model lies: of several GPUs on the first ones that its process sees.

    Raises UserError where torch sees fewer.
    """
    import torch

    if gpus < 2:
        return [device]
    if (seen := torch.cuda.device_count()) < gpus:
        raise UserError(f"a model is to be spread over {gpus} GPUs, and torch sees {seen}; give fewer --gpus-per-cell")
    return [torch.device("cuda", number) for number in range(gpus)]


def resolve_dtype(name: str, device: torch.device, *, here: bool = True) -> torch.dtype:
    """Turn a name into a dtype. Raises UserError for any but 'auto' and DTYPES.

    'auto' is bfloat16, and float32 on a CPU that does not multiply bfloat16 natively or is not `here`, on this machine.
    """
    import torch

    from bench.system import environment

    if name == "auto":
        native = device.type != "cpu" or (here and environment.multiplies_bfloat16())
        name = "bfloat16" if native else "float32"
    if name not in DTYPES:
        raise UserError(f"dtype is auto, {', '.join(DTYPES)}; got {name!r}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def stored_dtype(name: str, trust_remote_code: bool = False) -> str | None:
    """Return the dtype that the model's configuration says its weights have; None where that is none of DTYPES."""
    dtype = str(_config(name, trust_remote_code).dtype).removeprefix("torch.")
    return dtype if dtype in DTYPES else None


def licence(name: str) -> str | None:
    """Return the licence of a model by its short name, as its folder says; None where it says nothing."""
    if name in assets.MODELS:
        return assets.ASSETS[assets.MODELS[name].asset].licence
    card = _source(name)[0] / "README.md"
    if _is_gguf(name) or not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    front = text.split("---", 2)[1] if text.startswith("---") else ""
    found = re.search(r"^license:\s*['\"]?([\w.-]+)", front, re.MULTILINE)
    return found[1] if found else None


def is_on_hub(name: str) -> bool:
    """Tell whether `name` is taken for a name on the hub, since it is no known model, file or folder."""
    return name not in assets.MODELS and not Path(name).exists() and _is_hub_name(name)


def _source(name: str, trust_remote_code: bool = False) -> tuple[Path, dict[str, Any]]:
    """Return (folder, options) for the `from_pretrained` of transformers."""
    if _is_gguf(name):
        return Path(name).parent, {"gguf_file": Path(name).name}
    options = {"trust_remote_code": trust_remote_code}
    if name in assets.MODELS:
        return assets.model_folder(name), options
    if Path(name).is_dir():
        return Path(name), options
    return _cached(name) or _snapshot(name), options


def _config(name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    import methods.checkpoint.pruned_config  # noqa: F401  # registers the configuration of models whose layers differ

    if _is_gguf(name):
        from bench.data import gguf_reader

        return gguf_reader.config(Path(name))
    folder, options = _source(name, trust_remote_code)
    return AutoConfig.from_pretrained(folder, **options)


def _is_gguf(name: str) -> bool:
    return name.endswith(".gguf") and Path(name).is_file()


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is not None and not name.endswith(".gguf")


def _choices() -> str:
    known = ", ".join(assets.MODELS)
    return f"a known model ({known}), a folder with config.json and safetensors, a .gguf file or a hub name (ORG/MODEL)"


def _check_on_hub(name: str, trust_remote_code: bool) -> None:
    if not assets.hub_is_reachable():
        near = difflib.get_close_matches(name, assets.MODELS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"{name!r} is not here and not in the hub's cache, and the hub is out of reach; {hint}give {_choices()}"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().model_info(name, timeout=assets.HUB_TIMEOUT)
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"the hub does not give {name!r}: {reason}; otherwise give {_choices()}") from error
    if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or ()):
        raise UserError(f"{name} on the hub has no *.safetensors, and other weight files are not read")
    if "auto_map" in (info.config or {}) and not trust_remote_code:
        raise UserError(f"{name} comes with its own code; read it, then allow it with --trust-remote-code")


def _cached(name: str) -> Path | None:
    """Return the folder of a hub model whose weights are all in the hub's cache, else None."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = _snapshot(name, here_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    weight_files = model_folder.named_by_index(folder) or ["model.safetensors"]
    return folder if all((folder / file).is_file() for file in weight_files) else None


def _snapshot(name: str, here_only: bool = False) -> Path:
    """Return the folder of a hub model; download it unless it is complete or `here_only`."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=HUB_LEFT_OUT, local_files_only=here_only)
    )

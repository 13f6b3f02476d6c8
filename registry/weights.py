"""Weights: getting a published file, reading it safely, and filling a model from it by name."""

from __future__ import annotations

import hashlib
import pickle
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from featuretap.registry.errors import WeightsError
from featuretap.registry.hookspecs import WeightsEntry
from featuretap.registry.import_strings import load
from featuretap.registry.specs import BackboneSpec

__all__ = ["adapted_stem", "fill", "located", "recognised", "state_of"]

State = Mapping[str, Tensor]


def located(entry: WeightsEntry) -> Path:
    """Return the file of a catalogue entry: from torch.hub's cache, or downloaded into it and checked.

    Raises:
        WeightsError: it is not in the cache and cannot be downloaded, or the download is another file.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    path = cache / entry.url.rpartition("/")[2]
    if path.exists():
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(entry.url, str(path), hash_prefix=entry.sha256)
    except (OSError, RuntimeError) as error:
        if isinstance(error, urllib.error.HTTPError):
            # It is the server's answer too, and holds the connection open.
            error.close()
        raise WeightsError(
            f"cannot download {entry.name!r} from {entry.url}: {' '.join(str(error).split())}; "
            f"put the file at {path}, or give its path as pretrained="
        ) from error
    return path


def state_of(path: Path) -> tuple[State, str]:
    """Read a `.pth` file of tensors, without running any code in it, and return it with its SHA-256.

    Raises:
        WeightsError: there is no such file, or it is no such file.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"cannot read the weights {str(path)!r}: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise WeightsError(
            f"{str(path)!r} is no file of weights that can be read safely; give a .pth file that holds a state dict"
        ) from error
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{str(path)!r} holds no state dict; save model.state_dict(), not the model or a checkpoint")
    return state, digest


def recognised(
    asked: WeightsEntry | Path, path: Path, digest: str, known: Sequence[WeightsEntry]
) -> WeightsEntry | None:
    """Return the catalogue entry that a file is, by its digest.

    Raises:
        WeightsError: the file was asked for as an entry, and is another.
    """
    if isinstance(asked, WeightsEntry):
        if not digest.startswith(asked.sha256):
            raise WeightsError(
                f"{path} is not {asked.name!r}: its SHA-256 begins with {digest[:8]}, expected {asked.sha256[:8]}; "
                "delete it to download it again"
            )
        return asked
    return next((entry for entry in known if digest.startswith(entry.sha256)), None)


def fill(
    parts: Mapping[str, nn.Module], spec: BackboneSpec, state: State, model: str, source: str, layout: str | None
) -> None:
    """Copy tensors into bare modules, the subset that the modules declare.

    Args:
        parts: prefix in our names → module.
        spec: the backbone, which knows the layouts that it is published in.
        state: the file's tensors.
        model: the model in words, for messages.
        source: the file, for messages.
        layout: the file's layout, or None to recognise it by its keys.

    Raises:
        WeightsError: a layout that the backbone does not have, or tensors that are missing, unexpected or of another
            shape.
    """
    names = _names(spec, state, model, source, layout)
    unexpected = sorted(set(state) - set(names.values()))
    if unexpected:
        raise WeightsError(f"weights do not fit {model}: {source} holds {_some(unexpected)}, which the model lacks")
    with torch.no_grad():
        for prefix, module in parts.items():
            _check_norms(prefix, module, names, model)
            for key, target in module.state_dict(keep_vars=True).items():
                name = names.get(prefix + key, prefix + key)
                if name not in state:
                    raise WeightsError(f"weights do not fit {model}: {source} lacks {name}, our {prefix + key}")
                tensor = adapted_stem(state[name], target) if prefix + key == spec.stem else state[name]
                if tensor.shape != target.shape:
                    raise WeightsError(
                        f"weights do not fit {model}: {prefix + key} is {tuple(tensor.shape)} in the file, "
                        f"{tuple(target.shape)} in the model"
                    )
                target.copy_(tensor)


def _check_norms(prefix: str, module: nn.Module, names: Mapping[str, str], model: str) -> None:
    has = module.state_dict()
    for path, norm in module.named_modules():
        if f"{prefix}{path}.running_mean" in names and f"{path}.running_mean" not in has:
            raise WeightsError(
                f"weights do not fit {model}: its norm {type(norm).__name__} cannot hold the file's running "
                "statistics; use a batch norm, or build without pretrained"
            )


def adapted_stem(weight: Tensor, target: Tensor) -> Tensor:
    """Return a stem's weight (O, 3, k, k) for another number of image channels.

    One channel gets the sum, so that a grey image acts as before; more get the three in turn, scaled by 3 / channels
    to keep the magnitude of the output. As timm does.
    """
    channels, wanted = weight.shape[1], target.shape[1]
    if wanted == channels:
        return weight
    if wanted == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, -(-wanted // channels), 1, 1)[:, :wanted]
    return repeated * (channels / wanted)


def _names(spec: BackboneSpec, state: State, model: str, source: str, layout: str | None) -> dict[str, str]:
    named = {known: load(function)(spec) for known, function in spec.layouts.items()}
    if layout is not None:
        if layout not in named:
            raise WeightsError(f"{source} is in the layout {layout!r}, and {model} has no such layout")
        return named[layout]
    best = max(named.values(), key=lambda names: len(set(names.values()) & set(state)), default=None)
    if best is None or not set(best.values()) & set(state):
        known = f"the layouts of {', '.join(named)}" if named else "no published layout"
        raise WeightsError(f"weights do not fit {model}: {source} is in none of its layouts; it has {known}")
    return best


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

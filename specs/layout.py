"""Layouts as data: how a library names the tensors of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featuretap.specs.preprocessing import Preprocessing

NATIVE = "featuretap"
"""The name of our own layout."""


@dataclass(frozen=True)
class Layout:
    """Another library's names for the tensors of one network: with its classifier, or with another head of ours.

    Args:
        names: our name → theirs, of the whole network and its head.
        norm_eps: epsilon of batch norm that the library builds the network with; None for that of the module itself.
        head_norm_eps: the same in the head, where there are norms.
        feature_taps: the address of each map that the library's feature extractor numbers, in its order; empty for the
            levels.
        first_conv: what the library calls the layers that read the image.
        image_size: height and width of the library's images where its tensors depend on them; empty otherwise.
        unused: names in the library's files of what our network lacks, such as another classifier.
        required: name in the library's files → tensor of the same shape and type, of what our network lacks and the
            library's loader asks for.
        aliases: other names in the library's files → those in `names`.
        preprocessing: how the library's model normalises its images, where it does so itself.
        architecture: what the library calls the network; empty where it has no such network, whose weights can then be
            read from files of these names, and not be written.
        arguments: keyword arguments that it builds the network with.
        features_only: whether the library builds the network only without its classifier.
        remark: what to know where a file of the library does not fit, if anything.
        writable: whether files of it are written; others are only read.
        pointwise: our linear weights (out, in) that are 1×1 convolutions (out, in, 1, 1) there.
        transposed: our linear weights (out, in) that are (in, out) there.
    """

    names: Mapping[str, str]
    norm_eps: float | None
    architecture: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    features_only: bool = False
    remark: str = ""
    writable: bool = True
    pointwise: frozenset[str] = frozenset()
    transposed: frozenset[str] = frozenset()
    head_norm_eps: float | None = None
    feature_taps: tuple[str, ...] = ()
    first_conv: str | tuple[str, ...] = "conv_stem"
    image_size: tuple[int, ...] = ()
    unused: frozenset[str] = frozenset()
    required: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None

    @property
    def norm_eps_by_part(self) -> dict[str, float]:
        """Part of the model, "backbone" and "head", → epsilon."""
        eps = {"backbone": self.norm_eps, "head": self.head_norm_eps}
        return {part: value for part, value in eps.items() if value is not None}

    @property
    def known_names(self) -> frozenset[str]:
        """All names that the library's files may have."""
        return self.unused.union(self.names.values(), self.aliases)

    def stored_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a tensor in the library's files.

        Args:
            name: ours.
            shape: of the tensor in our model.
        """
        if name in self.pointwise:
            return (*shape, 1, 1)
        return shape[::-1] if name in self.transposed else shape

    def to_stored(self, name: str, tensor: Any) -> Any:
        """Return a tensor as the library's files hold it.

        Args:
            name: ours.
            tensor: of our model, PyTorch's or a NumPy array.
        """
        if name in self.pointwise:
            return tensor[..., None, None]
        return tensor.T if name in self.transposed else tensor

    def to_native(self, name: str, tensor: Any) -> Any:
        """Return a tensor of the library's files as our model holds it; one with other dimensions stays as it is.

        Args:
            name: ours.
            tensor: of the file, PyTorch's or a NumPy array.
        """
        if name in self.pointwise and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            return tensor.reshape(tensor.shape[:2])
        return tensor.T if name in self.transposed and tensor.ndim == 2 else tensor

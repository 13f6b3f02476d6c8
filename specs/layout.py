"""Layouts: mappings from featuretap's tensor names to those of another library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featuretap.specs.preprocessing import Preprocessing

NATIVE = "featuretap"
"""Name of featuretap's own layout."""


@dataclass(frozen=True)
class Layout:
    """Another library's tensor names for one model: a backbone with its classifier, or with another head of featuretap.

    Args:
        names: mapping from featuretap's tensor names to the library's, for backbone and head.
        norm_eps: batch-norm epsilon that the library builds the model with; None for the epsilon of the module.
        architecture: the library's name of the model; empty if the library has no such model. Files with these tensor
            names can then be read, but not written.
        arguments: keyword arguments that the library builds the model with.
        features_only: whether the library can build the model only without its classifier.
        remark: note to add to the error message if a file of the library does not fit.
        writable: whether featuretap writes files in this layout. If False, it only reads them.
        pointwise: featuretap's names of linear weights (out, in) that are 1×1 convolutions (out, in, 1, 1) in the
            library.
        transposed: featuretap's names of linear weights (out, in) that are (in, out) in the library.
        head_norm_eps: batch-norm epsilon of the head, if it has norms.
        feature_taps: address of each map that the library's feature extractor returns, in its order; empty for the
            levels.
        first_conv: the library's name of the layers that read the image.
        image_size: height and width of the library's images if its tensors depend on them; otherwise empty.
        unused: names of tensors in the library's files that featuretap's model does not have, such as another
            classifier.
        required: tensors that the library's loader requires but featuretap's model does not have: a mapping from name
            in the file to a tensor of the same shape and dtype.
        aliases: mapping from alternative names in the library's files to those in `names`.
        preprocessing: normalization of the images, if the library's model does it itself.

    Examples:
        >>> from featuretap.backbones.layouts.torchvision import mobilenet_v2
        >>> from featuretap.backbones.mobilenet_v2 import V2
        >>> layout = mobilenet_v2(V2)
        >>> layout.architecture, layout.norm_eps
        ('mobilenet_v2', 1e-05)
        >>> layout.names["stages.C1.0.conv.weight"]
        'features.0.0.weight'
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
        """Mapping from part of the model ("backbone" and "head") to batch-norm epsilon."""
        eps = {"backbone": self.norm_eps, "head": self.head_norm_eps}
        return {part: value for part, value in eps.items() if value is not None}

    @property
    def known_names(self) -> frozenset[str]:
        """All tensor names that the library's files may contain."""
        return self.unused.union(self.names.values(), self.aliases)

    def stored_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a tensor in the library's files.

        Args:
            name: featuretap's name of the tensor.
            shape: shape of the tensor in featuretap's model.

        Returns:
            The shape in the file.
        """
        if name in self.pointwise:
            return (*shape, 1, 1)
        return shape[::-1] if name in self.transposed else shape

    def to_stored(self, name: str, tensor: Any) -> Any:
        """Return a tensor in the shape of the library's files.

        Args:
            name: featuretap's name of the tensor.
            tensor: tensor of featuretap's model, a `torch.Tensor` or a NumPy array.

        Returns:
            The tensor to write.
        """
        if name in self.pointwise:
            return tensor[..., None, None]
        return tensor.T if name in self.transposed else tensor

    def to_native(self, name: str, tensor: Any) -> Any:
        """Return a tensor in the shape of featuretap's model; unchanged if its number of dimensions is unexpected.

        Args:
            name: featuretap's name of the tensor.
            tensor: tensor of the library's file, a `torch.Tensor` or a NumPy array.

        Returns:
            The tensor to load into the model.
        """
        if name in self.pointwise and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            return tensor.reshape(tensor.shape[:2])
        return tensor.T if name in self.transposed and tensor.ndim == 2 else tensor

"""The registry: build, describe, save, load and run models by name. Only methods that need a model import PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.multi_head_request import Heads, resolve_multi_head_request
from featuretap.catalogue.request import resolve_request
from featuretap.specs import BackboneSpec, ModelSpec, MultiHeadSpec
from featuretap.specs.options import Freezing
from featuretap.specs.runtime import AUTO, FLOAT32, check_precision
from featuretap.support.errors import OptionError
from featuretap.support.extras import explain_missing_torch
from featuretap.support.import_strings import load

if TYPE_CHECKING:
    from torch import nn

    from featuretap.models.built import Built
    from featuretap.runtimes.compiled import CompiledModel
    from featuretap.runtimes.quantization.report import Report
    from featuretap.runtimes.sessions import Session

__all__ = ["Registry"]


class Registry(Catalogue):
    """Backbones, heads and weights by name, and the functions that work on them.

    The functions of `featuretap.registry` are the methods of one default `Registry`. Create another one to control
    which plugins are loaded, for example in tests. Methods that take a `model` raise an `OptionError` unless `build` or
    `load` returned it. All methods raise a `MissingExtraError` if a package that they need is not installed.

    Args:
        plugins: plugin modules to load in addition to the installed plugins.
        discover: load the installed plugins and read the user's `featuretap.toml`.
        builtins: load the built-in plugins.

    Examples:
        >>> from featuretap.registry import Registry
        >>> registry = Registry(discover=False)
        >>> registry.list_plugins()
        ['featuretap']
    """

    @overload
    def spec(
        self,
        name: str | BackboneSpec,
        *,
        features_only: bool = False,
        taps: Sequence[str] | None = None,
        head: str | None = None,
        pretrained: bool | str | os.PathLike[str] = False,
        num_classes: int | None = None,
        **options: Any,
    ) -> BackboneSpec | ModelSpec: ...
    @overload
    def spec(
        self,
        name: str | BackboneSpec,
        *,
        head: Heads,
        pretrained: bool | str | os.PathLike[str] = False,
        **options: Any,
    ) -> MultiHeadSpec: ...
    def spec(
        self,
        name: str | BackboneSpec,
        *,
        features_only: bool = False,
        taps: Sequence[str] | None = None,
        head: str | Heads | None = None,
        pretrained: bool | str | os.PathLike[str] = False,
        num_classes: int | None = None,
        **options: Any,
    ) -> BackboneSpec | ModelSpec | MultiHeadSpec:
        """Describe what `build` returns for the same arguments.

        Nothing is built, and no weights are read. PyTorch is imported only for names such as "timm/resnet18".

        Args:
            name: as for `build`.
            features_only: as for `build`.
            taps: as for `build`.
            head: as for `build`.
            pretrained: as for `build`. Published weights may define the head and options.
            num_classes: as for `build`.
            **options: as for `build`.

        Returns:
            A `BackboneSpec` with `features_only`, a `MultiHeadSpec` with several heads, otherwise a `ModelSpec`. Each
            has `taps`, `parameters`, `macs(height, width)` and `tap_shapes(height, width)`.

        Raises:
            FeaturetapError: as for `build`, except for weights that are not available or do not fit.

        Examples:
            >>> spec = registry.spec("mobilenet_v3_large", features_only=True)
            >>> spec.taps["C4"]
            Tap(channels=112, stride=16, rounding='ceil')
            >>> spec.tap_shapes(224, 224)["C4"]
            (112, 14, 14)
            >>> spec.parameters, spec.macs(224, 224)
            (2971952, 214080960)
        """
        arguments = {"features_only": features_only, "taps": taps, "num_classes": num_classes, **options}
        if head is not None and not isinstance(head, str):
            return resolve_multi_head_request(self, name, head, pretrained=pretrained, **arguments).spec
        return resolve_request(self, name, pretrained=pretrained, head=head, **arguments).spec

    def build(
        self,
        name: str | BackboneSpec,
        *,
        features_only: bool = False,
        taps: Sequence[str] | None = None,
        head: str | Heads | None = None,
        pretrained: bool | str | os.PathLike[str] = False,
        num_classes: int | None = None,
        **options: Any,
    ) -> Built:
        """Build a backbone or a model by name.

        Args:
            name: a name or alias from the catalogue, `distribution:name`, or a `BackboneSpec`.
            features_only: return the bare backbone, which maps images (N, in_channels, H, W) to a dict from tap address
                to feature map (N, channels, ceil(H / stride), ceil(W / stride)).
            taps: addresses of the feature maps to return, in this order (default: C1 to C5). Layers after the last tap
                are not built. With a head, the taps that the head reads instead of its defaults.
            head: name of a head; "classification" by default, unless `features_only` is set. Several names, or a
                mapping from names of your choice to names of heads, build a model that computes the backbone once for
                all heads.
            pretrained: True for the catalogue's default weights, a tag, or a path or address as for `load`. The tag of
                a published detector or segmenter also sets the head and the options that are not passed.
            num_classes: number of classes. None selects the head's default. 0 makes a head that pools return pooled
                features.
            **options: options of the backbone and of the head. `registry.spec` and `featuretap show` list them. With
                several heads, each head takes its options, `num_classes` and `taps` as a mapping under its name:
                `road={"num_classes": 19}`.

        Returns:
            The module, in training mode like every new PyTorch module, with a `.description`. A bare backbone has
            `.taps`; a model has `.backbone` and `.head`, or `.heads` by name.

        Raises:
            UnknownBackboneError, UnknownHeadError, UnknownWeightsError, UnknownOptionError, UnknownTapError: no such
                name.
            OptionError, TapError, HeadError: a value is invalid, or the arguments do not fit together.
            WeightsError: the weights are not available, or do not fit the model.

        Examples:
            >>> backbone = registry.build("mobilenet_v3_large", features_only=True, taps=("C3", "C5"))
            >>> for name, feature in backbone(torch.rand(2, 3, 224, 224)).items():
            ...     print(name, tuple(feature.shape))
            C3 (2, 40, 28, 28)
            C5 (2, 960, 7, 7)
            >>> classifier = registry.build("mobilenet_v2", pretrained=True, num_classes=10)
        """
        arguments = {"features_only": features_only, "taps": taps, "num_classes": num_classes, **options}
        if head is not None and not isinstance(head, str):
            several = resolve_multi_head_request(self, name, head, pretrained=pretrained, **arguments)
            from featuretap.models.multi_head import build_multi_head_model

            return build_multi_head_model(several, self)
        request = resolve_request(self, name, pretrained=pretrained, head=head, **arguments)
        from featuretap.models.building import build_model

        return build_model(request, self)

    def save(self, model: nn.Module, path: str | os.PathLike[str], layout: str = "featuretap") -> Path:
        """Save a model as a safetensors file that `load` builds it from.

        The file contains the weights and the model's description. Equal models give equal bytes, and an interrupted
        write leaves no partial file. The model may be wrapped in DataParallel, `torch.compile` or a moving average.

        Args:
            model: the model.
            path: a file name that ends in ".safetensors", or a folder for `model.safetensors` and `config.json`.
            layout: naming scheme of the tensors: "featuretap", "torchvision", "timm" or "paddle" (PaddleClas). These
                libraries load the file with their own tools in strict mode, for example a folder in timm's layout with
                `timm.create_model("local-dir:folder", pretrained=True)`.

        Returns:
            The path of the file.

        Raises:
            OptionError: the path has an unsupported suffix.
            WeightsError: the model was changed after it was built, the layout cannot represent it, or the file cannot
                be written.

        Examples:
            >>> model = registry.build("mobilenet_v3_small", num_classes=10)
            >>> print(registry.save(model, "classifier", layout="timm"))
            classifier/model.safetensors
        """
        from featuretap.models.saving import save_model

        return save_model(self, model, Path(path), layout)

    def push(self, model: nn.Module, repository: str, layout: str = "featuretap", *, private: bool = False) -> str:
        """Upload a model to the Hugging Face Hub, as the folder that `save` writes.

        The repository is created if it does not exist. `registry.load("hf://owner/name")` loads the model on other
        machines; in timm's layout, so does `timm.create_model("hf-hub:owner/name", pretrained=True)`. The access token
        comes from `hf auth login` or the variable HF_TOKEN.

        Args:
            model: the model.
            repository: "owner/name".
            layout: as for `save`.
            private: make the repository private when it is created.

        Returns:
            The URL of the repository.

        Raises:
            OptionError: the repository's name is invalid.
            WeightsError: as for `save`; or the hub refuses the upload or cannot be reached, or FEATURETAP_OFFLINE is
                set.

        Examples:
            >>> model = registry.build("mobilenet_v3_small", num_classes=10)
            >>> registry.push(model, "owner/name")  # doctest: +SKIP
            'https://huggingface.co/owner/name'
        """
        from featuretap.models.saving import push_model

        return push_model(self, model, repository, layout, private)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | BackboneSpec | None = None,
        features_only: bool | None = None,
        taps: Sequence[str] | None = None,
        head: str | None = None,
        num_classes: int | None = None,
        finite: bool = False,
        **options: Any,
    ) -> Built:
        """Load a model from a weights file.

        The model is built from the file's description. Checkpoints without a description are recognized by the names
        and shapes of their tensors: classifiers of torchvision, timm and PaddleClas, and torchvision's detectors and
        segmenters on MobileNetV3. The model has the dtype of the file, such as float16.

        Args:
            path: a file that `save` wrote, a checkpoint in another library's layout (.safetensors, .pdparams, or a
                state dict or training checkpoint of `torch.save`; pickled code is never run), or a folder with such a
                file, which may be sharded. Or an address: `hf://owner/repository[@revision][/file]`,
                `https://host/file`, or `pkg://distribution/path` for a file in an installed distribution. Downloads are
                cached.
            name: backbone to build instead of the file's; the `BackboneSpec` if the model was built from one.
            features_only: True to load the bare backbone of a file with a head.
            taps: taps to use instead of the file's, as for `build`.
            head: head to use instead of the file's, as for `build`. For a file with several heads, the name of the head
                to load; `taps` and `num_classes` require it.
            num_classes: number of classes instead of the file's. The last layer is then randomly initialized.
            finite: refuse weights that contain NaN or infinity.
            **options: options to use instead of the file's, as for `build`.

        Returns:
            The module, as for `build`.

        Raises:
            WeightsError: the file cannot be read or is malformed, or its weights do not fit the model.
            FeaturetapError: as for `build`, for arguments that replace values of the file.

        Examples:
            >>> path = registry.save(registry.build("mobilenet_v3_small", num_classes=10), "classifier.safetensors")
            >>> backbone = registry.load(path, features_only=True, taps=("C3", "C5"))
            >>> {name: tap.channels for name, tap in backbone.taps.items()}
            {'C3': 24, 'C5': 576}
        """
        from featuretap.models.loading import load_model

        arguments = {"features_only": features_only, "taps": taps, "head": head, "num_classes": num_classes}
        return load_model(self, path, name, arguments, options, finite)

    @explain_missing_torch("converting weights")
    def convert(
        self, source: str | os.PathLike[str], target: str | os.PathLike[str], layout: str = "featuretap"
    ) -> Path:
        """Convert a weights file to another layout without building the model.

        Batch norms keep computing the same values, up to rounding, if the layouts use different epsilons.

        Args:
            source: a path or address, as for `load`.
            target: a path, as for `save`. It may be the source.
            layout: "featuretap", "torchvision", "timm" or "paddle".

        Returns:
            The path of the new file.

        Raises:
            OptionError: the target has an unsupported suffix.
            WeightsError: the file cannot be read or recognized, or the layout cannot represent the model.

        Examples:
            >>> path = registry.save(registry.build("mobilenet_v3_small"), "classifier.safetensors")
            >>> print(registry.convert(path, "converted.safetensors", layout="torchvision"))
            converted.safetensors
        """
        from featuretap.weights.conversion import convert_checkpoint

        return convert_checkpoint(self, source, Path(target), layout)

    @explain_missing_torch("registry.compile")
    def compile(
        self,
        model: nn.Module | str | os.PathLike[str],
        runtime: str = "onnxruntime",
        *,
        size: tuple[int, int] | None = None,
        batch: int | None = None,
        threads: int | None = None,
        precision: str = "float32",
    ) -> CompiledModel:
        """Compile a model for a runtime. It is called like the model and returns the same outputs, faster.

        Outputs are PyTorch tensors. In float32 they equal the model's to 1e-4 of the largest value of each output. The
        model itself is not changed, and is always compiled in evaluation mode.

        `runtime="auto"` compiles the model for each installed runtime that compiles within seconds ("onnxruntime",
        "openvino", "fused", and plugins' runtimes that declare it). It times them in turn for about a second on one
        224×224 image, or on `batch` images of `size`, and returns the fastest. The result has the name in `.runtime`
        and the times in `.timings`; both are logged. A runtime that fails is skipped, and the reason is logged.

        Args:
            model: a backbone, classifier, pyramid, segmenter, SSDLite or SSD, or the path of a file that `export` or
                `quantize` wrote.
            runtime: "onnxruntime", "openvino", "fused" (PyTorch with folded batch norms), "inductor" (`torch.compile`),
                "aot" (AOTInductor), a runtime of a plugin, or "auto".
            size: (height, width) of the images in pixels, to compile for one size only; None for any size.
            batch: number of images per call; None for any number.
            threads: number of threads; None for PyTorch's. Runtimes inside PyTorch always use PyTorch's threads.
            precision: "float32" (the model's dtype in runtimes inside PyTorch), or "bf16" for "openvino", "fused" and
                "inductor" on processors that support it. Images and outputs stay float32, and `.description.agreement`
                compares each output with float32 on random images.

        Returns:
            The compiled model, with `.taps` and `.description`.

        Raises:
            UnknownRuntimeError: no runtime has this name.
            OptionError: a value is invalid, or the runtime or the processor does not support the precision.
            HeadError: the head is a detector other than SSDLite and SSD, the runtime does not support detectors, or the
                head returns something other than a tensor or a dict of tensors.
            ExportError: the model cannot be compiled, the file cannot be opened, or outputs in "bf16" differ too much.

        Examples:
            >>> backbone = registry.build("mobilenet_v3_large", features_only=True)
            >>> compiled = registry.compile(backbone, "onnxruntime")
            >>> tuple(compiled(torch.rand(1, 3, 224, 224))["C4"].shape)
            (1, 112, 14, 14)
        """
        check_precision(precision)
        runtime_spec = None if runtime == AUTO else self.runtime(runtime)
        from featuretap.runtimes.compiled import compile_model, open_file

        if isinstance(model, str | os.PathLike):
            if size is not None or batch is not None:
                raise OptionError("size and batch cannot be applied to an exported file; pass them to registry.export")
            if precision != FLOAT32:
                raise OptionError(
                    f"precision={precision!r} cannot be applied to an exported file; pass the model, or open the file "
                    "with registry.session"
                )
            return open_file(self, runtime_spec, Path(model), threads)
        return compile_model(self, runtime_spec, model, size=size, batch=batch, threads=threads, precision=precision)

    def session(
        self,
        source: str | os.PathLike[str] | BackboneSpec,
        *,
        features_only: bool | None = None,
        taps: Sequence[str] | None = None,
        head: str | Heads | None = None,
        pretrained: bool | str | os.PathLike[str] = True,
        num_classes: int | None = None,
        runtime: str = "onnxruntime",
        size: tuple[int, int] | None = None,
        batch: int | None = None,
        threads: int | None = None,
        precision: str = "float32",
        **options: Any,
    ) -> Session:
        """Open a trained model for inference without importing PyTorch.

        The session maps a float32 array of images (N, C, H, W), such as `session.prepare("photo.jpg")` returns, to a
        dict of arrays. Backbones and pyramids return their taps, classifiers "logits" (N, num_classes), and segmenters
        "out" (N, num_classes, H, W). SSDLite returns "boxes" (N, D, 4) in pixels, "scores" (N, D), "labels" (N, D) and
        "num_detections" (N,); unused rows are zero. A model with several heads returns one such dict per head.

        Args:
            source: a name as for `build`, the path or address of a safetensors file, or the path of a file that
                `export` or `quantize` wrote.
            features_only: as for `build` and `load`.
            taps: as for `build` and `load`.
            head: as for `build` and `load`.
            pretrained: as for `build`, but True by default. Used only if `source` is a name.
            num_classes: as for `build` and `load`.
            runtime: "onnxruntime", "openvino", or "auto" for the faster one, as for `compile`.
            size: as for `compile`.
            batch: as for `compile`.
            threads: number of threads; None for OMP_NUM_THREADS, or else one per processor.
            precision: as for `compile`; "bf16" only for "openvino".
            **options: as for `build` and `load`.

        Returns:
            The session, with `.taps`, `.description`, `.classes` and `.prepare`.

        Raises:
            UnknownRuntimeError: no runtime has this name.
            OptionError: the runtime, the processor or the head does not support the precision.
            WeightsError: the weights are not available or do not fit, or only PyTorch can read them (.pth files).
            ExportError: a part of the model needs PyTorch, or the file cannot be opened.
            FeaturetapError: as for `build` and `load`.

        Examples:
            >>> path = registry.save(registry.build("mobilenet_v2", pretrained=True), "classifier.safetensors")
            >>> session = registry.session(path)
            >>> logits = session(session.prepare("photo.jpg"))["logits"]
            >>> logits.shape, session.classes[logits[0].argmax()]
            ((1, 1000), 'Egyptian cat')
        """
        check_precision(precision)
        runtime_spec = None if runtime == AUTO else self.runtime(runtime)
        arguments = {"features_only": features_only, "taps": taps, "head": head, "num_classes": num_classes, **options}
        from featuretap.runtimes.sessions import is_exported, open_file, open_model

        if is_exported(self, source):
            for name, value in {**arguments, "size": size, "batch": batch}.items():
                if value is not None:
                    raise OptionError(
                        f"{name}={value!r} cannot be applied to an exported file; pass it to registry.export"
                    )
            return open_file(self, runtime_spec, Path(source), threads, precision)  # type: ignore[arg-type]
        return open_model(
            self,
            runtime_spec,
            source,
            pretrained,
            arguments,
            size=size,
            batch=batch,
            threads=threads,
            precision=precision,
        )

    def select_head(self, model: nn.Module, name: str) -> Built:
        """Return one head of a model with several heads as a model, for example to train it. The layers are shared.

        Args:
            model: a model with several heads.
            name: name of the head in the model.

        Returns:
            The model that `build` returns for this head alone, on the same layers.

        Raises:
            UnknownHeadError: the model has no head with this name.
            OptionError: the model does not have several heads.

        Examples:
            >>> model = registry.build("mobilenet_v3_small", head=("classification", "lraspp"))
            >>> type(registry.select_head(model, "lraspp")).__name__
            'SegmentationModel'
        """
        from featuretap.models.several_heads import select_head, unwrap_multi_head

        return select_head(unwrap_multi_head(model), name)

    def add_head(
        self,
        model: nn.Module,
        name: str,
        head: str,
        *,
        taps: Sequence[str] | None = None,
        num_classes: int | None = None,
        freeze: bool = True,
        **options: Any,
    ) -> Built:
        """Add a randomly initialized head to a model. The result shares the model's layers.

        By default, all other layers are frozen, including the statistics of their norms. The new head can then be
        trained without changing the outputs of the others. `registry.freeze(model)` unfreezes everything.

        Args:
            model: a model with any number of heads. A single head keeps its own name, such as "ssdlite".
            name: name of the new head in the model.
            head: as for `build`.
            taps: the taps that the head reads, as for `build`.
            num_classes: as for `build`.
            freeze: freeze everything except the new head.
            **options: options of the head. The backbone keeps its options.

        Returns:
            A model with several heads.

        Raises:
            HeadError: the name is in use or invalid, the backbone was built without the taps, or the head does not fit
                the backbone.
            FeaturetapError: as for `build`.

        Examples:
            >>> detector = registry.build("mobilenet_v3_small", head="ssdlite", num_classes=3)
            >>> model = registry.add_head(detector, "road", "lraspp", num_classes=2)
            >>> list(model.heads)
            ['ssdlite', 'road']
        """
        from featuretap.models.several_heads import add_head

        arguments = {"taps": taps, "num_classes": num_classes, **options}
        return add_head(self, model, name, head, freeze_rest=freeze, **arguments)

    def join(self, files: Mapping[str, str | os.PathLike[str]]) -> Built:
        """Combine models from several files into one model with several heads. Their backbones must be equal bit for
        bit.

        Args:
            files: name of the head in the new model → path or address as for `load`, of a model with one head.

        Returns:
            A model with several heads.

        Raises:
            HeadError: the backbones differ (with the names of the tensors), or the heads cannot be combined.
            FeaturetapError: as for `load`.

        Examples:
            >>> model = registry.build("mobilenet_v3_small", head=("ssdlite", "lraspp"))
            >>> detector = registry.save(registry.select_head(model, "ssdlite"), "detector.safetensors")
            >>> segmenter = registry.save(registry.select_head(model, "lraspp"), "segmenter.safetensors")
            >>> list(registry.join({"objects": detector, "road": segmenter}).heads)
            ['objects', 'road']
        """
        from featuretap.models.several_heads import join_models

        return join_models({name: self.load(path) for name, path in files.items()}, check_weights=True)

    def freeze(self, model: nn.Module, through: str | None = None, *, norms: bool = False) -> nn.Module:
        """Freeze part of a model's backbone and unfreeze everything else. With the model alone, unfreeze everything.

        Frozen parameters get no gradients, and frozen batch norms keep their statistics, even after `train()`. The
        options `freeze` and `freeze_norm` of `build` do the same for a new model.

        Args:
            model: the model, changed in place. Create the optimizer afterwards, or pass it all parameters.
            through: last level to freeze, "C1" to "C5"; None freezes no level.
            norms: freeze all norms of the backbone.

        Returns:
            The same model.

        Raises:
            OptionError: the backbone does not have the level.

        Examples:
            >>> model = registry.build("mobilenet_v3_small", num_classes=10)
            >>> model = registry.freeze(model, "C5")  # train only the head
            >>> any(parameter.requires_grad for parameter in model.backbone.parameters())
            False
            >>> model = registry.freeze(model)  # train everything
        """
        from featuretap.models.freezing import freeze_model

        freeze_model(model, Freezing(through, norms))
        return model

    def fuse(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model for inference in PyTorch, with batch norms folded into the preceding convolutions.

        The outputs equal the model's up to rounding. The copy is called like the model, but cannot be trained or saved.
        On the CPU, its convolutions compute in channels_last; images in that format give maps in that format and avoid
        both conversions. `compile` and `export` do not need a fused model, since runtimes fold batch norms themselves.

        Args:
            model: the model, which is not changed.

        Returns:
            The fused copy.

        Raises:
            OptionError: the model has no batch norm that can be folded.

        Examples:
            >>> model = registry.build("mobilenet_v3_small", features_only=True).eval()
            >>> fused = registry.fuse(model)
            >>> image = torch.rand(1, 3, 224, 224)
            >>> torch.allclose(fused(image)["C5"], model(image)["C5"], atol=1e-5)
            True
        """
        from featuretap.runtimes.fusing import fuse

        return fuse(model)

    def export(
        self,
        model: nn.Module | str | os.PathLike[str],
        path: str | os.PathLike[str],
        format: str | None = None,  # noqa: A002 - the word for it
        *,
        size: tuple[int, int] | None = None,
        batch: int | None = None,
    ) -> Path:
        """Export a model to a file for a runtime.

        The file is read back and compared with the model before it is kept. The input is called "image", and each
        output is named after its tap. The file contains the model's description, including its preprocessing.

        Args:
            model: the model (detectors only for formats that support them), or the path or address of a safetensors
                file, which is exported to ONNX or OpenVINO without PyTorch.
            path: path of the new file.
            format: "onnx", "openvino", "torch-export", "aot" or "torchscript"; None to choose it by the suffix of
                `path`.
            size: as for `compile`.
            batch: as for `compile`.

        Returns:
            The path of the file.

        Raises:
            OptionError: the format is unknown or contradicts the suffix.
            HeadError: the format does not support the head.
            ExportError: the model cannot be exported, the file computes different outputs, or it cannot be written.

        Examples:
            >>> backbone = registry.build("mobilenet_v3_small", features_only=True, taps=("C3", "C5"))
            >>> session = registry.session(registry.export(backbone, "backbone.onnx"))
            >>> {name: feature.shape for name, feature in session(session.prepare("photo.jpg")).items()}
            {'C3': (1, 24, 28, 28), 'C5': (1, 576, 7, 7)}
        """
        if isinstance(model, str | os.PathLike):
            from featuretap.runtimes.exported_files import export_checkpoint
            from featuretap.runtimes.formats import resolve_format

            form = resolve_format(Path(path), format)
            return export_checkpoint(self, model, Path(path), form, size=size, batch=batch)
        from featuretap.runtimes.compiled import export

        return export(self, model, Path(path), format, size, batch)

    def quantize(
        self,
        model: nn.Module,
        path: str | os.PathLike[str],
        images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        evaluate_on: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
        size: tuple[int, int] | None = None,
        threads: int | None = None,
        budget: float | None = None,
        data: str | os.PathLike[str] | None = None,
    ) -> Report:
        """Quantize a trained model to 8-bit integers, and write it as an ONNX file that `compile` opens.

        Weights get one scale per output channel; ranges of activations are measured on images. The float32 ONNX model
        is first compared with `model`, as in `export`. In detectors, only the network is quantized: preparing images,
        decoding boxes and selecting them stay in float. Their agreement is measured on the class logits and the box
        predictions ("cls_logits" and "bbox_regression"), because which of two equal boxes is selected is arbitrary.

        Args:
            model: a backbone, classifier, pyramid, segmenter, SSDLite or SSD with trained weights, or a model with
                several heads other than detectors, in float32 on the CPU.
            path: path of the new file, which ends in ".onnx".
            images: calibration images like those that the model will process: a folder or a file, or several.
            evaluate_on: other images to compare the result with the model on; by default, every fifth image of
                `images`.
            size: (height, width) in pixels to resize full images to, and to write the file for; None for any size.
            threads: number of threads for timing both models; None for PyTorch's.
            budget: limit on the loss of accuracy. The most sensitive layers are computed in float32 until it holds.
                Without `data`, the relative error of the worst output on images not used for calibration, such as 0.1.
                With `data`, percentage points of top-1 accuracy, mIoU or mAP, such as 0.5.
            data: labeled images for the budget, as for `featuretap evaluate`; their validation part is used.

        Returns:
            A report with the size and time of both models, and their agreement on images not used for calibration. With
            a budget, also the sensitivity of each layer and the layers that are computed in float32.

        Raises:
            OptionError: the path has another suffix, the model is not in float32 on the CPU, the budget is not above 0,
                or `data` is passed without a budget.
            DataError: there are no images or too few, or `data` cannot be used.
            HeadError: the model is a detector with other heads, or a detector whose graph cannot be written from its
                spec.
            ExportError: the model cannot be exported, the runtime does not run it, the file cannot be written, or the
                budget does not hold even with all layers in float32.

        Examples:
            >>> model = registry.build("mobilenet_v2", pretrained=True)
            >>> report = registry.quantize(model, "int8.onnx", "photographs", size=(224, 224))
            >>> print(f"{report.bytes_before / 1e6:.1f} → {report.bytes_after / 1e6:.1f} MB")
            14.0 → 3.8 MB
        """
        from featuretap.runtimes.quantization.quantize import quantize

        calibration, evaluation = (
            [Path(source) for source in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
            for sources in (images, evaluate_on)
        )
        evaluate = None if data is None else load("featuretap.workflows.measuring.quantization:make_evaluation")(data)
        return quantize(
            self,
            model,
            Path(path),
            calibration,
            evaluate_on=evaluation,
            size=size,
            threads=threads,
            budget=budget,
            evaluate=evaluate,
        )

    def transforms(self, model: nn.Module, *, whole: bool = False) -> Callable[[Any], Any]:
        """Return the preprocessing for the weights of `model`.

        It maps a PIL image, or a tensor (C, H, W) of bytes or of floats from 0 to 1, to a float tensor: (C, crop, crop)
        for classifiers, (C, H', W') of the full image for segmenters, and (C, H, W) with values from 0 to 1 for
        detectors, which do the remaining preprocessing themselves. PIL images are rotated according to their EXIF
        orientation. Randomly initialized models get ImageNet's usual preprocessing.

        Args:
            model: a model, which may be wrapped as for `save`.
            whole: keep the full image at its original size, as for features of detectors and segmenters: (C, H, W),
                normalized unless the model normalizes its input.

        Returns:
            The transform.

        Examples:
            >>> from PIL import Image
            >>> model = registry.build("mobilenet_v2", pretrained=True)
            >>> image = registry.transforms(model)(Image.open("photo.jpg"))
            >>> tuple(image.shape)
            (3, 224, 224)
        """
        from featuretap.models.built import description_of, inside_wrappers
        from featuretap.models.transforms import compose

        prepared = description_of(inside_wrappers(model), "registry.transforms reads").preprocessing
        return compose(replace(prepared, resize=None, crop=None) if whole else prepared)

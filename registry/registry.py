"""The registry: names to specs to models. Imports no torch until something is built."""

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
    """Models by name: describe, build, save, load and convert them, and hand them to runtimes.

    Args:
        plugins: modules to load beside the installed plugins, as in tests.
        discover: whether installed plugins and the user's `featuretap.toml` are read.
        builtins: whether the built-in plugins are loaded.
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
        """Describe what `build` returns for the same arguments, without building it and without torch.

        Args:
            name: as for `build`.
            features_only: as for `build`: describe the bare backbone.
            taps: as for `build`.
            head: as for `build`.
            pretrained: as for `build`, for the head and the options that published weights bring; nothing is read.
            num_classes: as for `build`.
            **options: of the backbone and of the head, as for `build`.

        Returns:
            a `BackboneSpec` with `features_only`, a `MultiHeadSpec` with several heads, a `ModelSpec` otherwise. All
            have `taps`, `parameters`,
            `macs(height, width)` and `tap_shapes(height, width)`.

        Raises:
            FeaturetapError: as `build` does, but for weights that cannot be had or do not fit.
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
            features_only: return the bare backbone, which maps images (N, in_channels, H, W) to a dict from tap
                address to feature map (N, channels, ceil(H / stride), ceil(W / stride)).
            taps: which maps come back, in this order (default: C1 to C5); layers after the last are not built. With a
                head: which maps it reads in place of its own choice.
            head: a head's name; without `features_only` the default is "classification". Several names, or a mapping
                from names of your own to names of heads, give a model that computes the backbone once for all heads.
            pretrained: True for the catalogue's default weights, a tag, or the path of a file or its address as for
                `load`. Published weights of a detector or a segmenter, asked for by their tag, bring head and options
                that are not given.
            num_classes: classes of the head; None for the head's own number, 0 for pooled features where it pools.
            **options: options of the backbone and of the head; `registry.spec` and `featuretap show` name them. With
                several heads, those of each, its `num_classes` and its `taps` are a mapping under its name:
                `road={"num_classes": 19}`.

        Returns:
            the module, in training mode as every new module of torch, with `.description`; a bare backbone has
            `.taps`, a model `.backbone` and `.head`, or `.heads` by name.

        Raises:
            UnknownBackboneError, UnknownHeadError, UnknownWeightsError, UnknownOptionError, UnknownTapError: nothing
                has the name that was asked for.
            OptionError, TapError, HeadError: names that are known, with values or in a pairing that cannot be.
            WeightsError: the weights cannot be had, or do not fit.
            MissingExtraError: PyTorch is not installed.
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
        """Write a model's weights, and what is needed to build it again, as safetensors.

        The file is written whole or not at all. Equal models give equal bytes. DataParallel, torch.compile and moving
        averages around a model are looked through.

        Args:
            model: a model that `build` or `load` returned.
            path: a name that ends in ".safetensors", or a folder, which gets `model.safetensors` and `config.json`.
            layout: whose names the tensors get: "featuretap", or "torchvision", "timm" or "paddle" (PaddleClas), which
                then load the file with their own tools in strict mode (a folder in timm's layout with
                `timm.create_model("local-dir:folder", pretrained=True)`).

        Returns:
            the path of the file.

        Raises:
            OptionError: the model was not built by featuretap, or the path names another kind of file.
            WeightsError: the model is no longer what it was built as, the layout cannot hold it, or the file cannot be
                written.
        """
        from featuretap.models.saving import save_model

        return save_model(self, model, Path(path), layout)

    def push(self, model: nn.Module, repository: str, layout: str = "featuretap", *, private: bool = False) -> str:
        """Publish a model on the Hugging Face hub, as a folder that `save` writes.

        `registry.load("hf://owner/name")` then loads it on other machines; in timm's layout,
        `timm.create_model("hf-hub:owner/name", pretrained=True)` does, too. The repository is created unless it exists.
        The token is that of `hf auth login`, or in HF_TOKEN.

        Args:
            model: a model that `build` or `load` returned.
            repository: "owner/name".
            layout: as for `save`.
            private: whether a repository that is created is private.

        Returns:
            the URL of the repository.

        Raises:
            OptionError: the model was not built by featuretap, or the repository's name is invalid.
            MissingExtraError: huggingface_hub is not installed.
            WeightsError: as for `save`, or the hub refuses it or cannot be reached, or FEATURETAP_OFFLINE is set.
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
        """Build the model that a file describes, and fill it from the file.

        Files of torchvision's, timm's and PaddleClas's classifiers, and of torchvision's detectors and segmenters on
        MobileNetV3, are recognised by the names and shapes of their tensors. The model's numbers are of the file's
        type, such as float16.

        Args:
            path: a file that `save` wrote, one in another library's layout (.safetensors, .pdparams, or a state dict or
                training checkpoint of torch.save; no code in them is run), or a folder with one, which may be split
                into several files; or an address: "hf://owner/repository" on the Hugging Face hub
                (`[@revision][/file]` may follow), "https://host/file", or "pkg://distribution/path" in an installed
                distribution. Downloads are kept.
            name: a backbone in place of the file's; a `BackboneSpec` where the model was built from one.
            features_only: True for the bare backbone of a file with a head.
            taps: as for `build`, in place of the file's.
            head: as for `build`, in place of the file's. Of a file with several heads: the name of the one to load,
                which `taps` and `num_classes` need.
            num_classes: as for `build`, in place of the file's; the last layer then starts with fresh weights.
            finite: whether to refuse weights that hold NaN or infinity.
            **options: as for `build`, in place of the file's.

        Raises:
            WeightsError: the file cannot be read, is not what it should be, or does not fit.
            FeaturetapError: as `build` does, for what is given here in place of the file's.
        """
        from featuretap.models.loading import load_model

        arguments = {"features_only": features_only, "taps": taps, "head": head, "num_classes": num_classes}
        return load_model(self, path, name, arguments, options, finite)

    @explain_missing_torch("converting weights")
    def convert(
        self, source: str | os.PathLike[str], target: str | os.PathLike[str], layout: str = "featuretap"
    ) -> Path:
        """Rewrite a file of weights in another layout, without building the model.

        Batch norms compute the same afterwards, to rounding, where the layouts disagree about their epsilon.

        Args:
            source: whatever `load` reads.
            target: whatever `save` writes; may be the source.
            layout: "featuretap", "torchvision", "timm" or "paddle".

        Returns:
            the path of the file that was written.

        Raises:
            OptionError: the target names a kind of file that is not written.
            WeightsError: the file cannot be read or recognised, or the layout cannot hold the model.
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
        """Return a model that a runtime computes: the same call, the same dict of taps, faster.

        Outputs are tensors of torch, in float32 equal to the model's to 1e-4 of each one's largest value. The model
        itself stays as it is, and is compiled as in evaluation mode whatever its mode.

        `runtime="auto"` compiles the model for every installed runtime that does so within seconds ("onnxruntime",
        "openvino", "fused", and those of plugins that declare it), times them in turn for about a second on one image
        of 224×224 pixels, or on `batch` images of `size`, and returns the fastest. Its name is `.runtime`, the times of
        all are `.timings`, and both are logged. Runtimes that fail are left out, which is logged with the reason.

        In `precision="bf16"` the runtime computes in bfloat16; images and outputs stay float32. How far each output
        agrees with the model's is measured on random images, and is in `.description.agreement`.

        Args:
            model: a backbone, classifier, pyramid, segmenter or SSDLite that `build` or `load` returned, or the path of
                a file that `export` or `quantize` wrote.
            runtime: "onnxruntime", "openvino", "fused" (PyTorch with folded batch norms, without a compiler),
                "inductor" (torch.compile), "aot" (AOTInductor), one of a plugin's, or "auto".
            size: (height, width) of the images in pixels, where the model is for one size only; None for any.
            batch: number of images of a call; None for any.
            threads: of the runtime; None for as many as torch has. Runtimes inside torch always have torch's.
            precision: "float32", which stands for the model's own dtype in runtimes inside torch, or "bf16" of
                "openvino", "fused" and "inductor", on processors with units for it.

        Raises:
            UnknownRuntimeError: no runtime has the name.
            MissingExtraError: packages of the runtime are not installed.
            OptionError: the model was not built by featuretap, a value that cannot be, or a precision that the runtime
                or the processor does not have.
            HeadError: a head whose outputs are no tensors by name, as detectors'.
            ExportError: the model cannot be compiled, or the file not be opened; with "auto", by no runtime. Or outputs
                in "bf16" have little in common with the model's.
        """
        check_precision(precision)
        chosen_runtime = None if runtime == AUTO else self.runtime(runtime)
        from featuretap.runtimes.compiled import compile_model, open_file

        if isinstance(model, str | os.PathLike):
            if size is not None or batch is not None:
                raise OptionError("size and batch of an exported file are fixed in it; give them to registry.export")
            if precision != FLOAT32:
                raise OptionError(
                    f"an exported file is opened in {FLOAT32}; for precision={precision!r} give the model itself, or "
                    "the file to registry.session"
                )
            return open_file(self, chosen_runtime, Path(model), threads)
        return compile_model(self, chosen_runtime, model, size=size, batch=batch, threads=threads, precision=precision)

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
        """Open a trained model for inference without PyTorch, which is never imported.

        The session maps images (N, C, H, W), an array of float32 as `session.prepare("photo.jpg")` returns it, to a
        dict of arrays: the taps of a backbone or a pyramid, "logits" (N, num_classes) of a classifier, "out"
        (N, num_classes, H, W) of a segmenter, and of SSDLite "boxes" (N, D, 4) in pixels of the images, "scores"
        (N, D), "labels" (N, D) and "num_detections" (N,), with zeros behind the detections of each image. A model with
        several heads returns such a dict for each, by the name of the head.

        Args:
            source: a name as for `build`, the path or address of a safetensors file, or the path of a file that
                `export` or `quantize` wrote.
            features_only: as for `build` and `load`.
            taps: as for `build` and `load`.
            head: as for `build` and `load`.
            pretrained: as for `build`, with the default weights by default; for a name only.
            num_classes: as for `build` and `load`.
            runtime: "onnxruntime" or "openvino"; "auto" for the faster one, as for `compile`.
            size: (height, width) of the images in pixels, where the session is for one size only; None for any.
            batch: number of images of a call; None for any.
            threads: of the runtime; None for OMP_NUM_THREADS, or as many as there are processors.
            precision: "float32", or "bf16" of "openvino" on processors with units for it. The agreement of each output
                with that in float32, on random images, is in `.description.agreement`.
            **options: as for `build` and `load`.

        Returns:
            the session, with `.taps`, `.description`, `.classes` and `.prepare`.

        Raises:
            UnknownRuntimeError: no runtime has the name.
            MissingExtraError: packages of the runtime are not installed.
            OptionError: a precision that the runtime or the processor does not have, or detections in "bf16".
            WeightsError: the weights cannot be had or do not fit, or only PyTorch reads them, as .pth files.
            ExportError: PyTorch is needed for a part of the model, or the file cannot be opened.
            FeaturetapError: as `build` and `load` do.

        Example::

            session = registry.session("classifier.safetensors")
            outputs = session(session.prepare("cat.jpg"))
            print(session.classes[outputs["logits"][0].argmax()])
        """
        check_precision(precision)
        chosen_runtime = None if runtime == AUTO else self.runtime(runtime)
        arguments = {"features_only": features_only, "taps": taps, "head": head, "num_classes": num_classes, **options}
        from featuretap.runtimes.sessions import is_exported, open_file, open_model

        if is_exported(self, source):
            given = [name for name, value in {**arguments, "size": size, "batch": batch}.items() if value is not None]
            if given:
                raise OptionError(f"{given[0]} of an exported file is fixed in it; give it to registry.export")
            return open_file(self, chosen_runtime, Path(source), threads, precision)  # type: ignore[arg-type]
        return open_model(
            self,
            chosen_runtime,
            source,
            pretrained,
            arguments,
            size=size,
            batch=batch,
            threads=threads,
            precision=precision,
        )

    def select_head(self, model: nn.Module, name: str) -> Built:
        """Return the model of one head of a model with several, such as to train it. They share their weights.

        Args:
            model: a model with several heads.
            name: of the head in the model.

        Returns:
            the model that `build` returns for this head alone, on the same layers.

        Raises:
            UnknownHeadError: the model has no such head.
            OptionError: the model has no heads by name.

        Example:
            >>> from featuretap import registry
            >>> model = registry.build("mobilenet_v3_small", head=("classification", "lraspp"))
            >>> type(registry.select_head(model, "lraspp")).__name__
            'SegmentationModel'
        """
        from featuretap.models.several_heads import select_head, several_headed

        return select_head(several_headed(model), name)

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
        """Return a model with one more head, randomly initialised. It shares the layers of the model that was given.

        By default everything else is frozen, statistics of norms included, so that a second task is learned without
        changing the outputs of the first. `registry.freeze(model)` unfreezes everything.

        Args:
            model: a model that `build` or `load` returned, with one head, several, or none. The head of a model with
                one keeps its own name, such as "ssdlite".
            name: of the new head in the model.
            head: as for `build`.
            taps: the maps that the head reads, as for `build`.
            num_classes: of the head, as for `build`.
            freeze: whether everything but the new head is frozen.
            **options: of the head. Those of the backbone stay as they are.

        Raises:
            HeadError: a name that is taken or that no head can have, taps that the backbone was built without, or a
                head that the backbone does not fit.
            FeaturetapError: as for `build`.

        Example:
            >>> from featuretap import registry
            >>> detector = registry.build("mobilenet_v3_small", head="ssdlite", num_classes=3)
            >>> model = registry.add_head(detector, "road", "lraspp", num_classes=2)
            >>> list(model.heads)
            ['ssdlite', 'road']
        """
        from featuretap.models.several_heads import add_head

        arguments = {"taps": taps, "num_classes": num_classes, **options}
        return add_head(self, model, name, head, freeze_rest=freeze, **arguments)

    def join(self, files: Mapping[str, str | os.PathLike[str]]) -> Built:
        """Return the models of files as one model with several heads, if their backbones are equal bit for bit.

        Args:
            files: name of the head in the model → whatever `load` reads, of a model with one head.

        Raises:
            HeadError: the backbones differ, by the names of their tensors, or the heads contradict each other.
            FeaturetapError: as for `load`.

        Example::

            model = registry.join({"objects": "detector.safetensors", "road": "segmenter.safetensors"})
        """
        from featuretap.models.several_heads import join_models

        return join_models({name: self.load(path) for name, path in files.items()}, check_weights=True)

    def freeze(self, model: nn.Module, through: str | None = None, *, norms: bool = False) -> nn.Module:
        """Freeze a part of a model's backbone, and unfreeze everything else; without arguments, unfreeze all of it.

        Frozen parameters get no gradients, and frozen batch norms keep their statistics, also after `train()`. The
        options `freeze` and `freeze_norm` of `build` do the same from the start.

        Args:
            model: a model that `build` or `load` returned; changed in place. Make the optimiser afterwards, or give it
                all parameters.
            through: the last level to freeze, "C1" to "C5"; None freezes no level.
            norms: whether all norms of the backbone are frozen.

        Returns:
            the same model.

        Raises:
            OptionError: the backbone lacks the level, or the model was not built here.

        Example::

            # Train the head on a frozen backbone first, then everything.
            registry.freeze(model, "C5")
            registry.freeze(model)
        """
        from featuretap.models.freezing import freeze_model

        freeze_model(model, Freezing(through, norms))
        return model

    def fuse(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model for inference in PyTorch, its batch norms folded into the convolutions before them.

        Its outputs equal the model's to rounding. It is called as the model is, and can be neither trained nor saved.
        On the CPU its convolutions compute in channels_last; images may be contiguous, and maps then are, too. Images
        in channels_last save converting them, and copying the maps, which are in channels_last then.
        `compile` and `export` need no fused model: runtimes fold by themselves.

        Args:
            model: a model that `build` or `load` returned; stays as it is.

        Raises:
            OptionError: the model has no batch norm that can be folded.
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
        """Write a model for a runtime; the file is read again and compared with the model before it is kept.

        Its input is called "image", its outputs by their taps; the description of the model, preprocessing included, is
        inside.

        Args:
            model: a model that `build` or `load` returned; a detector for formats that hold one. Or the path or address
                of a safetensors file, whose model is written as ONNX or OpenVINO without PyTorch.
            path: of the file.
            format: "onnx", "openvino", "torch-export", "aot" or "torchscript"; None for what the path's ending says.
            size: (height, width) of the images in pixels, where the file is for one size only; None for any.
            batch: number of images of a call; None for any.

        Returns:
            the path of the file.

        Raises:
            OptionError: an unknown format, or one that the ending contradicts; a model not built by featuretap.
            MissingExtraError: packages that write or read the format are not installed.
            HeadError: the format holds no such head.
            ExportError: the model cannot be exported, the file computes something else, or it cannot be written.
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
        """Write a trained model in 8-bit integers as an ONNX file, which `compile` opens.

        Weights get a scale for each output channel; those of activations are measured on images. The model in float32
        is compared with `model` first, as by `export`. Of a detector, the network is quantized; preparing images,
        decoding boxes and selecting them stay in float, and the agreement is that of the class logits and box
        predictions ("cls_logits" and "bbox_regression"), since which of two equal boxes is kept is chance.

        Args:
            model: a backbone, classifier, pyramid, segmenter, SSDLite or SSD with trained weights, or one with several
                heads without a detector, in float32 on the CPU.
            path: ends in ".onnx".
            images: a folder or a file, or several, to calibrate on, such as the model will see.
            evaluate_on: others, on which the result is compared with the model; without, every fifth of `images`.
            size: (height, width) in pixels that whole images are resized to, and that the file is for; None for any.
            threads: with which both are timed; None for as many as torch has.
            budget: limit on what the integers may cost. Layers are computed in float32, most sensitive first, until it
                holds. Without `data`, the relative error of the worst output on images that were not calibrated on,
                such as 0.1; with `data`, percentage points of top-1 accuracy, mIoU or mAP, such as 0.5.
            data: labelled images for the budget, as `featuretap evaluate` takes them; their validation part is
                evaluated.

        Returns:
            the sizes of both files, the time of both, and how far they agree on images that were not calibrated on;
            with a budget also the sensitivity of each layer, and which are computed in float32.

        Raises:
            MissingExtraError: packages for ONNX, or for evaluation with `data`, are not installed.
            OptionError: a path of another ending, a model not built by featuretap or not in float32 on the CPU, a
                budget that is not above 0, or `data` without one.
            DataError: there are no images, or too few, or `data` cannot be used.
            HeadError: a detector beside other heads, or one whose graph is not written from its spec.
            ExportError: the model cannot be exported, the runtime does not run it, the file cannot be written, or the
                budget does not hold even with all layers in float32.
        """
        from featuretap.runtimes.quantization.quantize import quantize

        given, evaluated = (
            [Path(source) for source in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
            for sources in (images, evaluate_on)
        )
        evaluate = None if data is None else load("featuretap.workflows.measuring.quantization:evaluation_on")(data)
        return quantize(
            self,
            model,
            Path(path),
            given,
            evaluate_on=evaluated,
            size=size,
            threads=threads,
            budget=budget,
            evaluate=evaluate,
        )

    def transforms(self, model: nn.Module, *, whole: bool = False) -> Callable[[Any], Any]:
        """Return the preprocessing that the weights of `model` were trained with.

        It maps a PIL image, or a tensor (C, H, W) of bytes or floats from 0 to 1, to a float tensor: (C, crop, crop)
        for classifiers, (C, H', W') of the whole image for segmenters, (C, H, W) with values from 0 to 1 for detectors,
        which do the rest themselves. PIL images are turned upright as their EXIF orientation says. A model with fresh
        weights gets ImageNet's usual one.

        Args:
            model: a model that `build` or `load` returned, also inside DataParallel, torch.compile or a moving average.
            whole: leave the image as large as it is, and cut nothing off, as the features for a detector or a
                segmenter want it: (C, H, W), normalised unless the model does that itself.

        Raises:
            OptionError: the model was not built by featuretap.
        """
        from featuretap.models.built import description_of, inside_wrappers
        from featuretap.models.transforms import compose

        prepared = description_of(inside_wrappers(model), "registry.transforms reads").preprocessing
        return compose(replace(prepared, resize=None, crop=None) if whole else prepared)

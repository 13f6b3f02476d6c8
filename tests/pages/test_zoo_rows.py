"""The zoo's rows match the registry and the publishers' numbers."""

import pytest
from support.zoo_site import EVIL, Site, site

from docs.builder import zoo
from docs.builder.zoo_rows import SIZE, TORCHVISION, Row
from featuretap.registry import Registry
from featuretap.registry.specs import BackboneSpec

__all__ = ["site"]


def test_every_backbone_and_all_published_weights_of_ours_have_a_row(site: Site, registry: Registry) -> None:
    keys = [row.key for row in site.rows]
    assert len(keys) == len(set(keys))
    assert {row.name for row in site.rows} == {*registry.list_backbones(), *TORCHVISION}
    assert {row.key for row in site.rows if row.tag and row.plugin == "featuretap"} == set(registry.list_weights())
    assert {row.plugin for row in site.rows} == {"featuretap", "torchvision"}


def test_a_row_has_the_published_numbers(site: Site) -> None:
    row = next(row for row in site.rows if row.key == "mobilenet_v2.imagenet1k_v1")
    assert (row.parameters, row.macs, row.channels) == (2_223_872, 299_494_272, (16, 24, 32, 96, 1280))
    assert (row.model_parameters, row.model_macs) == (3_504_872, 300_774_272)
    assert (row.accuracy, row.measure, row.license, row.crop) == (71.878, "top-1", "BSD-3-Clause", 224)
    assert (row.family, row.megabytes) == ("mobilenet_v2", 14.2)


def test_every_backbone_of_ours_has_a_license_a_peak_and_a_latency(site: Site) -> None:
    for row in site.rows:
        assert bool(row.license) == bool(row.tag), row.key
        assert bool(row.memory) == (row.plugin == "featuretap"), row.key
        if row.plugin == "featuretap" and row.head in ("", "classification"):
            for runtime in ("onnxruntime", "eager"):
                low, median, high = row.latency[f"amd-epyc-2-cores/{runtime}"]
                assert 0 < low <= median <= high
        else:
            assert row.latency == {}, row.key


def test_memory_is_that_of_the_feature_maps(site: Site, registry: Registry) -> None:
    row = next(row for row in site.rows if row.key == "mobilenet_v3_large_tf.in1k")
    spec = registry.spec(row.name, features_only=True, padding="same")
    assert isinstance(spec, BackboneSpec)
    assert row.memory == spec.activation_memory(224, 224)


def test_a_detector_has_its_own_measure_and_its_own_backbone(site: Site) -> None:
    row = next(row for row in site.rows if row.tag == "ssdlite320_coco_v1")
    assert (row.parameters, row.macs, row.channels[-1]) == (1_620_512, 181_355_520, 480)
    assert (row.model_parameters, row.model_macs) == (3_440_060, None)
    assert (row.accuracy, row.measure, row.top_1) == (21.3, "box AP", None)


def test_each_line_builds_what_its_row_says(site: Site, registry: Registry) -> None:
    class Described:
        build = staticmethod(registry.spec)

    for row in site.rows:
        spec = eval(row.line, {"registry": Described})
        if row.plugin == "featuretap":
            assert spec.parameters == row.model_parameters, row.line
        else:
            assert spec.parameters == row.parameters, row.line
            assert tuple(tap.channels for tap in spec.taps.values()) == row.channels, row.line


def test_torchvision_counts_its_classifiers_as_we_do(site: Site) -> None:
    from torchvision.models import get_model_weights

    theirs = [row for row in site.rows if row.plugin == "torchvision"]
    assert len(theirs) >= len(TORCHVISION)
    for row in theirs:
        stated = get_model_weights(row.name.partition("/")[2])[row.tag].meta
        assert row.model_parameters == stated["num_params"], row.name
        assert row.crop == SIZE
        assert round((row.model_macs or 0) / 1e9, 3) == stated["_ops"], row.name


def test_multiply_adds_of_the_scatter_are_those_of_the_crop(site: Site, registry: Registry) -> None:
    row = next(row for row in site.made if row.name == EVIL)
    assert row.measured_macs is not None
    assert row.measured_macs > row.macs * 1.25


def test_a_backbone_without_c5_is_described_without_a_classifier(site: Site) -> None:
    row = next(row for row in site.made if row.name == "stub")
    assert row.channels == (8, 16, None, None, None)
    # Two 3×3 convolutions and their batch norms.
    assert row.parameters == 3 * 8 * 9 + 16 + 8 * 16 * 9 + 32
    assert (row.model_parameters, row.model_macs) == (None, None)


@pytest.mark.parametrize(
    ("name", "family"),
    [("mobilenet_v3_large_075", "mobilenet_v3"), ("torchvision/resnet18", "resnet"), ("<b>", "<b>"), ("Net2", "net")],
)
def test_a_family_is_the_letters_and_the_version_that_a_name_begins_with(name: str, family: str) -> None:
    assert Row(name, "", 0, 0, (), "").family == family


def test_a_page_without_accuracies_has_no_scatter() -> None:
    text = zoo.page([Row("net", "plugin", 10, 10, (None,) * 5, 'registry.build("net")')])
    assert "<table" in text
    assert "<figure" not in text

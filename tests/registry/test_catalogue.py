"""The format of catalogue files: what a user's file may contain, and errors that name the file and key."""

import os
from pathlib import Path

import pytest
from support.memory import limited_memory

from featuretap.catalogue.files import load_catalogue
from featuretap.registry import Registry
from featuretap.registry.errors import CatalogueError, UnknownBackboneError

GOOD = """
schema = 1

[backbones.our_net]
base = "mobilenet_v3_large"
options = { reduced_tail = true, width = 0.5 }
aliases = ["net"]
description = "what our product runs"

[backbones.our_smaller_net]
base = "our_net"
options = { width = 0.25 }

[weights."our_net.product_7"]
url = "https://example.org/net.pth"
sha256 = "0123456789abcdef"
layout = "torchvision"
norm_eps = 1e-3
default = true
preprocessing = { resize = 300, crop = 288, mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5], interpolation = "bicubic" }
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "featuretap.toml"
    monkeypatch.setenv("FEATURETAP_CONFIG", str(path))
    return path


def test_a_users_variant_is_a_name_for_options(config: Path) -> None:
    config.write_text(GOOD)
    registry = Registry()
    plain = registry.spec("mobilenet_v3_large", reduced_tail=True, width=0.5)
    assert registry.spec("our_net").parameters == registry.spec("net").parameters == plain.parameters
    assert registry.provider("our_net") == str(config)
    smaller = registry.spec("mobilenet_v3_large", reduced_tail=True, width=0.25)
    assert registry.spec("our_smaller_net").parameters == smaller.parameters
    assert {"our_net", "our_smaller_net"} <= set(registry.list_backbones())


def test_a_users_weights_belong_to_the_backbone_that_they_name(config: Path) -> None:
    config.write_text(GOOD)
    (entry,) = Registry().weights_of("our_net")
    assert (entry.tag, entry.default, entry.preprocessing.crop) == ("product_7", True, 288)


def test_the_file_is_found_in_the_users_configuration_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from platformdirs import user_config_path

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = user_config_path("featuretap", appauthor=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "featuretap.toml").write_text(GOOD)
    assert "our_net" in Registry().list_backbones()


def test_a_file_in_the_working_directory_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "featuretap.toml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert "our_net" not in Registry().list_backbones()


BAD = [
    ("schema = 1\n[backbones", "not valid TOML: "),
    (f"schema = {'1' * 5000}", "not valid TOML: Exceeds the limit "),
    ("schema = 1\na = " + "[" * 5000, "not valid TOML: maximum recursion depth exceeded"),
    (
        "",
        "schema is 'missing', but this version of featuretap reads 1; write 'schema = 1' at the top, or update "
        "featuretap",
    ),
    ("schema = 2", "schema is 2, but this version of featuretap reads 1"),
    (
        "schema = 1\nbackbone = 1",
        "backbone is not a known key; did you mean 'backbones'? known keys: schema, backbones, ",
    ),
    ("schema = 1\nbackbones = 1", "backbones must be a table; got 1"),
    ("schema = 1\n[backbones]\nx = 1", "backbones.x must be a table; got 1"),
    ("schema = 1\n[backbones.x]\nwidth = 1", "backbones.x.width is not a known key; known keys: base, options, "),
    ("schema = 1\n[backbones.x]\noption = {}", "backbones.x.option is not a known key; did you mean 'options'?"),
    ("schema = 1\n[backbones.x]\naliases = []", "backbones.x needs a base"),
    ("schema = 1\n[backbones.x]\nbase = 3", "backbones.x.base must be a string; got 3"),
    (
        'schema = 1\n[backbones.x]\nbase = "mobilenet_v2"\naliases = "y"',
        "backbones.x.aliases must be a list of strings; got 'y'",
    ),
    (
        'schema = 1\n[backbones.x]\nspec = "os:system"',
        "backbones.x.spec refers to code, which a user's catalogue must not; give a base and options, "
        "or write a plugin",
    ),
    (
        'schema = 1\n[backbones.x]\nbase = "mobilenet_v2"\noptions = { norm = "torch.nn:Identity" }',
        "backbones.x.options.norm refers to code ('torch.nn:Identity'), which a user's catalogue must not; write a "
        "plugin",
    ),
    (
        'schema = 1\n[backbones.x]\nbase = "os:system"',
        "backbones.x cannot be used: no backbone named 'os:system'",
    ),
    (
        'schema = 1\n[backbones.x]\nbase = "mobilenet_v2"\ndescribe = "os:system"',
        "backbones.x.describe is not a known key; did you mean 'description'? known keys: base, options, aliases, ",
    ),
    (
        'schema = 1\n[backbones."my net"]\nbase = "mobilenet_v2"',
        "backbones.my net cannot be used: backbone name 'my net' is invalid; use a string without spaces or colons",
    ),
    (
        'schema = 1\n[backbones.x]\nbase = "mobilenet_v2"\naliases = ["a:b"]',
        "backbones.x cannot be used: backbone name 'a:b' is invalid; use a string without spaces or colons",
    ),
    (
        'schema = 1\n[backbones.x]\nbase = "mobilenet_v2"\naliases = ["z"]\n'
        '[backbones.y]\nbase = "mobilenet_v2"\naliases = ["z"]',
        "backbones.y.aliases has 'z', which already names 'x'",
    ),
    (
        'schema = 1\n[backbones.x]\nbase = "mobilenet_v2"\naliases = ["y"]\n[backbones.y]\nbase = "mobilenet_v2"',
        "backbones.x.aliases has 'y', which already names 'y'",
    ),
    (
        'schema = 1\n[weights."mobilenet_v2.y"]\nurl = "https://x.org/y"\nsha256 = "00000000"\n'
        'layout = "timm"\nnorm_eps = 1e-5\noptions = { norm = "torch.nn:Identity" }',
        "weights.mobilenet_v2.y.options.norm refers to code ('torch.nn:Identity'), which a user's catalogue must not",
    ),
    (
        'schema = 1\n[backbones.x]\nbase = "mobilenet_v2"\noptions = { norm = [{ a = "torch.nn:Identity" }] }',
        "backbones.x.options.norm refers to code ([{'a': 'torch.nn:Identity'}]), which a user's catalogue must not",
    ),
    (
        'schema = 1\n[backbones."timm/x"]\nbase = "mobilenet_v2"',
        "backbones.timm/x has the name 'timm/x', but slashes are reserved for namespaces; choose another",
    ),
    (
        'schema = 1\n[backbones."zz:a"]\nbase = "timm/resnet18"',
        "backbones.zz:a cannot be used: backbone name 'zz:a' is invalid; use a string without spaces or colons",
    ),
    ("schema = 1\n[runtimes.x]\nfactory = 'os:system'", "runtimes is not a known key"),
    ('schema = 1\n[backbones.x]\nfactory = "os:system"', "backbones.x.factory refers to code, which a user's"),
    (
        'schema = 1\n[backbones.x]\nbase = "mobilenet_v9"',
        "backbones.x cannot be used: no backbone named 'mobilenet_v9'; did you mean 'mobilenet_v",
    ),
    (
        'schema = 1\n[backbones.x]\nbase = "mobilenet_v2"\noptions = { widht = 0.5 }',
        "backbones.x cannot be used: 'mobilenet_v2' takes no option 'widht'; did you mean 'width'?",
    ),
    (
        'schema = 1\n[backbones.x]\nbase = "mobilenet_v2"\noptions = { width = -1 }',
        "backbones.x cannot be used: 'mobilenet_v2' cannot take width=-1; it must be a positive number",
    ),
    (
        'schema = 1\n[backbones.x]\nbase = "y"\n[backbones.y]\nbase = "x"',
        "backbones.x.base is circular: x -> y -> x",
    ),
    (
        'schema = 1\n[backbones.mobilenet_v2]\nbase = "mobilenet_v1"',
        "backbones.mobilenet_v2 would shadow the built-in 'mobilenet_v2'; choose another name",
    ),
    (
        'schema = 1\n[backbones.x]\nbase = "mobilenet_v1"\naliases = ["mobilenetv2_100"]',
        "backbones.x would shadow the built-in 'mobilenetv2_100'; choose another name",
    ),
    ('schema = 1\n[plugins]\ndisabled = ["a"]', "plugins.disabled is not a known key; did you mean 'disable'?"),
    ('schema = 1\n[plugins]\nonly = "a"', "plugins.only must be a list of strings; got 'a'"),
    ('schema = 1\n[weights."x.y"]\nurl = "u"', 'weights."x.y" is missing layout, norm_eps'),
    (
        'schema = 1\n[weights.x]\nurl = "u"\nsha256 = "00000000"\nlayout = "torchvision"\nnorm_eps = 1e-5',
        "weights.\"x\" must be named 'backbone.tag'",
    ),
    (
        'schema = 1\n[weights."x.y"]\nsha256 = "ABC"',
        "weights.\"x.y\".sha256 must be 8 to 64 lower-case hexadecimal digits; got 'ABC'",
    ),
    (
        'schema = 1\n[weights."x.y"]\nurl = "u"\nsha256 = "00000000"\nlayout = "torchvision"\nnorm_eps = 1e-5\n'
        "preprocessing = { size = 3 }",
        "weights.\"x.y\".preprocessing.size is not a known key; did you mean 'resize'? known keys: resize, crop, ",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=range(len(BAD)))
def test_every_mistake_is_named_with_file_and_key(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    with pytest.raises(CatalogueError) as error:
        Registry().list_backbones()
    assert str(error.value).startswith(f"{config}: {message}")


def test_a_configured_file_must_exist(config: Path) -> None:
    with pytest.raises(CatalogueError) as error:
        Registry().list_backbones()
    assert str(error.value) == f"cannot read the catalogue {str(config)!r}: No such file or directory"


def test_a_file_that_is_not_text_is_refused(config: Path) -> None:
    config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CatalogueError, match=r"cannot read the catalogue '.*': it is not UTF-8 text"):
        Registry().list_backbones()


def test_the_catalogue_of_a_plugin_may_name_code(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text('schema = 1\n[backbones.x]\nspec = "featuretap.backbones.mobilenet_v2:V2"\naliases = ["xx"]')
    (spec,) = load_catalogue(path).backbones
    assert (spec.name, spec.aliases) == ("x", ("xx",))
    path.write_text('schema = 1\n[backbones.x]\nbase = "mobilenet_v2"')
    with pytest.raises(CatalogueError, match="base 'mobilenet_v2' is not in this file"):
        load_catalogue(path)
    path.write_text('schema = 1\n[backbones.x]\nspec = "featuretap.backbones.mobilenet_v2:V3"')
    with pytest.raises(CatalogueError, match=r"backbones.x cannot be used: cannot import 'featuretap.*:V3': module"):
        load_catalogue(path)
    path.write_text('schema = 1\n[backbones.x]\nspec = "mobilenet"')
    with pytest.raises(CatalogueError, match=r"'mobilenet' is not an import string; write it as 'package.mod"):
        load_catalogue(path)


def test_with_discovery_off_the_users_file_is_not_read(config: Path) -> None:
    config.write_text("rubbish")
    assert Registry(discover=False).list_backbones()
    with pytest.raises(UnknownBackboneError):
        Registry(discover=False).spec("our_net")


@pytest.mark.parametrize("place", ["/dev/zero", "pipe.toml"])
def test_pipes_and_devices_are_refused_without_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.toml")
    monkeypatch.setenv("FEATURETAP_CONFIG", place)
    with pytest.raises(CatalogueError) as error:
        Registry().list_backbones()
    assert str(error.value) == f"cannot read the catalogue '{place}': it is a pipe, socket or device; use a file"


def test_a_file_of_more_than_a_megabyte_is_refused_before_it_is_parsed(config: Path) -> None:
    config.write_text("schema = " + "1" * 9_000_000)
    with limited_memory(100 * 2**20), pytest.raises(CatalogueError) as error:
        Registry().list_backbones()
    assert str(error.value) == (
        f"cannot read the catalogue {str(config)!r}: it has more than 1,000,000 bytes; make it shorter"
    )


def test_lines_may_end_as_on_windows(config: Path) -> None:
    config.write_bytes(GOOD.replace("\n", "\r\n").encode())
    assert "our_net" in Registry(discover=True).list_backbones()

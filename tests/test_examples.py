"""The example distribution, installed by pip into an environment of its own as its README says."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from distributions import Environment

EXAMPLE = ROOT / "examples" / "featuretap-mobilenet-v4"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("example")
    # A copy, since building leaves things behind in the folder.
    environment = Environment(folder / "environment")
    environment.install([Path(shutil.copytree(EXAMPLE, folder / "source"))])
    return environment


def test_the_readme_works_to_the_letter(environment: Environment) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    (commands,) = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)
    for command in commands.splitlines():
        if command.startswith("featuretap"):
            ran = environment.shell(command, ROOT)
            assert (ran.returncode, ran.stderr) == (0, "")
            assert "mobilenet_v4_conv_small" in ran.stdout
    code, printed = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", readme, re.DOTALL).groups()  # type: ignore[union-attr]
    assert environment.run("-c", code).stdout == printed


def test_its_own_tests_pass_where_it_is_installed(environment: Environment, tmp_path: Path) -> None:
    tests = shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    ran = environment.run("-m", "pytest", "-q", "-W", "error", tests)
    assert ran.returncode == 0, ran.stdout
    assert " passed" in ran.stdout
    assert " skipped" not in ran.stdout

"""Features in Parquet files."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
from support.extraction import Run, bytes_in, names_in

from featuretap.workflows.extraction.reading import open_features


def test_parquet_files_read_by_pyarrow_hold_the_same_values(extract: Run, folder: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "float16"):
        here, there = tmp_path / f"p-{dtype}", tmp_path / f"s-{dtype}"
        common = (folder, "--taps", "C3,C5", "--shard-size", 4, "--dtype", dtype)
        assert extract(*common, "--format", "parquet", "--out", here).status == 0
        extract(*common, "--out", there)
        tables = [pyarrow.parquet.read_table(path) for path in sorted(here.glob("*.parquet"))]
        assert [table.num_rows for table in tables] == [4, 4, 3]
        assert [name for table in tables for name in table.column("path").to_pylist()] == names_in(folder)
        expected = open_features(there)
        for tap in ("C3", "C5"):
            rows = np.concatenate([np.array(table.column(tap).to_pylist(), dtype) for table in tables])
            assert (rows == expected.tap(tap).reshape(len(rows), -1)).all()
            assert (open_features(here).tap(tap) == expected.tap(tap)).all()
        assert json.loads(tables[0].schema.metadata[b"featuretap.shapes"])["C3"] == [8, 4, 6]


def test_a_parquet_shard_may_have_no_row_at_all(extract: Run, folder: Path, tmp_path: Path) -> None:
    for name in ("0.jpg", "1.jpg"):
        (folder / name).touch()
    out = tmp_path / "out"
    assert extract(folder, "--out", out, "--shard-size", 1, "--format", "parquet").status == 0
    assert open_features(out).names == names_in(folder)[2:]
    assert open_features(out).tap("C5").shape == (11, 144, 1, 2)


def test_a_run_with_another_format_does_not_continue_in_a_folder(extract: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(folder, "--out", out)
    before = bytes_in(out)
    ran = extract(folder, "--out", out, "--format", "parquet")
    assert ran.status == 2
    assert ran.err == (
        f'featuretap: \'{out}\' contains features of another run (format: "safetensors" there, "parquet" requested); '
        "use another --out, or the original command\n"
    )
    assert bytes_in(out) == before


def test_a_damaged_parquet_shard_is_not_taken_for_a_finished_one(extract: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    how = (folder, "--out", out, "--format", "parquet", "--shard-size", 6)
    extract(*how)
    before = bytes_in(out)
    shard = out / "features-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    missing = out / "features-00000-of-00002.parquet"
    missing.unlink()
    ran = extract(*how)
    assert not missing.exists()
    assert (ran.status, ran.err) == (
        2,
        f"featuretap: '{shard}' is not a complete features file; delete it and run the same command again\n",
    )
    shard.unlink()
    assert extract(*how).status == 0
    assert bytes_in(out) == before

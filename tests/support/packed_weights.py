"""A distribution `packed` that carries weights, and must never be imported."""

from pathlib import Path

from support.distributions import write_metadata

INSIDE = "packed/weights/v1.safetensors"
ADDRESS = f"pkg://packed/{INSIDE}"


def write_packed(folder: Path, content: bytes | None, *, code: Path | None = None) -> Path:
    """Write what installing `packed` leaves in a folder, and return the path of its weights; None leaves them out.

    `code` is another folder for the package, as of an editable installation.
    """
    write_metadata(folder, "packed", "", version="1.2")
    path = (code or folder) / INSIDE
    path.parent.mkdir(parents=True)
    (path.parents[1] / "__init__.py").write_text("raise RuntimeError('imported')\n")
    if content is not None:
        path.write_bytes(content)
    return path

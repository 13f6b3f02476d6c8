"""A distribution `packed` that contains weights. Importing it is an error."""

from pathlib import Path

from support.distributions import write_metadata

INSIDE = "packed/weights/v1.safetensors"
ADDRESS = f"pkg://packed/{INSIDE}"


def write_packed(folder: Path, content: bytes | None, *, code: Path | None = None) -> Path:
    """Write the files that installing `packed` creates, and return the path of its weights.

    Args:
        folder: the folder on `sys.path`.
        content: the weights, or None to leave them out.
        code: another folder for the package, as in an editable installation.
    """
    write_metadata(folder, "packed", "", version="1.2")
    path = (code or folder) / INSIDE
    path.parent.mkdir(parents=True)
    (path.parents[1] / "__init__.py").write_text("raise RuntimeError('imported')\n")
    if content is not None:
        path.write_bytes(content)
    return path

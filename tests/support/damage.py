"""Random damage to files, for tests of reading damaged files."""

from hypothesis import strategies as st


@st.composite
def damaged(draw: st.DrawFn, content: bytes, opcodes: list[bytes], pieces: list[bytes]) -> bytes:
    """Flip or exchange bytes, insert, repeat, move or remove pieces, or cut off the end."""
    changed = bytearray(content)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        if not changed:
            break
        at, length = draw(st.integers(0, len(changed) - 1)), draw(st.integers(1, 12))
        kind = draw(st.sampled_from([*["flip"] * 4, "opcode", "piece", "repeat", "move", "delete", "truncate"]))
        if kind == "flip":
            changed[at] ^= draw(st.integers(1, 255))
        elif kind == "opcode":
            changed[at : at + 1] = draw(st.sampled_from(opcodes))
        elif kind == "piece":
            changed[at:at] = draw(st.sampled_from(pieces))
        elif kind == "repeat":
            changed[at:at] = changed[at : at + length]
        elif kind == "move":
            to = draw(st.integers(0, len(changed) - 1))
            changed[to : to + length] = changed[at : at + length]
        elif kind == "delete":
            del changed[at : at + length]
        else:
            del changed[at:]
    return bytes(changed)

"""Text that any terminal, font and file can show."""


def printable(text: str) -> str:
    """A file's name without what no terminal or font can show."""
    shown = text.encode(errors="replace").decode()
    return "".join(c if c.isprintable() else "?" for c in shown)

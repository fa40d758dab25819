"""Text that any terminal, font and file can show, and YAML that stands for no more than it says."""

# What a terminal obeys instead of showing it: control signs but line ends and tabs, and what is no character.
_OBEYED = {n: "?" for n in (*range(32), *range(127, 160), *range(0xD800, 0xE000))} | {9: "\t", 10: "\n"}


def harmless(text: str) -> str:
    """Text of any origin, with a question mark for each sign that a terminal would obey."""
    return text.translate(_OBEYED)


def one_line(text: object) -> str:
    """A text, or an error's message, in one line."""
    return " ".join(str(text).split())


def printable(text: str) -> str:
    """A file's name without what no terminal or font can show."""
    shown = text.encode(errors="replace").decode()
    return "".join(c if c.isprintable() else "?" for c in shown)


def refuse_aliases(text: str) -> None:
    """Refuse YAML with aliases, ten lines of which can stand for 10¹⁰ values; no file of ours needs one."""
    import yaml  # text alone is shown without it

    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AliasToken):
            where = f"line {token.start_mark.line + 1}"
            raise yaml.YAMLError(f"{where}: an alias, *{token.value:.20}; write the value out")

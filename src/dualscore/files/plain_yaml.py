"""What a YAML file may not have: aliases, which can stand for more than any memory holds."""

import yaml


def refuse_aliases(text: str) -> None:
    """Refuse YAML in which one place stands for another.

    Ten lines of aliases of aliases stand for 10¹⁰ values, and no file of ours needs one.
    """
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AliasToken):
            where = f"line {token.start_mark.line + 1}"
            raise yaml.YAMLError(f"{where}: an alias, *{token.value:.20}; write the value out")

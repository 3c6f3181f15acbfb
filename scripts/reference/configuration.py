"""The page of settings."""

from scripts.reference.markdown import code, page, prose, section, summary, table

from tamiyo.streams.admin.configuration import Description, classes, described


def configuration() -> str:
    """Return every setting: its environment variable, type, default and meaning."""
    sections = []
    for cls in classes():
        listed = table(("variable", "type", "default", "meaning"), [row(each) for each in described(cls)])
        place = cls.__module__.partition("._")[0]  # a class of a private module is exported by the package around it
        text = f"{summary(cls)}\n\n{listed}\nClass: `{place}.{cls.__name__}`."
        sections.append(section(f"{cls.model_config['env_prefix']}*", text))
    introduction = (
        "A setting is read when a process starts: from a command's flag, else from its environment variable, else from "
        "the file of `tamiyo --config FILE` or `TAMIYO_CONFIG` (TOML; `width` in the table `[window]` is "
        "`TAMIYO_WINDOW_WIDTH`), else its default applies. An empty variable stands for the default. Lists and tuples "
        "are written as JSON. Numbers are finite and, unless a setting has its own limit, at most 2147483647. A wrong "
        "value, and an unknown key in the file, ends a command with status 1; unknown variables that begin with "
        "`TAMIYO_` are reported. `tamiyo config show` prints what applies, `tamiyo config reference --toml` a file."
    )
    return page("Configuration", introduction, *sections)


def row(setting: Description) -> tuple[str, str, str, str]:
    """Return a setting's cells."""
    default = "unset" if setting.default is None else code(setting.default)
    return code(setting.variable), setting.type, default, prose(setting.meaning)

"""docs/settings.md, made from the table."""

from api.settings.flags import default_text
from api.settings.kinds import in_words
from api.settings.sources import CONFIG_VARIABLE
from api.settings.table import GROUPS, TABLE, VARIABLE_PREFIX, Kind, Setting

_HEAD = f"""\
# Settings

Made by `make docs` from the table in `api/settings/table.py`; do not edit.

Each setting can be given in three ways, and has a default. The first of them counts:

1. a flag of `ritornello-server serve`: `--http-bind 127.0.0.1:7601`,
2. a variable of the environment: `{VARIABLE_PREFIX}HTTP_BIND=127.0.0.1:7601`,
3. a TOML file that `--config` or `{CONFIG_VARIABLE}` names:

```toml
[http]
bind = "127.0.0.1:7601"
cors_origins = ["https://console.example.org"]

[node]
id = "node-1"
data_directory = "/var/lib/ritornello"
cluster_secret_file = "/etc/ritornello/secret"

[node.peers]
node-1 = "10.0.0.1:7600"
node-2 = "10.0.0.2:7600"
node-3 = "10.0.0.3:7600"
```

`ritornello-server check-config` takes the same, says what is wrong, or shows the value of every
setting and where it comes from, in a form that can be used as a file. Nothing unknown is passed
over: a group, setting, flag or `{VARIABLE_PREFIX}` variable that does not exist is refused, but for
the variables with which Kubernetes names its Services.

| Kind | In a flag or variable | In the file |
| --- | --- | --- |
| number | `5000` or `5_000`, without a unit: the setting's name ends with it | `5000` |
| boolean | `true` or `false`; as flags `--http-insecure`, `--no-http-insecure` | `true` |
| address | `host:port`, an IPv6 address in brackets: `[::1]:7601` | `"[::1]:7601"` |
| peers | `node-1=host:port,node-2=host:port,...` | a table, as above, or the text |
| list | `one,two` | `["one", "two"]` |
| path | relative to the directory in which the server is started; empty for none | `"path"` |

Secrets are in files, and settings say where. Keep such files from other users of the machine.
"""


def settings_page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *map(_section, GROUPS)])


def _section(group: str) -> str:
    lines = [
        f"## [{group}]",
        "",
        GROUPS[group],
        "",
        "| Setting, flag and variable | What it is | Allowed and default |",
        "| --- | --- | --- |",
    ]
    lines.extend(_row(one) for one in TABLE if one.group == group)
    return "\n".join(lines) + "\n"


def _row(setting: Setting) -> str:
    names = f"`{setting.name}`<br>`{setting.flag}`<br>`{setting.variable}`"
    secret = " The file's content is secret." if setting.holds_secret else ""
    allowed = f"{_allowed(setting)}<br>{default_text(setting)}"
    return f"| {names} | {_escaped(setting.help + secret)} | {_escaped(allowed)} |"


def _allowed(setting: Setting) -> str:
    match setting.kind:
        case Kind.INTEGER:
            least, most = setting.minimum or 0, setting.maximum or 0
            multiple = f", a multiple of {setting.multiple_of}" if setting.multiple_of > 1 else ""
            return f"{in_words(setting, least)} to {in_words(setting, most)}{multiple}"
        case Kind.CHOICE:
            return ", ".join(f"`{one}`" for one in setting.choices)
        case Kind.TEXT if setting.form is not None:
            return setting.form.says
        case Kind.TEXTS if setting.form is not None:
            return f"list, each {setting.form.says}"
        case kind:
            return kind.value


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")

"""What is wrong with settings.

SettingsProblems            all that was found, to be raised
└── problems                one `SettingsProblem` each: a sentence, not an exception

They are collected because who writes settings wants to correct all of them in one go.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SettingsProblem:
    """One thing that is wrong, where it was said, and what to write instead."""

    origin: str  # such as "flag --http-bind"; empty if it is nowhere in particular
    message: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.message}" if self.origin else self.message


class SettingsProblems(Exception):
    """Settings that cannot be used. `problems` has at least one."""

    def __init__(self, problems: tuple[SettingsProblem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems

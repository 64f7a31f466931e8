"""`StudyTuning`: whose patients had a part in the choice of a study's settings.

A choice among results is a release of its own: the setting that won says something about the
patients it won on. So it was made on data that no guarantee covers, or each run is charged.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfl.config.files import Section
from medfl.config.site import Name


class StudyTuning(Section):
    """What the settings of a study were chosen on, as its coordinator states it.

    Attributes:
        on: ``public``: synthetic patients, open data, or nobody's at all. ``sites``: runs at the
            sites, each of which their ledgers charge like any other.
        collections: With ``public``, the open data whose patients were looked at, in alphabetical
            order; nothing that a study says of these patients is a surprise any more.
        runs: With ``sites``, the runs that the settings were chosen from, this one included.
    """

    on: Literal["public", "sites"]
    collections: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    runs: Annotated[int, Field(ge=1, le=1000)] = 1

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.on == "sites" and self.runs == 1:
            raise ValueError("expected runs >= 2 with on = 'sites', found 1: no choice")
        if self.on == "public" and self.runs != 1:
            raise ValueError(f"expected on = 'sites' with runs, found 'public', {self.runs}")
        if self.on == "sites" and self.collections:
            raise ValueError(
                f"expected collections with on = 'public' only, found {list(self.collections)}"
            )
        if self.collections != tuple(sorted(set(self.collections))):
            raise ValueError("expected distinct collections in alphabetical order")
        return self

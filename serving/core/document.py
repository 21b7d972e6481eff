"""What is written down of a rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from multifacet.serving.core.limits import Limits

Step = Literal["planned", "ranker_loaded", "lookup_loaded", "shadowed", "switched", "retired", "rolled_back", "abandoned"]
FORWARD: tuple[Step, ...] = ("planned", "ranker_loaded", "lookup_loaded", "shadowed", "switched", "retired")
OVER: frozenset[Step] = frozenset({"retired", "rolled_back", "abandoned"})


class State(BaseModel):
    """What is written down of a rollout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: PositiveInt = Field(description="Counts the rollouts of this folder.")
    old_version: str = Field(description="Version that served before.")
    old_path: Path = Field(description="Its release.")
    old_paths: tuple[tuple[str, Path], ...] = Field(
        default=(), description="By server's address, where that server had the old release."
    )
    new_version: str = Field(description="Version to serve.")
    new_path: Path = Field(description="Its release.")
    rankers: tuple[str, ...] = Field(min_length=1, description="Addresses of the rankers.")
    lookups: tuple[str, ...] = Field(min_length=1, description="Addresses of the lookup servers.")
    limits: Limits = Field(description="What the new version must keep to.")
    done: Step = Field(default="planned", description="The last step that is done.")
    doing: Step | None = Field(default=None, description="The step that was begun and is not known to be done.")
    reason: str = Field(default="", description="Why it is or was taken back, or given up.")
    served: str = Field(default="", description="Version that serves once it is over.")
    served_path: Path | None = Field(
        default=None, description="Its release, if it is neither of the two: what servers held when a rollout was given up."
    )
    left_out: tuple[str, ...] = Field(default=(), description="Servers that were given up.")

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.doing is None and self.done in OVER

    @property
    def final_version(self) -> str:
        """The version that serves once it is over."""
        return self.served or (self.new_version if self.done == "retired" else self.old_version)

    def path(self, version: str, address: str) -> Path:
        """Where a server finds one of the two releases, or the one that serves instead of them."""
        if version == self.new_version:
            return self.new_path
        if version != self.old_version and version == self.served and self.served_path is not None:
            return self.served_path
        return dict(self.old_paths).get(address, self.old_path)

"""The recipe's `launch`: what `deltalm launch` does when something fails. Changes nothing of the experiment."""

from pydantic import Field

from deltalm_ds.recipe.section import Section


class LaunchSection(Section):
    """What `deltalm launch` does when a rank, a host or a link fails."""

    min_hosts: int | None = Field(
        None, gt=0, description="Fewest hosts to go on with where one is lost and no spare is left; none: all."
    )
    max_failures: int = Field(8, gt=0, description="Failures in `window_s` after which the run ends.")
    window_s: float = Field(3600.0, gt=0, description="Seconds in which failures are counted.")
    backoff_s: float = Field(
        5.0, ge=0, description="Seconds before another attempt; each failure without a new checkpoint doubles them."
    )
    wait_for_host_s: float = Field(300.0, ge=0, description="Seconds to wait for a lost host where no spare is left.")
    hook: str | None = Field(
        None,
        description="Shell command that gets every event of a launch as JSON on stdin, such as a mail; none: none.",
    )

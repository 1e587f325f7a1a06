"""Settings: arguments first, then ``BLACKBOARD_…`` variables, then ``blackboard.toml``, here or in the user's own."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from .errors import ConfigurationError

__all__ = ["Settings", "load_settings", "settings_files"]


class Settings(BaseSettings):
    """What a board is opened with.

    Attributes:
        url: the database; None starts or joins the embedded server.
        listen_url: a direct connection for LISTEN when ``url`` leads through a transaction pooler.
        data_dir: where the embedded server keeps its data; None is the platform's data directory.
        idle_timeout: the embedded server ends itself after so many seconds without a client.
        actor: who acts where no agent does, as history shows it; None is the database role.
        pool_size: most connections that this process holds for statements, beside one for hints and one for the lease.
        lease_term: seconds after which a silent process has lost its work.
        poll_interval: seconds between looks while waiting, should a hint be lost.
    """

    model_config = SettingsConfigDict(env_prefix="BLACKBOARD_", env_ignore_empty=True, extra="forbid", frozen=True)

    url: str | None = None
    listen_url: str | None = None
    data_dir: Path | None = None
    idle_timeout: Annotated[float, Field(ge=1, le=1e9)] = 1800.0
    actor: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    pool_size: Annotated[int, Field(ge=1, le=1000)] = 4
    lease_term: Annotated[float, Field(ge=1, le=86_400)] = 30.0
    poll_interval: Annotated[float, Field(ge=0.01, le=3600)] = 1.0

    @property
    def lease(self) -> timedelta:
        """``lease_term`` as a duration."""
        return timedelta(seconds=self.lease_term)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, then the files, strongest first."""
        del dotenv_settings, file_secret_settings
        files = (TomlConfigSettingsSource(settings_cls, path) for path in settings_files())
        return (init_settings, env_settings, *files)


def settings_files() -> tuple[Path, ...]:
    """Where settings are looked for, strongest first."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return (Path("blackboard.toml"), config / "blackboard" / "blackboard.toml")


def load_settings(**given: Any) -> Settings:
    """The settings in force; arguments that are None count as not given.

    Raises:
        ConfigurationError: a value is not allowed, or a file cannot be read; names it.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ConfigurationError(
            f"A setting is not allowed: {faults}. Settings come from arguments, BLACKBOARD_… variables and "
            f"{' and '.join(map(str, settings_files()))}."
        ) from None
    except (OSError, TOMLDecodeError) as error:
        names = " or ".join(str(path) for path in settings_files() if path.exists())
        raise ConfigurationError(f"A settings file ({names}) cannot be read: {error}") from error

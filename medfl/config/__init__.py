"""Site and study files: TOML at the edge, frozen values inside."""

from medfl.config.site import SiteConfig, load_site
from medfl.config.study import StudyConfig, load_study

__all__ = ["SiteConfig", "StudyConfig", "load_site", "load_study"]

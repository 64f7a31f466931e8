"""From a run folder to figures and one page."""

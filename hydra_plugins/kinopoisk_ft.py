"""The sweeper by the name that Hydra asks for: it takes plugins from this package alone."""

from kinopoisk_ft.search.sweeper import Search


class SearchSweeper(Search):
    """`hydra.sweeper._target_` of conf/sweep/lr_search.yaml."""

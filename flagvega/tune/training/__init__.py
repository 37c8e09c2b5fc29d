"""What may be tuned of a run that trains: layouts, and settings beside them.

``question`` goes from a spec to all candidates: ``space`` reads what may be tried, ``layouts`` writes it out, ``rules``
leave out by ``facts`` what cannot run, ``forecast`` predicts. A candidate is a ``shape`` with layers for its stages;
``families`` are what the search sees of them, ``features`` what it learns by. ``history`` and ``needs`` spare trials by
what others showed; ``priority`` is FlagScale's order; ``profile`` and ``best`` are what a search leaves behind.
"""

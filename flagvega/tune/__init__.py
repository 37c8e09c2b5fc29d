"""Finds the fastest configuration by few trials: space, prediction, search, trials, records.

What knows nothing of layouts, and is as good for candidates of another kind:

- ``candidates``: a `Family` makes candidates, predicts them and learns from their trials. `Single` is a family of one
  candidate that is nothing but settings, with its own prediction or none: a list of these is a whole space.
- ``learn``: corrects predictions by features of the candidates and of their parts.
- ``pool``: all candidates as arrays; ``search``: their orders (`Guided`, `Listed`, `shuffled`); ``sampler``: Optuna's.
- ``study``: the `Trial`s and how they are kept; an `Outcome` is what a trial hands back. The search makes ``time_s``
  small: the seconds of a step, of a good answer, of whatever ``Tuner.unit`` names. ``facts`` are columns of one's own.
- ``tuner``: the search itself, given a function that makes a candidate's trial; ``view``: what a user sees of it.
- ``space``: `read_values`, `flatten`: lists, ranges and `auto` of the YAML.

``flagvega.actions.searching`` joins these into an action. What is about layouts: ``question`` (from a spec to all
layouts, with ``layouts``, ``facts`` and ``rules``), ``shape``, ``forecast``, ``features``, ``families``, ``needs``,
``history``, ``priority`` (FlagScale's order), ``profile``, ``best``; and about runs that train: ``trial``, ``measure``.
"""

"""Finds the fastest configuration by few trials: prediction, search, trials, records.

These files know nothing of what is tuned; ``training`` has what is about layouts, ``flagvega.serve.tuning`` what is
about serving engines.

- ``candidates``: a `Family` makes candidates, predicts them and learns from their trials. `Single` is a family of one
  candidate that is nothing but settings, with its own prediction or none: a list of these is a whole space.
- ``space``: `read_values`, `flatten`: lists, ranges and `auto` of the YAML.
- ``learn``: corrects predictions by features of the candidates and of their parts.
- ``pool``: all candidates as arrays; ``search``: their orders (`Guided`, `Listed`, `shuffled`); ``sampler``: Optuna's.
- ``study``: the `Trial`s and how they are kept; an `Outcome` is what a trial hands back. The search makes ``time_s``
  small: the seconds of a step, of a good answer, of whatever ``Tuner.unit`` names. ``facts`` are columns of one's own.
- ``tuner``: the search itself, given a function that makes a candidate's trial; ``view``: what a user sees of it;
  ``folder``: what other processes see of it.
- ``trial``: a run under a supervisor of its own; ``measure``: its steps; ``turns``: the same trials on several hosts.

``flagvega.actions.searching`` joins these into an action.
"""
